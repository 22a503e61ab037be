"""Sections on whether the consortium worked: each bank's run, and what must not stay unseen."""

from __future__ import annotations

import html

from sandbox.accounts import BankAccount
from sandbox.report.markup import Cell, Markup, join, paragraph, section, table
from sandbox.report.record import RunRecord


def failure_banner(record: RunRecord) -> list[Markup]:
    """What makes this run unsound, before anything else; nothing when it is sound."""
    if not record.failures:
        return []
    lines = "".join(f"<li>{html.escape(failure)}</li>" for failure in record.failures)
    return [
        section(
            "failures",
            "This run is not sound",
            Markup(f'<ul class="failures">{lines}</ul>'),
        )
    ]


def banks_section(record: RunRecord) -> Markup:
    """What each bank shared and what it had to do without."""
    rows: list[list[Cell]] = [
        [
            a.bank,
            a.days_shared,
            sum(a.days_not_shared.values()),
            a.inquiries,
            sum(a.inquiries_refused.values()),
            sum(a.inquiries_declined.values()),
            a.indicators,
            a.lookups,
            a.scored,
            a.degraded,
            a.rejected,
            a.rule_errors,
        ]
        for a in record.accounts
    ]
    columns = [
        "bank",
        "days shared",
        "not shared",
        "inquiries",
        "refused",
        "declined",
        "indicators",
        "points looked up",
        "rows scored",
        "degraded",
        "rejected",
        "rule errors",
    ]
    parts = [
        paragraph(
            "Each day a bank mirrors the index and asks for the sums that have matured. When that fails it goes on "
            "scoring in degraded mode and catches up later. Indicators, inquiries and points are counted in the log."
        ),
        table("Each bank's run", columns, rows),
    ]
    reasons = [row for account in record.accounts for row in _reasons(account)]
    if reasons:
        parts.append(table("Why", ["bank", "what", "reason", "times"], reasons, words=3))
    if record.rejects:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in record.rejects)
        parts.append(
            join([paragraph("Rows of the source that no bank could use:"), Markup(f"<ul>{items}</ul>")])
        )
    return section("banks", "What each bank shared", *parts)


def _reasons(account: BankAccount) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for what, counted in (
        ("days not shared", account.days_not_shared),
        ("inquiries refused", account.inquiries_refused),
        ("inquiries declined", account.inquiries_declined),
        ("days scored in degraded mode", account.degraded_reasons),
        ("evidence against the coordinator", dict.fromkeys(account.distrust, 1)),
    ):
        rows += [[account.bank, what, reason, count] for reason, count in counted.items()]
    if account.indicators_waiting:
        rows.append(
            [
                account.bank,
                "indicators waiting",
                "not accepted yet when the run ended",
                account.indicators_waiting,
            ]
        )
    return rows
