"""Sections on the evidence: how good indicators are, what members add, whether the sums were right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sandbox.evaluation import Evaluation, GrowthStep, TierRow
from sandbox.report import plots
from sandbox.report.markup import Cell, Markup, Missing, paragraph, section, table
from sandbox.report.measured import Drawings, percent, three


def tier_section(rows: Sequence[TierRow], drawings: Drawings) -> Markup:
    """How often an indicator of each strength was right."""
    drawing = plots.tiers(rows)
    parts = [
        paragraph(
            "A tier needs so many distinct victims. Own: victims among the bank's own customers. All: victims at any "
            "member. A transaction with more victims counts in the lower tiers too."
        )
    ]
    if drawing is not None:
        parts.append(
            drawings.place(
                drawing,
                "Share of the transactions at each tier that were frauds. Upper bar: own victims only. Lower bar: all "
                "members' victims.",
            )
        )
    parts.append(
        table(
            "Hits of each tier",
            [
                "kind",
                "tier",
                "evidence",
                "victims",
                "hits",
                "frauds",
                "precision",
                "fraud money",
                "genuine money",
            ],
            [
                [
                    r.kind,
                    r.tier,
                    r.evidence,
                    f"{r.min_victims}+",
                    r.hits,
                    r.frauds,
                    Markup(f"{r.precision:.0%}") if r.precision is not None else Missing("no hits"),
                    Markup(f"{r.fraud_money:,.0f}"),
                    Markup(f"{r.genuine_money:,.0f}"),
                ]
                for r in rows
            ],
            words=3,
        )
    )
    return section("tiers", "How good an indicator is", *parts)


def growth_section(steps: Sequence[GrowthStep], drawings: Drawings) -> Markup:
    """Why a further member helps those already there."""
    rows: list[list[Cell]] = [
        [
            s.members,
            s.frauds_flagged,
            Markup(f"{s.fraud_money_flagged:,.0f}"),
            s.genuine_flagged,
            three(s.average_precision, "not trained"),
            three(s.roc_auc, "not trained"),
            "; ".join(_kinds_of(s)),
        ]
        for s in steps
    ]
    return section(
        "growth",
        "What each further member adds",
        paragraph(
            "Each bank with the first so many other members; the same rows every time, all banks together. Flagged "
            "frauds are counted exactly, from the contributors named on the labels that each bank opened."
        ),
        drawings.place(
            plots.growth(steps),
            "Hatched and hollow: counterfactual. No such consortium ran; the sandbox computed it from what it knows of "
            "each bank. * Policy would refuse encrypted sums to so few members.",
        ),
        table(
            "By size of the consortium",
            [
                "members",
                "frauds flagged",
                "fraud money",
                "genuine flagged",
                "average precision",
                "ROC AUC",
                "note",
            ],
            rows,
            remarks=True,
        ),
    )


def _kinds_of(step: GrowthStep) -> Iterable[str]:
    if step.counterfactual:
        yield "counterfactual: the sandbox knows each bank's counts"
    if step.refused_by_policy:
        yield step.refused_by_policy


def exactness_section(evaluation: Evaluation) -> Markup:
    """Whether the cryptography returned the right numbers, and what was not scored."""
    checks: list[list[Cell]] = [
        [
            c.what,
            c.rows,
            c.different,
            c.left_out,
            Markup('<span class="good">equal</span>')
            if not c.different
            else Markup('<span class="bad">differs</span>'),
        ]
        for c in evaluation.exactness
    ]
    facts: list[list[Cell]] = [
        [
            f.bank,
            f.events,
            f.unscored,
            f.degraded,
            f.customers,
            f.frauds,
            percent(f.frauds, f.events, 2),
            Markup(f"{f.money:,.0f}"),
            Markup(f"{f.fraud_money:,.0f}"),
        ]
        for f in evaluation.banks
    ]
    return section(
        "streams",
        "The streams, and whether the sums were right",
        table(
            "What each bank scored",
            [
                "bank",
                "events",
                "not scored",
                "degraded",
                "customers",
                "frauds",
                "share",
                "money",
                "fraud money",
            ],
            facts,
        ),
        table(
            "What the protocols returned against the plain truth",
            ["what", "rows", "different", "left out: degraded", "result"],
            checks,
        ),
    )
