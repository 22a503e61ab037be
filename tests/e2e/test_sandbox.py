"""What a whole run must show, looked at from outside: files, report, log and the bodies that crossed a boundary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import psutil
import pytest

from governance.indicators import Kind, normalise
from governance.log.audit import AuditError, verify_export
from sandbox.wire_search import WireSearch

if TYPE_CHECKING:
    from conftest import SandboxRun

pytestmark = pytest.mark.e2e

IDENTIFIERS = {
    "customer": None,
    "account": Kind.ACCOUNT,
    "card": None,
    "payee": Kind.IBAN,
    "device": Kind.DEVICE,
    "phone": Kind.PHONE,
    "email": None,
    "terminal": Kind.TERMINAL,
}


def events_of(run: SandboxRun) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((run.out / "streams").glob("bank-*.parquet"))])


def test_report_is_written_and_complete(sandbox_run: SandboxRun) -> None:
    assert (sandbox_run.out / "report.html").stat().st_size > 20_000
    report = sandbox_run.report
    assert report["audit"]["size"] > 100, "the log was exported and verified offline"
    assert report["audit"]["inquiries"]["closed"] > 20
    assert sorted(report["statuses"]) == ["bank-a", "bank-b", "bank-c", "bank-d"]
    assert {check["different"] for check in report["evaluation"]["exactness"]} == {0}


def test_no_identifier_crosses_a_boundary(sandbox_run: SandboxRun) -> None:
    events = events_of(sandbox_run)
    needles: set[str] = set()
    for column, kind in IDENTIFIERS.items():
        for value in events.get_column(column).drop_nulls().unique().to_list():
            needles.add(str(value))
            if kind is not None:
                needles.add(normalise(kind, str(value)).text)
    search = WireSearch(needle for needle in needles if len(needle) >= 5)
    files, total, leaks = search.search_folder(sandbox_run.out / "capture")
    assert leaks == []
    assert search.needles > 10_000
    assert files > 500, "the capture must have recorded the run"
    assert total > 5_000_000


def test_capture_has_each_kind_of_exchange(sandbox_run: SandboxRun) -> None:
    heads = set()
    for path in (sandbox_run.out / "capture").rglob("*.http"):
        with path.open("rb") as file:
            heads.add(file.readline().decode().split("?")[0].strip().rsplit("/", 1)[-1])
    parts = {
        "evaluate",
        "labels",
        "deltas",
        "membership",
        "policy",
        "tasks",
        "mask-key",
        "contribution",
        "outcome",
    }
    assert parts <= heads, f"not captured: {parts - heads}"


def test_a_killed_member_is_named_and_catches_up(sandbox_run: SandboxRun) -> None:
    assert "bank-b died" in sandbox_run.printed.replace("\n", " ")
    histories = {
        bank.name: pl.read_parquet(bank / "history" / "*.parquet", columns=["event_id"]).height
        for bank in sorted((sandbox_run.out / "parties").glob("bank-*"))
    }
    for path in sorted((sandbox_run.out / "streams").glob("bank-*.parquet")):
        assert histories[path.stem] == pl.read_parquet(path).height, "each event is scored exactly once"


def test_joint_counts_equal_the_plain_sum(sandbox_run: SandboxRun) -> None:
    """The encrypted sums of a bank's last event day are what adding raw data would have given."""
    events = events_of(sandbox_run).with_columns(day=pl.col("time").dt.date())
    for bank in sorted((sandbox_run.out / "parties").glob("bank-*")):
        history = pl.read_parquet(bank / "history" / "*.parquet").filter(pl.col("terminal").is_not_null())
        scored = history.with_columns(day=pl.from_epoch("time_us", time_unit="us").dt.date())
        frauds = events.filter((pl.col("fraud") == 1) & pl.col("terminal").is_not_null()).select(
            "terminal", fraud_day="day"
        )
        expected = (
            scored.select("event_id", "terminal", "day")
            .join(frauds, on="terminal")
            .filter(
                (pl.col("fraud_day") < pl.col("day") - pl.duration(days=7))
                & (pl.col("fraud_day") >= pl.col("day") - pl.duration(days=14))
            )
            .group_by("event_id")
            .len()
        )
        both = scored.join(expected, on="event_id", how="left").with_columns(pl.col("len").fill_null(0))
        np.testing.assert_array_equal(
            both["consortium_terminals_fraud_7d_all"].to_numpy(), both["len"].to_numpy().astype(float)
        )


@pytest.mark.parametrize("name", ["checkpoint", "entries.jsonl", "parties.json"])
def test_audit_refuses_any_changed_byte(sandbox_run: SandboxRun, tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    shutil.copytree(sandbox_run.out / "log", log)
    verify_export(log, None)
    original = (log / name).read_bytes()
    places = np.unique(np.linspace(0, len(original) - 1, 40).astype(int))
    for place in places:
        changed = bytearray(original)
        changed[place] ^= 1
        (log / name).write_bytes(changed)
        with pytest.raises(AuditError):
            verify_export(log, None)
    (log / name).write_bytes(original)
    verify_export(log, None)


def test_no_process_is_left(sandbox_run: SandboxRun) -> None:
    left = [
        p.info
        for p in psutil.process_iter(["pid", "cmdline"])
        if str(sandbox_run.out) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
