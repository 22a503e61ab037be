"""The report's drawings. Each also stands in a table, so no number needs a plot to be read."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from sandbox.evaluation import Evaluation, GrowthStep, Quality, TierRow, VerdictTable
from sandbox.evaluation.results import ALONE, CONSORTIUM, FOREST, POOLED
from sandbox.report.drawing import COLOURS, INK, MUTED, PAPER, Drawing, calm, new_figure

VIEWS = (ALONE, CONSORTIUM, POOLED)
VIEW_NAMES = {ALONE: "each bank alone", CONSORTIUM: "with the consortium", POOLED: "pooled (upper bound)"}
_MEASURES = (
    ("average_precision", "Average precision"),
    ("roc_auc", "ROC AUC"),
    ("card_precision_100", "Card precision@100"),
)
STOPPED = ("challenge", "review", "block")


def headline(evaluation: Evaluation, *, width: float = 10.0, height: float = 3.5) -> Drawing | None:
    """Random forest under the three views; ``None`` without a measured row."""
    found = [(view, evaluation.model(FOREST, view)) for view in VIEWS]
    rows = [
        (view, row.joint)
        for view, row in found
        if row is not None and row.joint.average_precision is not None
    ]
    if not rows:
        return None
    figure = new_figure(width, height)
    spoken = []
    for axes, (field, name) in zip(figure.subplots(1, len(_MEASURES)), _MEASURES, strict=True):
        _bars(axes, name, [(view, _value(quality, field)) for view, quality in rows])
        spoken.append(f"{name}: " + ", ".join(f"{VIEW_NAMES[v]} {_value(q, field):.3f}" for v, q in rows))
    handles = figure.axes[0].containers
    figure.legend(
        [c[0] for c in handles],
        [VIEW_NAMES[view] for view, _ in rows],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        labelcolor=INK,
        fontsize=10.5,
    )
    return Drawing(
        figure, "Frauds ranked by each bank alone, with the consortium, and pooled", "; ".join(spoken)
    )


def _value(quality: Quality, field: str) -> float:
    value = getattr(quality, field)
    return float(value) if value is not None else 0.0


def _bars(axes: Axes, name: str, values: Sequence[tuple[str, float]]) -> None:
    calm(axes)
    axes.grid(visible=False)
    axes.set_yticks([])
    top = max(value for _, value in values)
    for position, (view, value) in enumerate(values):
        pooled = view == POOLED
        bars = axes.bar(
            position,
            value,
            width=0.68,
            color=PAPER if pooled else COLOURS[view],
            edgecolor=COLOURS[view],
            linewidth=1.4,
            hatch="///" if pooled else None,
        )
        axes.bar_label(
            bars,
            labels=[f"{value:.3f}"],
            padding=3,
            color=INK,
            fontsize=11,
            fontweight="bold" if view == CONSORTIUM else "normal",
        )
    axes.set_title(name, loc="left", color=INK, fontsize=11.5)
    axes.set_xticks([])
    axes.set_xlim(-0.75, 2.55)
    axes.set_ylim(0, top * 1.14 if top else 1)


def disturbance(alone: VerdictTable, together: VerdictTable, unit: str) -> Drawing:
    """Fraud money stopped and genuine payments disturbed, before and after joining."""
    figure = new_figure(10.0, 2.1)
    left, right = figure.subplots(1, 2)
    pairs = ((ALONE, alone), (CONSORTIUM, together))
    spoken = []
    for axes, title, field, money in (
        (left, f"Fraud money stopped{f' ({unit})' if unit else ''}", "fraud_money", True),
        (right, "Genuine payments challenged or stopped", "genuine", False),
    ):
        calm(axes, grid="x")
        values = [table.sum_of(field, STOPPED) for _, table in pairs]
        totals = [table.sum_of(field) for _, table in pairs]
        bars = axes.barh([1, 0], values, height=0.6, color=[COLOURS[view] for view, _ in pairs])
        labels = [
            f"{v:,.0f}  ({v / t:.1%} of {t:,.0f})" if money else f"{v:,.0f}  ({v / t:.2%})"
            for v, t in zip(values, [t or 1.0 for t in totals], strict=True)
        ]
        axes.bar_label(bars, labels=labels, padding=4, color=INK, fontsize=10)
        axes.set_yticks([1, 0], ["alone", "consortium"], color=INK)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_xlim(0, max([*values, 1e-9]) * 2.0)
        axes.set_title(title, loc="left", color=INK, fontsize=11.5)
        spoken.append(f"{title}: alone {labels[0]}, with the consortium {labels[1]}")
    return Drawing(figure, "Frauds stopped beside honest customers disturbed", "; ".join(spoken))


def growth(steps: Sequence[GrowthStep]) -> Drawing:
    """What each further member adds: frauds flagged and average precision."""
    measured = [(s.members, s.average_precision) for s in steps if s.average_precision is not None]
    figure = new_figure(10.0, 3.1)
    left, right = figure.subplots(1, 2)
    members = [s.members for s in steps]
    calm(left)
    left.grid(visible=False)
    left.set_yticks([])
    for step in steps:
        colour = COLOURS["alone"] if step.members == 1 else COLOURS["consortium"]
        bars = left.bar(
            step.members,
            step.frauds_flagged,
            width=0.6,
            color=PAPER if step.counterfactual else colour,
            edgecolor=colour,
            linewidth=1.4,
            hatch="///" if step.counterfactual else None,
        )
        left.bar_label(bars, labels=[f"{step.frauds_flagged:,}"], padding=3, color=INK)
    left.set_title("Frauds at or above the challenge tier", loc="left", color=INK, fontsize=11.5)
    left.set_ylim(0, max([s.frauds_flagged for s in steps] + [1]) * 1.18)
    calm(right)
    right.set_title("Average precision, random forest", loc="left", color=INK, fontsize=11.5)
    if measured:
        right.plot(*zip(*measured, strict=True), color=COLOURS["consortium"], linewidth=2, zorder=2)
        for step in steps:
            if step.average_precision is None:
                continue
            right.plot(
                [step.members],
                [step.average_precision],
                marker="o",
                markersize=8,
                markeredgewidth=1.8,
                color=COLOURS["consortium"],
                markerfacecolor=PAPER if step.counterfactual else COLOURS["consortium"],
                zorder=3,
            )
            right.annotate(
                f"{step.average_precision:.3f}" + ("*" if step.refused_by_policy is not None else ""),
                (step.members, step.average_precision),
                textcoords="offset points",
                xytext=(0, 10),
                ha="center",
                color=INK,
            )
        values = [value for _, value in measured]
        room = max(max(values) - min(values), 0.02)
        right.set_ylim(max(0, min(values) - 0.3 * room), max(values) + 0.35 * room)
    else:
        right.text(0.5, 0.5, "not measured", transform=right.transAxes, ha="center", color=MUTED)
        right.set_yticks([])
    for axes in (left, right):
        axes.set_xticks(members, [str(m) for m in members])
        axes.set_xlim(0.5, max(members) + 0.5)
        axes.set_xlabel("members", color=MUTED)
    spoken = "; ".join(
        f"{s.members} members: {s.frauds_flagged} frauds"
        + (f", average precision {s.average_precision:.3f}" if s.average_precision is not None else "")
        + (" (counterfactual)" if s.counterfactual else "")
        for s in steps
    )
    return Drawing(figure, "What each further member adds", spoken)


def tiers(rows: Sequence[TierRow]) -> Drawing | None:
    """Precision of every tier that was hit, own evidence against all evidence; ``None`` without a hit."""
    pairs: dict[tuple[str, str, int], dict[str, TierRow]] = {
        (r.kind, r.tier, r.min_victims): {} for r in rows
    }
    for each in rows:
        pairs[each.kind, each.tier, each.min_victims][each.evidence] = each
    hit = {key: pair for key, pair in pairs.items() if any(r.hits for r in pair.values())}
    if not hit:
        return None
    figure = new_figure(10.0, 0.9 + 0.46 * len(hit))
    axes = figure.subplots()
    calm(axes, grid="x")
    names, spoken = [], []
    for position, ((kind, tier, least), pair) in enumerate(hit.items()):
        name = f"{kind}: {tier} ({least}+)"
        names.append(name)
        for evidence, view, shift in (("own", ALONE, -0.19), ("all", CONSORTIUM, 0.19)):
            row = pair.get(evidence)
            precision = row.precision if row else None
            if row is None or precision is None:
                axes.annotate(
                    "no hits",
                    (0.004, position + shift),
                    va="center",
                    color=MUTED,
                    fontsize=9,
                    annotation_clip=False,
                )
                continue
            axes.barh(position + shift, precision, height=0.34, color=COLOURS[view])
            axes.annotate(
                f"{precision:.0%}  of {row.hits:,} hits",
                (precision, position + shift),
                textcoords="offset points",
                xytext=(5, 0),
                va="center",
                color=INK,
                fontsize=9.5,
            )
            spoken.append(f"{name}, {evidence} evidence: {precision:.0%} of {row.hits} hits")
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    return Drawing(figure, "Precision of each indicator tier", "; ".join(spoken))
