"""``subrosa indicator`` and ``subrosa inquiry`` before a real HTTP server that records what reaches it.

What a real member node answers is tested in ``tests/integration/test_desk_commands.py``.
"""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from governance.messages.problems import make_problem
from member_node import indicator_cli, inquiry_cli
from member_node.api.bank import FindingBody
from member_node.command_line import parse_time_ms
from member_node.indicator_file import MAX_TYPOLOGY_CHARACTERS, Finding, make_finding
from member_node.secret_files import TOKEN_FILE
from member_node.service import labels
from member_node.setup import init_member

NOON_MS = parse_time_ms("2026-03-02T12:00:00Z")
DAY_MS = 86_400_000


@dataclass
class Recorder:
    """The server side: requests as they came, and the answers it gives by path (status, body)."""

    directory: Path
    port: int
    requests: list[tuple[str, str, dict[str, Any] | None]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    refuse_from: int | None = None

    def answer(self, path: str, body: object, status: int = 200) -> None:
        self.answers[path] = (status, json.dumps(body).encode())

    def refuse(self, path: str, name: str, detail: str, party: str = "") -> None:
        problem = make_problem(name, detail, party)
        self.answers[path] = (problem.status, problem.encode())

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for _, asked, body in self.requests if asked == path and body is not None]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Recorder]:
    """A member's data directory, and a server where the node would listen."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            path = self.path.removeprefix("/bank/v1/")
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            recorder.requests.append((self.command, path, json.loads(body) if body else None))
            recorder.tokens.add(self.headers["authorization"])
            status, content = recorder.answers.get(path, (404, make_problem("not-found", path).encode()))
            if recorder.refuse_from is not None and len(recorder.bodies(path)) >= recorder.refuse_from:
                problem = make_problem("budget-exceeded", "nothing is left for accounts", "bank-a")
                status, content = problem.status, problem.encode()
            if (status, path) == (200, "indicators/batch") and not content:
                content = json.dumps({"accepted": len(json.loads(body)["findings"])}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    directory = tmp_path / "bank-a"
    port = server.server_address[1]
    init_member(
        directory, party="bank-a", name="A", host="127.0.0.1", port=port, coordinator_url="http://127.0.0.1:1"
    )
    recorder = Recorder(directory, port)
    recorder.answers["indicators/batch"] = (200, b"")
    recorder.answer("indicators", {"accepted": 1})
    recorder.answer("sync", {"labels": 0})
    yield recorder
    server.shutdown()
    server.server_close()
    thread.join()


def run(app: typer.Typer, *arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)


def indicator(node: Recorder, *arguments: str | Path, stdin: str = "") -> Result:
    return run(indicator_cli.app, *arguments, "--directory", node.directory, stdin=stdin)


def add(node: Recorder, *more: str, kind: str = "terminal", value: str = "TERM 1", stdin: str = "") -> Result:
    return indicator(
        node, "add", kind, value, "--typology", "point-of-compromise", "--victims", "3", *more, stdin=stdin
    )


def one_line(result: Result) -> str:
    """The complaint of a command that failed as it should: exit code 1, one line, no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---- add


def test_add_sends_one_finding_with_the_operators_token(node: Recorder) -> None:
    result = add(
        node,
        "--first-seen",
        "2026-02-20",
        "--last-seen",
        "2026-03-01T09:30+01:00",
        "--at",
        "2026-03-02T12:00",
    )
    assert result.exit_code == 0, result.output
    assert node.requests == [
        (
            "POST",
            "indicators",
            {
                "kind": "terminal",
                "value": "TERM 1",
                "typology": "point-of-compromise",
                "distinct_victims": 3,
                "first_seen_ms": parse_time_ms("2026-02-20"),
                "last_seen_ms": parse_time_ms("2026-03-01T08:30:00Z"),
                "now_ms": NOON_MS,
            },
        )
    ]
    assert node.tokens == {f"Bearer {(node.directory / TOKEN_FILE).read_text().strip()}"}
    assert "TERM 1" not in result.output


def test_add_reads_the_value_from_standard_input(node: Recorder) -> None:
    assert add(node, value="-", stdin="TERM 9\n").exit_code == 0
    assert node.bodies("indicators")[0]["value"] == "TERM 9"


def test_add_prints_json(node: Recorder) -> None:
    assert json.loads(add(node, "--json").stdout) == {"accepted": 1}


@pytest.mark.parametrize(
    ("kind", "value", "more", "said"),
    [
        ("planet", "X1", (), "kind"),
        ("iban", "DE00 1234", (), "value"),
        ("terminal", " ", (), "value"),
        ("terminal", "X1", ("--typology", "he said on the phone"), "typology"),
        ("terminal", "X1", ("--first-seen", "2026-03-02", "--last-seen", "2026-03-01"), "last_seen"),
    ],
)
def test_add_refuses_before_anything_is_sent(
    node: Recorder, kind: str, value: str, more: tuple[str, ...], said: str
) -> None:
    complaint = one_line(add(node, *more, kind=kind, value=value))
    assert complaint.startswith("bank-a: ")
    assert said in complaint
    if value.strip():
        assert value not in complaint
    assert node.requests == []


@pytest.mark.parametrize("more", [("--victims", "0"), ("--at", "tomorrow"), ("--first-seen", "1960-01-01")])
def test_add_refuses_options_that_are_no_values(node: Recorder, more: tuple[str, str]) -> None:
    result = add(node, *more)
    assert (result.exit_code, node.requests) == (2, [])
    assert more[0] in result.stderr


def test_a_refusal_of_the_node_names_party_and_fix(node: Recorder) -> None:
    node.refuse("indicators", "unavailable", "bank-c and bank-d do not answer", "bank-c")
    complaint = one_line(add(node))
    assert "bank-a refused indicators" in complaint
    assert "bank-c and bank-d do not answer" in complaint
    assert "at fault: bank-c" in complaint
    assert "Try again later" in complaint


def test_an_answer_that_is_no_problem_document_is_shown_in_one_line(node: Recorder) -> None:
    node.answers["indicators"] = (502, b"<html>\nBad gateway\n</html>")
    assert "502 <html> Bad gateway </html>" in one_line(add(node))


@pytest.mark.parametrize("content", [b"hello", b"[1]"])
def test_another_program_at_the_address_is_recognised(node: Recorder, content: bytes) -> None:
    node.answers["indicators"] = (200, content)
    assert "bank-a did not answer indicators" in one_line(add(node))


def test_a_node_that_does_not_run_is_named_with_the_command_that_starts_it(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    home = tmp_path / "home"
    init_member(
        home, party="bank-x", name="X", host="127.0.0.1", port=port, coordinator_url="http://127.0.0.1:1"
    )
    arguments = ("lookup", "terminal", "T1", "--directory", home)
    complaint = one_line(run(indicator_cli.app, *arguments))
    assert f"bank-x does not answer at http://127.0.0.1:{port}" in complaint
    assert f"subrosa member serve --directory {home}" in complaint


def test_a_directory_that_is_none_and_a_lost_token_are_named(node: Recorder, tmp_path: Path) -> None:
    complaint = one_line(run(indicator_cli.app, "lookup", "terminal", "T1", "--directory", tmp_path / "none"))
    assert "member.toml is missing" in complaint
    assert "subrosa member init" in complaint
    (node.directory / TOKEN_FILE).unlink()
    assert TOKEN_FILE in one_line(add(node))
    assert node.requests == []


# ---- import


HEADER = "kind,value,typology,victims,first_seen,last_seen"


def import_rows(node: Recorder, tmp_path: Path, lines: list[str] | bytes, *more: str) -> Result:
    path = tmp_path / "list.csv"
    path.write_bytes(lines if isinstance(lines, bytes) else ("\n".join(lines) + "\n").encode())
    return indicator(node, "import", path, "--at", "2026-03-02T12:00", *more)


def rejects_of(tmp_path: Path) -> list[tuple[int, str, str]]:
    with (tmp_path / "list.csv.rejects.csv").open(newline="") as file:
        return [(int(row["row"]), row["column"], row["reason"]) for row in csv.DictReader(file)]


def test_import_contributes_good_rows_and_names_bad_ones(node: Recorder, tmp_path: Path) -> None:
    rows = [
        HEADER,
        "terminal,T1,point-of-compromise,3,2026-02-01,2026-02-09",
        "planet,T2,point-of-compromise,3,,",
        "iban,DE00SECRET,mule-account,2,,",
        "terminal,T3,he told me so,2,,",
        "terminal,T4,point-of-compromise,none,,",
        "terminal,T5,point-of-compromise,0,,",
        "terminal,T6,point-of-compromise,2,yesterday,",
        "terminal,T7,point-of-compromise,2,2026-02-09,2026-02-01",
        "terminal,T8,point-of-compromise",
        'terminal,"T9,point-of-compromise,2,,',
        "",
        "terminal,t-1,point-of-compromise,5,,",
        "phone,+44 20 7946 0958,account-takeover,1,,2026-03-01",
    ]
    result = import_rows(node, tmp_path, rows)
    assert result.exit_code == 0, result.output
    (batch,) = node.bodies("indicators/batch")
    assert batch["now_ms"] == NOON_MS
    assert [(each["kind"], each["value"]) for each in batch["findings"]] == [
        ("terminal", "T1"),
        ("phone", "+44 20 7946 0958"),
    ]
    assert batch["findings"][0]["first_seen_ms"] == parse_time_ms("2026-02-01")
    assert (
        batch["findings"][1]["first_seen_ms"]
        == batch["findings"][1]["last_seen_ms"]
        == parse_time_ms("2026-03-01")
    )
    assert [(row, column) for row, column, _ in rejects_of(tmp_path)] == [
        (3, "kind"),
        (4, "value"),
        (5, "typology"),
        (6, "victims"),
        (7, "victims"),
        (8, "first_seen"),
        (9, "last_seen"),
        (10, "victims"),
        (11, "kind"),
        (13, "value"),
    ]
    assert "row 2" in rejects_of(tmp_path)[-1][2]
    assert "list.csv, row 3, column kind" in result.stderr
    assert "10 rows are not contributed" in result.stderr
    assert "2 of 12 rows" in result.stdout
    assert "DE00SECRET" not in result.output + (tmp_path / "list.csv.rejects.csv").read_text()


def test_import_goes_in_batches(node: Recorder, tmp_path: Path) -> None:
    rows = [HEADER, *(f"terminal,T{number},point-of-compromise,2,," for number in range(2500))]
    result = import_rows(node, tmp_path, rows, "--json")
    assert json.loads(result.stdout) == {"accepted": 2500, "rejected": 0, "rejects": None}
    assert [len(body["findings"]) for body in node.bodies("indicators/batch")] == [1000, 1000, 500]
    assert not (tmp_path / "list.csv.rejects.csv").exists()


def test_import_that_breaks_off_says_where(node: Recorder, tmp_path: Path) -> None:
    node.refuse_from = 2
    rows = [HEADER, *(f"account,A{number},mule-account,2,," for number in range(2500))]
    result = import_rows(node, tmp_path, rows)
    assert result.exit_code == 1
    assert "rows 1002 to 2001: not contributed, nor is anything after it; 1000 before are" in result.stderr
    assert "bank-a refused indicators/batch" in result.stderr
    assert "nothing is left for accounts" in result.stderr
    assert len(node.bodies("indicators/batch")) == 2


def test_a_corrected_file_loses_its_old_report(node: Recorder, tmp_path: Path) -> None:
    bad = import_rows(node, tmp_path, [HEADER, "terminal,T1,point-of-compromise,x,,"])
    assert bad.exit_code == 1
    assert "no row can be contributed" in bad.stderr
    assert node.requests == []
    assert import_rows(node, tmp_path, [HEADER, "terminal,T1,point-of-compromise,2,,"]).exit_code == 0
    assert not (tmp_path / "list.csv.rejects.csv").exists()


def test_bytes_that_are_no_text_cost_one_row(node: Recorder, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfvictims,kind,value,typology\r\n2,terminal,T\xff1,theft\r\n2,terminal,T2,theft\r\n"
    result = import_rows(node, tmp_path, content)
    assert result.exit_code == 0, result.output
    assert [(row, column) for row, column, _ in rejects_of(tmp_path)] == [(2, "value")]
    assert [each["value"] for each in node.bodies("indicators/batch")[0]["findings"]] == ["T2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "kind, value, typology, victims"),
        (b"kind,value,typology\nterminal,T1,theft\n", "no column victims"),
        (b"kind,value,typology,victims,note\n", "'note'"),
        (b"kind,kind,value,typology,victims\n", "twice"),
        (b"PAR1\x00\xff", "no column"),
    ],
)
def test_a_file_without_the_columns_is_refused_whole(
    node: Recorder, tmp_path: Path, content: bytes, said: str
) -> None:
    complaint = one_line(import_rows(node, tmp_path, content))
    assert said in complaint
    assert node.requests == []


def test_a_file_that_is_not_there_is_named(node: Recorder, tmp_path: Path) -> None:
    assert "none.csv" in one_line(indicator(node, "import", tmp_path / "none.csv"))


def test_a_finding_is_what_the_node_takes() -> None:
    assert MAX_TYPOLOGY_CHARACTERS == labels.MAX_TYPOLOGY_CHARACTERS
    assert set(Finding.__dataclass_fields__) == set(FindingBody.model_fields)
    finding, _ = make_finding("terminal", "T1", "theft", 2, 0, NOON_MS)
    FindingBody(**asdict(finding))
    assert "T1" not in repr(finding)


# ---- lookup


def label(contributor: str, victims: int, expires_ms: int) -> dict[str, Any]:
    return {
        "contributor": contributor,
        "typology": "point-of-compromise",
        "grade": "confirmed",
        "distinct_victims": victims,
        "first_seen_ms": NOON_MS - 9 * DAY_MS,
        "last_seen_ms": NOON_MS - 8 * DAY_MS,
        "issued_at_ms": expires_ms - 7 * DAY_MS,
        "expires_at_ms": expires_ms,
    }


def test_lookup_synchronises_asks_and_shows_the_tier(node: Recorder) -> None:
    answer = {
        "kind": "terminal",
        "asked_consortium": True,
        "now_ms": NOON_MS,
        "distinct_victims": 2,
        "tier": {"name": "challenge", "verdict": "challenge"},
        "labels": [label("bank-c", 2, NOON_MS + DAY_MS), label("bank-b", 4, NOON_MS - DAY_MS)],
    }
    node.answer("lookups", answer)
    result = indicator(node, "lookup", "terminal", "T1", "--at", "2026-03-02T12:00")
    assert result.exit_code == 0, result.output
    assert [path for _, path, _ in node.requests] == ["sync", "lookups"]
    assert node.bodies("lookups") == [
        {"kind": "terminal", "value": "T1", "purpose": "investigation", "now_ms": NOON_MS}
    ]
    assert (
        "FLAGGED  terminal, tier challenge (at most: challenge): 2 distinct victims, reported by 1 bank"
        in result.stdout
    )
    assert "bank-c: 2 victims" in result.stdout
    assert "EXPIRED" in next(line for line in result.stdout.splitlines() if "bank-b" in line)
    assert json.loads(indicator(node, "lookup", "terminal", "T1", "--json").stdout) == answer


def test_lookup_of_what_nobody_reported(node: Recorder) -> None:
    nothing = {
        "kind": "phone",
        "asked_consortium": True,
        "now_ms": NOON_MS,
        "distinct_victims": 0,
        "tier": None,
        "labels": [],
    }
    node.answer("lookups", nothing)
    assert indicator(node, "lookup", "phone", "+442079460958").stdout.startswith("NOT FLAGGED")
    node.answer("lookups", nothing | {"labels": [label("bank-b", 4, NOON_MS - DAY_MS)]})
    assert "has expired" in indicator(node, "lookup", "phone", "+442079460958").stdout


# ---- inquiry


def inquiry(node: Recorder, *arguments: str | Path) -> Result:
    return run(inquiry_cli.app, *arguments, "--directory", node.directory)


ANSWER = {
    "first_day": 20_000,
    "days": 2,
    "cells": 3,
    "total": 7,
    "counts": [{"day": 20_000, "entity": "T1", "count": 2}, {"day": 20_001, "entity": "T3", "count": 5}],
}


def test_ask_prints_totals_and_writes_every_count(node: Recorder, tmp_path: Path) -> None:
    node.answer("inquiries", ANSWER)
    out = tmp_path / "counts.csv"
    window = ("--first-day", "2024-10-04", "--last-day", "2024-10-05")
    result = inquiry(node, "ask", *window, "--out", out)
    assert result.exit_code == 0, result.output
    assert node.bodies("inquiries") == [{"first_day": 20_000, "last_day": 20_001}]
    assert "7 confirmed frauds" in result.stdout
    assert out.read_text().split() == ["day,entity,count", "2024-10-04,T1,2", "2024-10-05,T3,5"]
    assert list(tmp_path.glob("*.part")) == []
    assert json.loads(inquiry(node, "ask", *window, "--json").stdout) == ANSWER
    assert inquiry(node, "ask", *window).stdout.splitlines()[1].split() == ["2024-10-05", "5", "T3"]


@pytest.mark.parametrize(
    "window",
    [
        ("--first-day", "2024-10-05", "--last-day", "2024-10-04"),
        ("--first-day", "5.10.2024", "--last-day", "2024-10-06"),
        ("--first-day", "2024-02-30", "--last-day", "2024-03-01"),
        ("--first-day", "1969-12-30", "--last-day", "2024-03-01"),
    ],
)
def test_ask_refuses_days_that_are_none(node: Recorder, window: tuple[str, ...]) -> None:
    assert (inquiry(node, "ask", *window).exit_code, node.requests) == (2, [])


def test_ask_does_not_ask_what_it_could_not_write(node: Recorder, tmp_path: Path) -> None:
    window = ("--first-day", "2024-10-04", "--last-day", "2024-10-05")
    assert "no such folder" in one_line(inquiry(node, "ask", *window, "--out", tmp_path / "none" / "c.csv"))
    assert node.requests == []


def row(identifier: str, **changes: Any) -> dict[str, Any]:
    return {
        "inquiry_id": identifier,
        "requester": "bank-b",
        "first_day": 20_000,
        "last_day": 20_001,
        "decided_at": 1_790_000_000,
        "takes_part": True,
        "refusal": "",
        "contributed": True,
        "outcome_logged": None,
    } | changes


def test_show_lists_and_describes(node: Recorder) -> None:
    first, second = "ab" * 32, "ac" * 32
    refused = row(second, takes_part=False, refusal="the intent is not in the log", contributed=False)
    node.answer("inquiries", {"inquiries": [row(first), refused]})
    node.answer(
        f"inquiries/{first}",
        row(first, outcome_logged=True)
        | {"state": "closed", "state_reason": "", "waiting_for": [], "cohort": ["bank-a", "bank-b"]},
    )
    listed = inquiry(node, "show", "--all").stdout.splitlines()
    assert len(listed) == 2
    assert listed[0].startswith(first[:16])
    assert "2024-10-04 to 2024-10-05" in listed[0]
    assert "refused: the intent is not in the log" in listed[1]
    described = inquiry(node, "show", "ABABAB")
    assert described.exit_code == 0, described.output
    assert f"inquiry {first}" in described.stdout
    assert "cohort: bank-a, bank-b" in described.stdout
    assert "coordinator: closed" in described.stdout
    assert json.loads(inquiry(node, "show", first, "--json").stdout)["state"] == "closed"


@pytest.mark.parametrize(
    ("identifier", "said"),
    [
        ("ab", "at least 6 digits"),
        ("xyzxyz", "hexadecimal"),
        ("ffffff", "knows 0 inquiries"),
        ("ababab", "knows 2"),
    ],
)
def test_show_refuses_ids_that_name_no_single_inquiry(node: Recorder, identifier: str, said: str) -> None:
    node.answer("inquiries", {"inquiries": [row("ab" * 32), row("ab" * 31 + "ff")]})
    assert said in one_line(inquiry(node, "show", identifier))


def test_show_of_an_inquiry_the_node_does_not_know(node: Recorder) -> None:
    assert "bank-a refused inquiries" in one_line(inquiry(node, "show", "00" * 32))


def test_show_needs_an_id_or_all(node: Recorder) -> None:
    assert inquiry(node, "show").exit_code == 2
    assert inquiry(node, "show", "ab" * 32, "--all").exit_code == 2
    assert node.requests == []
