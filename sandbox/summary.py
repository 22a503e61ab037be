"""The end of a run in the terminal: what was reached, what it cost, and where the report is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandbox.accounts import BankAccount
from sandbox.evaluation import Evaluation
from sandbox.evaluation.results import ALONE, CONSORTIUM, POOLED
from sandbox.report import RunRecord

VIEWS = {ALONE: "each bank alone", CONSORTIUM: "with the consortium", POOLED: "raw data pooled"}
DISTURBING = ("challenge", "review", "block")


def print_summary(record: RunRecord, out: Path, console: Console) -> None:
    """Print tables of models and of verdicts, the audit's result, and the paths of the report."""
    if record.evaluation is not None:
        console.print(models(record.evaluation))
        console.print(verdicts(record.evaluation, record.unit))
        for check in record.evaluation.exactness:
            state = "exact" if check.different == 0 else f"[red]{check.different:,} rows differ[/red]"
            left = f", {check.left_out:,} degraded rows left out" if check.left_out else ""
            console.print(f"{check.what}: {state} ({check.rows:,} rows{left})")
    if record.accounts:
        console.print(accounts(record.accounts))
        for account in record.accounts:
            for line in remarks(account):
                console.print(f"{account.bank}: {line}", highlight=False, markup=False)
    audit = record.audit
    console.print(
        f"log: {audit['size']:,} entries verified offline"
        if audit
        else f"[red]log: {record.why('audit')}[/red]"
    )
    for incident in record.incidents:
        console.print(f"incident: {incident}", soft_wrap=True)
    if record.probe is not None and record.probe.refused:
        console.print(
            f"probe: {record.probe.party} asked {record.probe.asked}; the coordinator refused and logged it"
        )
    for failure in record.failures:
        console.print(f"[bold red]failed[/bold red]: {escape(failure)}", highlight=False, soft_wrap=True)
    state = "[bold green]done[/bold green]" if not record.failures else "[bold red]not sound[/bold red]"
    console.print(f"{state}: open {out / 'report.html'}  (as JSON: {out / 'report.json'})", soft_wrap=True)


def accounts(rows: Sequence[BankAccount]) -> Table:
    """What became of the consortium, a column a bank."""
    table = Table("each bank's run", *(row.bank for row in rows))
    for column in table.columns[1:]:
        column.justify = "right"
    measures: tuple[tuple[str, Callable[[BankAccount], int]], ...] = (
        ("days shared", lambda row: row.days_shared),
        ("days not shared", lambda row: sum(row.days_not_shared.values())),
        ("inquiries closed", lambda row: row.inquiries),
        (
            "inquiries refused or declined",
            lambda row: sum(row.inquiries_refused.values()) + sum(row.inquiries_declined.values()),
        ),
        ("rows scored", lambda row: row.scored),
        ("rows scored in degraded mode", lambda row: row.degraded),
        ("rows rejected", lambda row: row.rejected),
        ("rule errors", lambda row: row.rule_errors),
        ("indicators contributed", lambda row: row.indicators),
        ("points looked up", lambda row: row.lookups),
    )
    for name, measure in measures:
        table.add_row(name, *(f"{measure(row):,}" for row in rows))
    return table


def remarks(account: BankAccount) -> list[str]:
    """Reasons behind a bank's numbers, the most frequent three of each sort."""
    lines = []
    for what, reasons in (
        ("days not shared", account.days_not_shared),
        ("inquiries refused", account.inquiries_refused),
        ("inquiries declined", account.inquiries_declined),
        ("days scored in degraded mode", account.degraded_reasons),
    ):
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:3]:
            lines.append(f"{count:,} {what}: {reason}")
    return lines


def models(evaluation: Evaluation) -> Table:
    """ROC AUC, average precision and card precision@100 on the test weeks, all banks' scores together."""
    table = Table(
        "model",
        "what it may use",
        "AUC",
        "AP",
        "CP@100",
        title=f"Test weeks: {evaluation.test_rows:,} transactions, {evaluation.test_frauds:,} frauds",
    )
    for row in evaluation.models:
        scores = (row.joint.roc_auc, row.joint.average_precision, row.joint.card_precision_100)
        table.add_row(
            row.model, VIEWS.get(row.view, row.view), *("-" if s is None else f"{s:.3f}" for s in scores)
        )
    return table


def verdicts(evaluation: Evaluation, unit: str) -> Table:
    """Frauds and money stopped by the rules, and what that cost honest customers, all banks together."""
    table = Table(
        "rules with",
        "frauds stopped",
        f"fraud money stopped ({unit})",
        "genuine challenged",
        "genuine blocked",
        title="The whole stream, live verdicts",
    )
    for view, name in ((ALONE, "own knowledge"), (CONSORTIUM, "the consortium's")):
        found = evaluation.verdict("all", view)
        if found is None:
            continue
        table.add_row(
            name,
            f"{found.sum_of('frauds', DISTURBING):,.0f} of {found.sum_of('frauds'):,.0f}",
            f"{found.sum_of('fraud_money', DISTURBING):,.0f} of {found.sum_of('fraud_money'):,.0f}",
            f"{found.sum_of('genuine', ('challenge', 'review')):,.0f}",
            f"{found.sum_of('genuine', ('block',)):,.0f}",
        )
    return table
