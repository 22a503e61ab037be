"""The end of a run in the terminal: what was reached, what it cost, and where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from sandbox.evaluation import Evaluation
from sandbox.evaluation.results import ALONE, CONSORTIUM, POOLED
from sandbox.report import RunRecord

VIEWS = {ALONE: "each bank alone", CONSORTIUM: "with the consortium", POOLED: "raw data pooled (bound)"}
DISTURBING = ("challenge", "review", "block")


def print_summary(record: RunRecord, out: Path, console: Console) -> None:
    """Print tables of models and of verdicts, the audit's result, and the paths of the report."""
    if record.evaluation is not None:
        console.print(models(record.evaluation))
        console.print(verdicts(record.evaluation, record.unit))
        for check in record.evaluation.exactness:
            state = "exact" if check.different == 0 else f"[red]{check.different:,} rows differ[/red]"
            console.print(f"{check.what}: {state} ({check.rows:,} rows)")
    audit = record.audit
    console.print(
        f"log: {audit['size']:,} entries verified offline"
        if audit
        else f"[red]log: {record.why('audit')}[/red]"
    )
    for incident in record.incidents:
        console.print(f"incident: {incident}")
    console.print(
        f"[bold green]done[/bold green]: open {out / 'report.html'}  (as JSON: {out / 'report.json'})"
    )


def models(evaluation: Evaluation) -> Table:
    """Ranking quality of each model on the test weeks, all banks' scores together."""
    table = Table(
        "model",
        "what it may use",
        "ROC AUC",
        "average precision",
        "card precision@100",
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
