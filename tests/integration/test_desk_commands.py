"""The fraud desk's commands before real member nodes: indicators from bank to bank, and joint statistics."""

from __future__ import annotations

import csv
import datetime as dt
import json
from pathlib import Path
from typing import Any

import polars as pl
import typer
from typer.testing import CliRunner, Result

from governance.policy.default import default_bundle
from member_node import cli, indicator_cli, inquiry_cli
from member_node.command_line import day_text

MAPPING = Path(__file__).parents[2] / "sandbox" / "mappings" / "handbook.toml"


def run(app: typer.Typer, banks: Any, bank: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--directory", str(banks.path / bank)])


def printed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_indicator_travels_from_desk_to_desk(three_banks: Any) -> None:
    first = run(indicator_cli.app, three_banks, "bank-b", "lookup", "iban", "GB82 WEST 1234 5698 7654 32")
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("NOT FLAGGED")
    added = run(
        indicator_cli.app,
        three_banks,
        "bank-a",
        *("add", "iban", "gb82west12345698765432", "--typology", "mule-account", "--victims", "3"),
    )
    assert added.exit_code == 0, added.output
    found = run(indicator_cli.app, three_banks, "bank-b", "lookup", "iban", "GB82 WEST 1234 5698 7654 32")
    assert found.stdout.startswith("FLAGGED  iban, tier challenge (at most: challenge): 3 distinct victims")
    assert "bank-a: 3 victims, mule-account" in found.stdout
    answer = printed(
        run(indicator_cli.app, three_banks, "bank-c", "lookup", "iban", "GB82WEST12345698765432", "--json")
    )
    assert answer["tier"] == {"name": "challenge", "verdict": "challenge"}
    later = run(
        indicator_cli.app,
        three_banks,
        "bank-b",
        "lookup",
        "iban",
        "GB82WEST12345698765432",
        "--at",
        "2100-01-01",
    )
    assert later.stdout.startswith("NOT FLAGGED  every label on this iban has expired")


def test_a_list_is_imported_and_its_bad_rows_are_named(three_banks: Any, tmp_path: Path) -> None:
    rows = [f"phone,+4420794609{number:02d},account-takeover,2,," for number in range(30)]
    path = tmp_path / "phones.csv"
    path.write_text(
        "\n".join(
            ["kind,value,typology,victims,first_seen,last_seen", *rows, "phone,nobody,account-takeover,2,,"]
        )
    )
    report = printed(run(indicator_cli.app, three_banks, "bank-c", "import", path, "--json"))
    assert (report["accepted"], report["rejected"]) == (30, 1)
    with Path(report["rejects"]).open(newline="") as file:
        assert [(each["row"], each["column"]) for each in csv.DictReader(file)] == [("32", "value")]
    answer = printed(
        run(indicator_cli.app, three_banks, "bank-a", "lookup", "phone", "+44 20 7946 0917", "--json")
    )
    assert [(each["contributor"], each["distinct_victims"]) for each in answer["labels"]] == [("bank-c", 2)]


def test_a_refusal_is_one_line_that_names_the_party_and_the_rule(three_banks: Any) -> None:
    refused = run(
        indicator_cli.app, three_banks, "bank-a", "lookup", "terminal", "T1", "--purpose", "oversight"
    )
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "bank-a refused lookups: 403" in refused.stderr
    assert "default-deny" in refused.stderr
    days = default_bundle().inquiries[0].max_days
    window = ("--first-day", day_text(17_000), "--last-day", day_text(17_000 + days))
    refused = run(inquiry_cli.app, three_banks, "bank-a", "ask", *window)
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "inquiry-size" in refused.stderr


def test_a_joint_statistic_is_asked_written_and_shown(three_banks: Any, tmp_path: Path) -> None:
    out = tmp_path / "counts.csv"
    window = ("--first-day", day_text(18_000), "--last-day", day_text(18_001))
    asked = run(inquiry_cli.app, three_banks, "bank-b", "ask", *window, "--out", out)
    assert asked.exit_code == 0, asked.output
    expected = sum(each.counts(18_000, 18_001) for each in three_banks.statistics.values())
    names = three_banks.nodes["bank-b"].directory_values
    with out.open(newline="") as file:
        written = {(each["day"], each["entity"]): int(each["count"]) for each in csv.DictReader(file)}
    assert written == {
        (day_text(18_000 + day), names[cell]): int(expected[day, cell])
        for day in range(2)
        for cell in range(len(names))
        if expected[day, cell]
    }
    again = printed(run(inquiry_cli.app, three_banks, "bank-b", "ask", *window, "--json"))
    assert again["total"] == int(expected.sum())

    ledger = printed(run(inquiry_cli.app, three_banks, "bank-b", "show", "--all", "--json"))["inquiries"]
    (own,) = [row for row in ledger if row["first_day"] == 18_000]
    assert (own["requester"], own["takes_part"], own["contributed"]) == ("bank-b", True, True)
    assert own["outcome_logged"] is True
    shown = run(inquiry_cli.app, three_banks, "bank-b", "show", own["inquiry_id"][:12])
    assert shown.exit_code == 0, shown.output
    assert "cohort: bank-a, bank-b, bank-c" in shown.stdout
    assert "coordinator: closed" in shown.stdout
    assert "committed to in the log" in shown.stdout
    other = printed(run(inquiry_cli.app, three_banks, "bank-c", "show", own["inquiry_id"], "--json"))
    assert (other["requester"], other["contributed"], other["outcome_logged"]) == ("bank-b", True, None)
    unknown = run(inquiry_cli.app, three_banks, "bank-c", "show", "00" * 32)
    assert "this member has decided on no such inquiry" in unknown.stderr


def test_the_status_of_a_node_is_readable(three_banks: Any) -> None:
    text = run(cli.app, three_banks, "bank-a", "status")
    assert text.exit_code == 0, text.output
    assert text.stdout.startswith("bank-a (Bank-A): ready")


def test_a_file_is_replayed_once_and_goes_on_where_it_stopped(three_banks: Any, tmp_path: Path) -> None:
    count = 40
    start = dt.datetime(2018, 4, 1)
    events = pl.DataFrame(
        {
            "TRANSACTION_ID": range(count),
            "TX_DATETIME": [start + dt.timedelta(hours=2 * number) for number in range(count)],
            "CUSTOMER_ID": [number % 5 for number in range(count)],
            "TERMINAL_ID": [number % 7 for number in range(count)],
            "TX_AMOUNT": [10.0 + number for number in range(count)],
            "TX_FRAUD": [0] * count,
        }
    )
    empty, file = tmp_path / "empty.parquet", tmp_path / "events.parquet"
    events.head(0).write_parquet(empty)
    events.write_parquet(file)
    refused = run(cli.app, three_banks, "bank-c", "replay", empty, "--mapping", MAPPING)
    assert (refused.exit_code, "empty.parquet: has no row" in refused.stderr) == (1, True)
    replay = ("replay", file, "--mapping", MAPPING, "--json")
    first = printed(run(cli.app, three_banks, "bank-c", *replay, "--until", "2018-04-01"))
    assert (first["scored"], sum(first["verdicts"].values())) == (12, 12)
    assert printed(run(cli.app, three_banks, "bank-c", *replay))["scored"] == count - 12
    assert printed(run(cli.app, three_banks, "bank-c", *replay))["scored"] == 0
    other = run(cli.app, three_banks, "bank-c", "replay", empty, "--mapping", MAPPING)
    assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
    assert "bank-c has accepted events of another stream already" in other.stderr
