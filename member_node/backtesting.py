"""A backtest in the process of the command, over the node's files: the node goes on scoring undisturbed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from governance.messages.codec import decode
from governance.messages.policy import PolicyBundle
from governance.messages.signed import Signed
from member_node.client.desk import BankDesk
from member_node.command_line import CommandError
from member_node.service.backtest import Backtest, run_backtest
from member_node.service.history_files import MANIFEST, HistoryError, Manifest
from member_node.service.last_judged import LastJudged
from member_node.service.layout import tier_table, transaction_columns
from member_node.service.replay import SOURCE
from member_node.service.rulebook import columns_of
from member_node.service.stored_rows import StoredRowsError, read_history, wanted_columns
from member_node.service.stream_parts import StreamSource
from member_node.settings import load_settings
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore, StreamStore
from member_node.storage.trust import TrustStore
from member_node.streams.mapping import StreamMapping, parse_mapping
from scoring.rules.columns import ColumnSchema
from scoring.rules.ruleset import RuleSetError, load_ruleset
from scoring.verdicts import TierTable

DAY_US = 86_400_000_000
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.1


def backtest_file(
    desk: BankDesk,
    directory: Path,
    file: Path,
    first_us: int,
    until_us: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The report (see :meth:`Backtest.report`) of a rule set file over the history of first_us <= time < until_us.

    ``progress`` is told rows done and rows in all. Raises CommandError, and what the desk raises.
    """
    desk.post("rules/history")
    today = ColumnSchema(columns_of(desk.get("rules/columns")["columns"]))
    active = desk.get("rules")["deployed"]["active"]
    if active is None:
        raise CommandError(f"{desk.party} has no active version to compare with: activate one")
    version = desk.get(f"rules/versions/{active}")
    # A list may be gone since the version was saved: it is judged by the columns it was saved with, as in the stream.
    schema = today.with_gone(columns_of(version["columns"]))
    try:
        now = load_ruleset(version["text"], schema, version=active)
    except RuleSetError as error:
        raise CommandError(
            f"{desk.party}: version {active} does not fit today's columns: {error}; activate one that does"
        ) from error
    try:
        tested = load_ruleset(file.read_text(encoding="utf-8"), schema, version=active)
        mapping, outcomes, tiers = _stored(directory)
        backtest = Backtest(
            tested,
            now,
            schema,
            lambda amount, channel, time_us: transaction_columns(mapping, amount, channel, time_us),
            outcomes,
            tiers,
            frozenset(schema) - frozenset(today),
        )
        first_day, last_day = first_us // DAY_US, (until_us - 1) // DAY_US
        with _opened(directory / "history") as files:
            # An event of these days may have been corrected to another day.
            counted = LastJudged([parquet for _, parquet in files])
            chosen = [parquet for day, parquet in files if first_day <= day <= last_day]
            total = sum(each.metadata.num_rows for each in chosen)
            tables = read_history(chosen, wanted_columns((tested, now)), first_us, until_us, counted)
            return run_backtest(backtest, tables, lambda rows: progress(rows, total))
    except RuleSetError as error:
        raise CommandError(f"{file}: {error}") from error
    except (HistoryError, StoredRowsError, msgspec.DecodeError, OSError) as error:
        raise CommandError(f"{desk.party}: {error}") from error


def report_text(report: dict[str, Any]) -> str:
    """A report for people."""
    names = report["verdicts"]
    lines = [
        f"{report['rows']:,} events, {report['known']:,} with an outcome, {report['frauds']:,} frauds "
        f"({report['fraud_money']:,.2f})"
    ]
    if report["unexplained"]:
        lines.append(
            f"WARNING  the active version gives {report['unexplained']:,} of its {report['compared']:,} verdicts "
            "differently over the history: the comparison is not exact"
        )
    if report["gone"]:
        lines.append(
            f"NOTE  {', '.join(report['gone'])}: no longer a column of the stream; it counts as the history holds "
            "it, and where that holds nothing the rules that read it are in error"
        )
    header = f"{'':32} {'hits':>9} {'precision':>9} {'recall':>7} {'caught':>14} {'disturbed':>9}"
    lines += ["", header]
    lines += [_row(f"in all, {name}", report["in_all"][name]) for name in ("active", "tested")]
    lines += [_row(f"{each['rule']} ({each['verdict']})", each) for each in report["rules"]]
    lines += ["", "verdicts of the active version (down) against the tested one (across):"]
    lines.append(f"{'':12}" + "".join(f"{name:>12}" for name in names))
    lines += [
        f"{name:12}" + "".join(f"{count:12,}" for count in row)
        for name, row in zip(names, report["changes"], strict=True)
    ]
    return "\n".join(lines)


def _row(name: str, told: dict[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    return (
        f"{name[:32]:32} {told['hits']:9,} {share(told['precision']):>9} {share(told['recall']):>7} "
        f"{told['money_caught']:14,.2f} {told['disturbed']:9,}"
    )


@contextmanager
def _opened(history: Path) -> Iterator[list[tuple[int, pq.ParquetFile]]]:
    """The files that count at one moment with their days, all open: the node may replace them meanwhile.

    Only read, never through a ``HistoryStore``, which is the node's own and tidies up when it opens.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        with ExitStack() as stack:
            try:
                manifest = msgspec.json.decode((history / MANIFEST).read_bytes(), type=Manifest)
                files = [
                    (file.day, stack.enter_context(pq.ParquetFile(history / file.name)))
                    for file in manifest.files
                ]
            except FileNotFoundError as error:
                if attempt == _ATTEMPTS:
                    raise HistoryError(f"{history}: holds no scored events, or {error}") from error
                time.sleep(_PAUSE_SECONDS)
                continue
            yield files
            return


def _stored(directory: Path) -> tuple[StreamMapping, pa.Table, TierTable | None]:
    """The open stream's mapping, all outcomes, and the tiers of the policy in force (None before the first)."""
    database = Database.in_directory(directory, load_settings(directory).database_url)
    try:
        stored = StreamStore(database).source(SOURCE)
        if stored is None:
            raise CommandError("no stream was ever opened: there is no history to test against")
        source = msgspec.json.decode(stored, type=StreamSource)
        mapping = parse_mapping(source.mapping, name=source.mapping_name)
        # The node has verified it before it was stored.
        policy = TrustStore(database).load("policy")
        tiers = None
        if policy is not None:
            tiers = tier_table(decode(PolicyBundle, decode(Signed, policy).payload))
        return mapping, OutcomeStore(database).labels(), tiers
    finally:
        database.close()
