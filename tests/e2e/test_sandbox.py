"""What a whole run must show, looked at from outside: files, report, log and the bodies that crossed a boundary."""

from __future__ import annotations

import re
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

# Every column of the population that names somebody or something, with the kind that has a normal form.
IDENTIFIERS = {
    "customer": None,
    "account": Kind.ACCOUNT,
    "card": None,
    "payee": Kind.IBAN,
    "device": Kind.DEVICE,
    "phone": Kind.PHONE,
    "email": None,
    "ip": None,
    "terminal": Kind.TERMINAL,
    "merchant": Kind.MERCHANT,
}


def events_of(run: SandboxRun) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((run.out / "streams").glob("bank-*.parquet"))])


@pytest.fixture(scope="module")
def identifiers(sandbox_run: SandboxRun) -> WireSearch:
    """Every identifier of the population and its normal form, as something to search for."""
    events = pl.read_parquet(sandbox_run.source)
    needles: set[str] = set()
    for column, kind in IDENTIFIERS.items():
        for value in events.get_column(column).drop_nulls().unique().to_list():
            needles.add(str(value))
            if kind is not None:
                needles.add(normalise(kind, str(value)).text)
    search = WireSearch(sorted(needles))
    assert search.needles > 100_000
    return search


def test_report_is_written_and_complete(sandbox_run: SandboxRun) -> None:
    assert (sandbox_run.out / "report.html").stat().st_size > 20_000
    report = sandbox_run.report
    assert report["audit"]["size"] > 100, "the log was exported and verified offline"
    assert report["audit"]["inquiries"]["closed"] > 40
    assert sorted(report["statuses"]) == ["bank-a", "bank-b", "bank-c", "bank-d"]
    assert report["failures"] == []
    checks = report["evaluation"]["exactness"]
    assert len(checks) == 6
    assert {check["different"] for check in checks} == {0}
    assert min(check["rows"] for check in checks) > 10_000


def test_models_are_measured(sandbox_run: SandboxRun) -> None:
    evaluation = sandbox_run.report["evaluation"]
    assert evaluation["test_frauds"] > 10
    rows = {(row["model"], row["view"]): row["joint"] for row in evaluation["models"]}
    for model in ("random forest", "logistic regression"):
        for view in ("alone", "consortium", "pooled"):
            joint = rows[model, view]
            for metric in ("roc_auc", "average_precision", "card_precision_100"):
                assert 0 < joint[metric] <= 1, (model, view, metric)
    steps = evaluation["growth"]
    assert [step["members"] for step in steps] == [1, 2, 3, 4]
    assert [step["counterfactual"] for step in steps] == [False, True, True, False]
    assert [step["refused_by_policy"] is not None for step in steps] == [False, True, False, False]
    assert all(step["average_precision"] is not None for step in steps)
    flagged = [step["frauds_flagged"] for step in steps]
    assert flagged == sorted(flagged)
    assert (sandbox_run.out / "headline.svg").exists()


def test_the_consortium_stops_more_than_the_banks_alone(sandbox_run: SandboxRun) -> None:
    """97 frauds against 57 with the seed of this run; half of that margin must remain."""
    tables = {
        table["view"]: table["rows"]
        for table in sandbox_run.report["evaluation"]["verdicts"]
        if table["bank"] == "all"
    }
    stopped = {
        view: sum(row["frauds"] for row in rows if row["verdict"] in ("challenge", "review", "block"))
        for view, rows in tables.items()
    }
    assert stopped["consortium"] > 1.3 * stopped["alone"] > 0


def test_each_bank_is_accounted_for(sandbox_run: SandboxRun) -> None:
    accounts = {account["bank"]: account for account in sandbox_run.report["accounts"]}
    assert sorted(accounts) == ["bank-a", "bank-b", "bank-c", "bank-d"]
    for bank, account in accounts.items():
        assert account["days_shared"] + sum(account["days_not_shared"].values()) == sandbox_run.days, bank
        assert account["days_shared"] >= sandbox_run.days - 2, account["days_not_shared"]
        assert account["distrust"] == []
        assert account["inquiries"] >= sandbox_run.days - 8
        assert account["inquiries_refused"] == {}
        assert account["indicators"] > 0
        assert account["lookups"] > 100
        assert account["rule_errors"] == 0
    seen = {kind["kind"]: kind for kind in sandbox_run.report["coordinator"]["kinds"]}
    assert sum(account["indicators"] for account in accounts.values()) == sum(
        k["labels"] for k in seen.values()
    )
    assert seen["terminal"]["tags_of_several"] > 0


def test_the_sandboxs_probe_is_refused_and_logged(sandbox_run: SandboxRun) -> None:
    probe = sandbox_run.report["probe"]
    assert (probe["party"], probe["refused"]) == ("bank-a", True)
    refused = [row for row in sandbox_run.report["audit"]["requests"] if row["decision"] == "refused"]
    assert [(row["party"], row["action"], row["requests"]) for row in refused] == [("bank-a", "inquire", 1)]
    page = (sandbox_run.out / "report.html").read_text()
    assert "the sandbox&#x27;s own probe" in page


def test_bad_rows_of_the_file_are_named_and_the_others_scored(sandbox_run: SandboxRun) -> None:
    rejects = (sandbox_run.out / "rejects.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:3] for line in rejects] == [
        [str(row), str(row), column] for column, row in sorted(sandbox_run.bad_rows, key=lambda each: each[1])
    ]
    for column, row in sandbox_run.bad_rows:
        assert f"row {row}, {column}: " in sandbox_run.printed
    source = pl.read_parquet(sandbox_run.source)
    assert events_of(sandbox_run).height == source.height - len(sandbox_run.bad_rows)
    assert "rows refused" in " ".join(sandbox_run.report["rejects"])


def test_no_identifier_crosses_a_boundary(sandbox_run: SandboxRun, identifiers: WireSearch) -> None:
    files, total, leaks = identifiers.search_folder(sandbox_run.out / "capture")
    assert leaks == []
    assert files > 500, "the capture must have recorded the run"
    assert total > 5_000_000


def test_no_identifier_is_in_the_exported_log(sandbox_run: SandboxRun, identifiers: WireSearch) -> None:
    files, total, leaks = identifiers.search_folder(sandbox_run.out / "log")
    assert leaks == []
    assert (files, total > 50_000) == (3, True)


def test_no_identifier_is_in_anything_the_coordinator_holds(
    sandbox_run: SandboxRun, identifiers: WireSearch
) -> None:
    directory = sandbox_run.out / "parties" / "coordinator"
    _, total, leaks = identifiers.search_folder(directory)
    assert leaks == []
    assert total > 200_000
    rows, leaks = identifiers.search_database(directory / "coordinator.sqlite3")
    assert leaks == []
    assert rows > 500


def test_the_search_finds_what_banks_hold_themselves(
    sandbox_run: SandboxRun, identifiers: WireSearch
) -> None:
    """The same search over a bank's own stream must hit, or the tests above prove nothing."""
    events = events_of(sandbox_run)
    for column in IDENTIFIERS:
        value = events.get_column(column).drop_nulls()[0]
        found = identifiers.search(f'{{"{column}": "{value}"}}'.encode(), file="planted")
        assert str(value) in {leak.identifier for leak in found}, column


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


def test_a_member_killed_in_the_middle_of_an_inquiry_is_named_and_catches_up(sandbox_run: SandboxRun) -> None:
    assert f"{sandbox_run.killed} died in the middle of share" in " ".join(sandbox_run.printed.split())
    (incident,) = sandbox_run.report["incidents"]
    assert re.match(
        rf"{sandbox_run.killed} was killed by the sandbox, with [1-9]\d* open inquiries waiting for it, in the middle"
        " of share",
        incident,
    )
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


def test_the_main_job_in_small(handbook_run: SandboxRun) -> None:
    """Two days matured within the ten: every member's question about them was answered, exactly."""
    report = handbook_run.report
    assert report["configuration"]["members"] == handbook_run.members
    assert report["configuration"]["last day"] == "2018-04-10"
    # The one refused is the probe of the sandbox.
    assert report["audit"]["inquiries"] == {"closed": 2 * handbook_run.members, "refused": 1}
    sums = report["evaluation"]["exactness"][0]
    assert sums["rows"] == report["configuration"]["events"] > 90_000
    assert (sums["different"], sums["left_out"]) == (0, 0)
    assert {check["different"] for check in report["evaluation"]["exactness"]} == {0}
    assert report["failures"] == []
    assert report["rejects"] == []
    for account in report["accounts"]:
        assert (account["days_shared"], account["days_not_shared"]) == (handbook_run.days, {})
        assert account["degraded"] == 0


def test_metrics_of_weeks_that_were_not_played_are_said_to_be_missing(handbook_run: SandboxRun) -> None:
    page = (handbook_run.out / "report.html").read_text()
    assert "Ranking quality was not measured in this run: no test rows." in page
