"""Sections on what the consortium achieved: models ranked, money stopped, customers disturbed."""

from __future__ import annotations

from sandbox.evaluation import Evaluation, Quality, VerdictTable
from sandbox.evaluation.results import ALONE, CONSORTIUM, FOREST, POOLED
from sandbox.report import plots
from sandbox.report.drawing import Drawing, svg_for_page
from sandbox.report.markup import (
    Cell,
    Markup,
    Missing,
    details,
    figure,
    join,
    paragraph,
    section,
    strong,
    table,
)
from sandbox.report.plots import STOPPED, VIEW_NAMES


class Drawings:
    """Numbers the drawings of one page so that their ids stay apart."""

    def __init__(self) -> None:
        self._count = 0

    def place(self, drawing: Drawing, caption: str) -> Markup:
        """The drawing as a figure of the page."""
        self._count += 1
        return figure(svg_for_page(drawing, self._count), caption)


def three(value: float | None, why: str = "") -> Cell:
    """A metric with three digits."""
    return Missing(why) if value is None else Markup(f"{value:.3f}")


def percent(part: float, whole: float, digits: int = 1) -> Cell:
    """``part`` of ``whole``; not measured when there is no whole."""
    return Markup(f"{part / whole:.{digits}%}") if whole else Missing("nothing to divide by")


def gap_closed(evaluation: Evaluation) -> float | None:
    """Share of the average precision between alone and pooled that the consortium recovers (random forest)."""
    values = [evaluation.model(FOREST, view) for view in (ALONE, CONSORTIUM, POOLED)]
    found = [row.joint.average_precision if row else None for row in values]
    alone, together, pooled = found
    if alone is None or together is None or pooled is None or pooled <= alone:
        return None
    return (together - alone) / (pooled - alone)


def headline_section(evaluation: Evaluation, drawings: Drawings) -> Markup:
    """The comparison everything is about."""
    drawing = plots.headline(evaluation)
    parts = [_sentence(evaluation)]
    if drawing is not None:
        parts.append(
            drawings.place(
                drawing,
                "Random forest on the same test rows. Pooled is the upper bound that needs every bank's raw rows in "
                "one place: no bank may do that, only this sandbox can compute it.",
            )
        )
    parts += [_model_table(evaluation), _bank_table(evaluation), _how(evaluation)]
    return section("headline", "Alone, together, pooled", *parts)


def _sentence(evaluation: Evaluation) -> Markup:
    alone, together = (evaluation.model(FOREST, view) for view in (ALONE, CONSORTIUM))
    closed = gap_closed(evaluation)
    if alone is None or together is None:
        return paragraph("The random forest was not trained in this run.", kind="lead")
    if alone.joint.average_precision is None or together.joint.average_precision is None:
        why = together.joint.why or alone.joint.why or "nothing to measure on"
        return paragraph(f"Ranking quality was not measured in this run: {why}.", kind="lead")
    parts: list[Cell] = [
        "Average precision goes from ",
        strong(three(alone.joint.average_precision, alone.joint.why or "")),
        " for the banks alone to ",
        strong(three(together.joint.average_precision, together.joint.why or "")),
        " with the consortium",
    ]
    if closed is not None:
        parts += [
            ": ",
            strong(Markup(f"{closed:.0%}")),
            " of what pooling all data would gain, without any bank showing its rows",
        ]
    return paragraph(*parts, ".", kind="lead")


def _quality_cells(found: Quality) -> list[Cell]:
    why = found.why or ""
    return [three(v, why) for v in (found.average_precision, found.roc_auc, found.card_precision_100)]


def _model_table(evaluation: Evaluation) -> Markup:
    rows: list[list[Cell]] = []
    for row in evaluation.models:
        note = f" (no fraud to learn from: {', '.join(row.untrained)})" if row.untrained else ""
        rows.append([row.model, VIEW_NAMES.get(row.view, row.view) + note, *_quality_cells(row.joint)])
    marked = [n for n, row in enumerate(evaluation.models) if row.view == CONSORTIUM]
    return table(
        "Ranking quality over the test rows of all banks",
        ["model", "what each bank uses", "average precision", "ROC AUC", "card precision@100"],
        rows,
        words=2,
        marked=marked,
    )


def _bank_table(evaluation: Evaluation) -> Markup:
    rows: list[list[Cell]] = []
    for fact in evaluation.banks:
        cells: list[Cell] = [fact.bank]
        found = [evaluation.model(FOREST, view) for view in (ALONE, CONSORTIUM, POOLED)]
        cells += [row.banks[fact.bank].frauds for row in found[:1] if row]
        for row in found:
            quality = row.banks[fact.bank] if row else None
            cells.append(
                three(quality.average_precision, quality.why or "") if quality else Missing("not trained")
            )
        if found[0]:
            rows.append(cells)
    return details(
        "Each bank by itself",
        table(
            "Random forest, average precision on each bank's own test rows",
            ["bank", "test frauds", "alone", "with the consortium", "pooled"],
            rows,
        ),
    )


def _how(evaluation: Evaluation) -> Markup:
    weeks = evaluation.weeks
    features = ", ".join(evaluation.features)
    added = ", ".join(evaluation.consortium_features) or "none"
    pooled = ", ".join(evaluation.pooled_features) or "none"
    return details(
        "How this was measured",
        join(
            [
                paragraph(
                    f"Training: {weeks.train_days} days from {weeks.train_first}. Then {weeks.delay_days} days whose "
                    f"labels are not known yet, then {weeks.test_days} test days: {evaluation.test_rows:,} rows with "
                    f"{evaluation.test_frauds:,} frauds, without customers already known as compromised. Features are "
                    "standardised, random_state is 0, everything else is scikit-learn's default."
                ),
                paragraph("Every view uses: ", features, "."),
                paragraph("The consortium adds, from encrypted sums of confirmed frauds: ", added, "."),
                paragraph("Pooling computes over all banks' rows instead: ", pooled, "."),
                paragraph(
                    "Card precision@100: each day the 100 customers with the highest score are looked at; the mean "
                    "share that are frauds, customers found on an earlier day left out."
                ),
            ]
        ),
    )


def money_section(evaluation: Evaluation, unit: str, drawings: Drawings) -> Markup:
    """What the rules stopped and whom they disturbed."""
    alone, together = (evaluation.verdict("all", view) for view in (ALONE, CONSORTIUM))
    if alone is None or together is None:
        return section("money", "Frauds stopped, honest customers disturbed", paragraph("Not measured."))
    rows = [row for t in (alone, together) for row in _verdict_rows(t)]
    each = [
        _verdict_summary(found)
        for fact in evaluation.banks
        for view in (ALONE, CONSORTIUM)
        if (found := evaluation.verdict(fact.bank, view)) is not None
    ]
    money = f"fraud money{f', {unit}' if unit else ''}"
    genuine_money = f"genuine money{f', {unit}' if unit else ''}"
    return section(
        "money",
        "Frauds stopped, honest customers disturbed",
        paragraph(
            "What the banks' rules decided live over the whole stream, with only the bank's own indicators and with "
            "those of all members. Stopped means challenged, reviewed or blocked; a challenge is taken to stop a fraud."
        ),
        drawings.place(
            plots.disturbance(alone, together, unit),
            "All banks together, the whole stream, decided by rules alone.",
        ),
        table(
            "Verdicts over the whole stream, all banks",
            ["evidence", "verdict", "frauds", "of frauds", money, "genuine", "of genuine", genuine_money],
            rows,
            words=2,
        ),
        details(
            "Each bank by itself",
            table(
                "Stopped and disturbed, by bank",
                [
                    "bank",
                    "evidence",
                    "frauds stopped",
                    money,
                    "genuine challenged",
                    "reviewed",
                    "blocked",
                    genuine_money,
                ],
                each,
                words=2,
            ),
        ),
    )


def _verdict_rows(found: VerdictTable) -> list[list[Cell]]:
    frauds, genuine = found.sum_of("frauds"), found.sum_of("genuine")
    return [
        [
            _evidence(found.view),
            row.verdict,
            row.frauds,
            percent(row.frauds, frauds),
            Markup(f"{row.fraud_money:,.0f}"),
            row.genuine,
            percent(row.genuine, genuine, 2),
            Markup(f"{row.genuine_money:,.0f}"),
        ]
        for row in found.rows
    ]


def _verdict_summary(found: VerdictTable) -> list[Cell]:
    return [
        found.bank,
        _evidence(found.view),
        int(found.sum_of("frauds", STOPPED)),
        Markup(f"{found.sum_of('fraud_money', STOPPED):,.0f}"),
        *(int(found.sum_of("genuine", (verdict,))) for verdict in STOPPED),
        Markup(f"{found.sum_of('genuine_money', STOPPED):,.0f}"),
    ]


def _evidence(view: str) -> str:
    return {ALONE: "own", CONSORTIUM: "consortium"}.get(view, view)
