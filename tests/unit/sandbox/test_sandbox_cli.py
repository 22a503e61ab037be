"""The command as an operator meets it: what it says of a file it cannot use, and when it ends with 1."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import sandbox.run
from sandbox.cli import app
from sandbox.population import save, simulate
from sandbox.report import RunRecord

MAPPING = Path(__file__).parents[3] / "sandbox" / "mappings" / "default.toml"
RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object):
    return RUNNER.invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("population")
    path, _ = save(simulate(5, 3, days=3, customers_per_bank=20, terminals=30), folder)
    return path


class StopError(ValueError):
    """Ends a run after its events were dealt."""


@pytest.fixture
def dealt_only(monkeypatch) -> None:
    """Let a run stop once the events are read, checked and dealt, before any process is started."""

    def stop(*_: object) -> None:
        raise StopError("stopped after dealing")

    monkeypatch.setattr(sandbox.run, "compile_kernels", stop)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("noise.parquet", b"PAR1 but nothing more", "not a readable Parquet file"),
        ("few.csv", b"event_id,time\n1,2026-01-05\n", "has no column"),
        ("old.xls", b"x", "events are read from .parquet or .csv files"),
    ],
)
def test_a_file_of_no_use_is_one_line_and_exit_1(tmp_path, name, content, expected) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    result = run("--events", file, "--mapping", MAPPING, "--out", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("subrosa sandbox: ")
    assert name in line
    assert expected in line
    assert line.endswith("mend the file, or name its columns in the mapping")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_bad_rows_are_named_and_good_rows_dealt(tmp_path, events, dealt_only, suffix) -> None:
    row = pl.int_range(1, pl.len() + 1)
    frame = pl.read_parquet(events).with_columns(
        bank=pl.when(row == 7).then(None).otherwise(pl.col("bank")),
        amount=pl.when(row == 9).then(float("nan")).otherwise(pl.col("amount")),
        time=pl.when(row == 11).then(pl.lit("noon")).otherwise(pl.col("time").dt.to_string("iso:strict")),
    )
    file, out = tmp_path / f"events{suffix}", tmp_path / "out"
    if suffix == ".csv":
        frame.write_csv(file)
    else:
        frame.write_parquet(file)
    result = run("--members", 3, "--events", file, "--mapping", MAPPING, "--out", out)
    assert result.exit_code == 1
    assert "stopped after dealing" in result.output
    header = 1 if suffix == ".csv" else 0  # lines of a CSV file are counted with their header
    expected = [
        f"{7 + header},{7 + header},bank,is missing",
        f"{11 + header},{11 + header},time,is not a time",
    ]
    assert f"3 of {frame.height:,} rows refused" in result.output
    assert f"row {7 + header}, bank: is missing" in result.output
    rejects = (out / "rejects.csv").read_text().splitlines()
    assert [line for line in rejects[1:] if "amount" not in line] == expected
    assert len(rejects) == 4
    dealt = [pl.read_parquet(path) for path in sorted((out / "streams").glob("bank-*.parquet"))]
    assert [part.height for part in dealt] == [
        frame.filter((row != 7) & (row != 9) & (row != 11)).filter(pl.col("bank") == bank).height
        for bank in range(3)
    ]


def test_a_mended_file_runs_in_the_same_folder(tmp_path, events, dealt_only) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "events.csv"
    pl.read_parquet(events).with_columns(amount=pl.lit(-1.0)).write_csv(broken)
    first = run("--members", 3, "--events", broken, "--mapping", MAPPING, "--out", out)
    assert (first.exit_code, "none of its" in first.output) == (1, True)
    second = run("--members", 3, "--events", events, "--mapping", MAPPING, "--out", out)
    assert "stopped after dealing" in second.output
    assert not (out / "rejects.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kill", "bank-z@1"], "bank-z is not a member"),
        (["--kill", "bank-a@1:sleep"], "PARTY@DAY:PART"),
        (["--events", MAPPING], "--events and --mapping go together"),
    ],
)
def test_wrong_options_say_what_is_wrong(tmp_path, arguments, expected) -> None:
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert expected in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("failures", "code"), [((), 0), (("sums: 2 of 9 rows differ [really].",), 1)])
def test_an_unsound_run_ends_with_1_and_says_why(tmp_path, monkeypatch, failures, code) -> None:
    record = RunRecord(
        title="t", finished_at="now", configuration={}, command="subrosa sandbox", failures=failures
    )
    monkeypatch.setattr(sandbox.run, "run_sandbox", lambda *_: record)
    result = run("--out", tmp_path)
    assert result.exit_code == code
    assert ("failed: sums: 2 of 9 rows differ [really]." in result.output) == bool(failures)
    assert ("done: open" in result.output) == (not failures)
