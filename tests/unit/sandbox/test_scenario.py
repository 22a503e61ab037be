"""The banks' calendar, driven against small HTTP servers that answer as a member node's desk does."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from member_node.client.desk import TOKEN_FILE, BankUnreachableError, DeskError
from member_node.streams.mapping import StreamMapping
from sandbox.faults import Kill
from sandbox.parties import Party, lay_out
from sandbox.scenario import Incident, Scenario, require_members

FIRST = dt.date(2026, 1, 5)
DAY_MS = 86_400_000
FIRST_MS = 20_458 * DAY_MS
MAPPING = StreamMapping(name="utc", columns={})


@dataclass
class Desk:
    """One bank's desk on a real port. ``seconds``: how long an answer takes, by part."""

    party: Party
    calls: list[tuple[str, dict[str, int], float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    refuses: str = ""
    starts: int = 0
    stopping: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        desk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                part = self.path.rpartition("/")[2]
                assert self.path == f"/bank/v1/replay/{part}"
                assert self.headers["authorization"] == "Bearer token"
                time.sleep(desk.seconds.get(part, 0.0))
                if desk.dead.is_set():
                    self.close_connection = True
                    return
                desk.calls.append((part, body, time.monotonic()))
                answer = json.dumps({"part": part, "start": desk.starts}).encode()
                self.send_response(400 if part == desk.refuses else 200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.starts += 1
        self.dead = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.party.port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        # Whoever starts it again must find the port free, not a stop under way.
        with self.stopping:
            if not self.dead.is_set():
                self.dead.set()
                self.server.shutdown()
                self.server.server_close()
                self.thread.join()


class Bench:
    """Stands for the cluster: what it kills stops answering, what it restarts answers again."""

    def __init__(self, out: Path, members: int) -> None:
        _, self.members = lay_out(out, members)
        self.owed = 0
        self.owed_from = 0  # the question from which on inquiries are open
        self.asked_owed = 0
        self.desks = {}
        for bank in self.members:
            bank.directory.mkdir(parents=True)
            (bank.directory / TOKEN_FILE).write_text("token\n")
            self.desks[bank.party] = Desk(bank)
            self.desks[bank.party].start()

    def is_alive(self, party: Party) -> bool:
        return not self.desks[party.party].dead.is_set()

    def kill(self, party: Party) -> None:
        self.desks[party.party].stop()

    def restart(self, party: Party) -> None:
        with self.desks[party.party].stopping:
            self.desks[party.party].start()

    def tail(self, party: Party) -> str:
        return f"last words of {party.party}"

    def inquiries_owed(self, party: Party) -> int:
        assert party in self.members
        self.asked_owed += 1
        return self.owed if self.asked_owed >= self.owed_from else 0


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, 3)
    yield made
    for desk in made.desks.values():
        desk.stop()


def play(bench, days=2, kills=(), mapping=MAPPING):
    said, seen = [], []
    scenario = Scenario(bench, kills=kills, announce=said.append)
    played = scenario.play(FIRST, FIRST + dt.timedelta(days - 1), mapping, on_day=seen.append)
    assert seen == [FIRST + dt.timedelta(n) for n in range(days)]
    return played, said


def test_each_part_is_asked_of_every_bank_before_the_next_part_of_any(bench):
    bench.desks["bank-b"].seconds["share"] = 0.1
    played, said = play(bench)
    for desk in bench.desks.values():
        assert [(part, body) for part, body, _ in desk.calls] == [
            ("confirm", {"until_ms": FIRST_MS}),
            ("share", {"day": 20_458}),
            ("score", {"until_ms": FIRST_MS + DAY_MS}),
            ("confirm", {"until_ms": FIRST_MS + DAY_MS}),
            ("share", {"day": 20_459}),
            ("score", {"until_ms": FIRST_MS + 2 * DAY_MS}),
        ]
    by_step = defaultdict(list)
    for desk in bench.desks.values():
        for step, (_, _, at) in enumerate(desk.calls):
            by_step[step].append(at)
    for step in range(5):
        assert max(by_step[step]) <= min(by_step[step + 1])
    assert {part: len(seconds) for part, seconds in played.seconds.items()} == dict.fromkeys(
        ("confirm", "share", "score"), 2
    )
    assert [answer["part"] for answer in played.answers["bank-c"]["share"]] == ["share", "share"]
    assert (played.incidents, said) == ([], [])


def test_days_begin_in_the_data_sets_zone(bench):
    play(bench, days=1, mapping=StreamMapping(name="berlin", columns={}, zone="Europe/Berlin"))
    hour = 3_600_000
    assert [body for _, body, _ in bench.desks["bank-a"].calls] == [
        {"until_ms": FIRST_MS - hour},
        {"day": 20_458},
        {"until_ms": FIRST_MS + DAY_MS - hour},
    ]


@pytest.mark.parametrize("part", ["confirm", "share", "score"])
def test_a_killed_member_is_named_restarted_and_asked_again(bench, part):
    bench.owed = 2
    bench.desks["bank-b"].seconds[part] = 0.3  # so that the kill comes while it is at work
    played, said = play(bench, kills=[Kill("bank-b", 2, part)])
    (incident,) = played.incidents
    assert (incident.party, incident.day, incident.part) == ("bank-b", FIRST + dt.timedelta(1), part)
    assert incident.killed
    assert "bank-b does not answer" in incident.reason
    assert bench.desks["bank-b"].starts == 2
    assert [answer["start"] for answer in played.answers["bank-b"][part]] == [1, 2]
    assert said[0] == f"bank-b died in the middle of {part} on 2026-01-06: starting it again"
    assert [part for part, _, _ in bench.desks["bank-b"].calls].count(part) == 2
    assert "bank-b was killed by the sandbox, with 2 open inquiries" in incident.sentence()


def test_a_member_that_answered_before_it_was_killed_is_asked_again_all_the_same(bench):
    played, _ = play(bench, days=1, kills=[Kill("bank-c", 1, "score")])
    assert [incident.reason for incident in played.incidents] == ["it had just answered"]
    assert [part for part, _, _ in bench.desks["bank-c"].calls] == ["confirm", "share", "score", "score"]
    assert len(played.answers["bank-c"]["score"]) == 1


def test_a_kill_in_share_waits_for_an_open_inquiry(bench):
    bench.owed, bench.owed_from = 1, 4
    bench.desks["bank-a"].seconds["share"] = 0.5
    play(bench, days=1, kills=[Kill("bank-a", 1, "share")])
    assert bench.asked_owed == 5, "it looks until an inquiry is open, and once more for the report"


def test_a_member_that_dies_by_itself_is_mended_too(bench):
    bench.desks["bank-a"].seconds["score"] = 0.3
    threading.Timer(0.1, bench.desks["bank-a"].stop).start()
    played, _ = play(bench, days=1)
    (incident,) = played.incidents
    assert not incident.killed
    assert incident.sentence().startswith(f"bank-a died in the middle of {incident.part} on 2026-01-05")


def test_a_member_that_lives_but_does_not_answer_is_an_error_with_its_last_words(bench, monkeypatch):
    monkeypatch.setattr("sandbox.scenario.DEATH_SECONDS", 0.05)
    monkeypatch.setattr(bench, "is_alive", lambda _: True)
    bench.kill(bench.members[1])
    with pytest.raises(BankUnreachableError, match="last words of bank-b"):
        play(bench, days=1)


def test_a_refusal_ends_the_run(bench):
    bench.desks["bank-c"].refuses = "share"
    with pytest.raises(DeskError, match="bank-c refused replay/share"):
        play(bench, days=1)


def test_a_fault_must_name_a_member(bench):
    with pytest.raises(ValueError, match=r"bank-x is not a member .* bank-a, bank-b, bank-c"):
        Scenario(bench, kills=[Kill("bank-x", 1)], announce=print)
    require_members(["bank-a"], ["bank-a", "bank-b"])


def test_an_incident_without_inquiries_says_nothing_of_them():
    text = Incident("bank-a", FIRST, "score", "gone", 1.25, killed=True).sentence()
    assert text == (
        "bank-a was killed by the sandbox in the middle of score on 2026-01-05; it was back after 1.2 s and caught up"
    )
