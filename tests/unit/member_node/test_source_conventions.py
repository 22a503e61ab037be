"""The convention that every source of events keeps, over a real scoring service and, for the broker, a real server.

Order of arrival is kept; an event is applied once and its first verdict given whenever it comes again; a bad row is
refused with code and field while the others are scored; what is too large is refused and nothing stops; stopping and
going on loses and repeats nothing.
"""

import asyncio
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import nats
import polars as pl
import pyarrow as pa
import pytest
import uvicorn
from nats.js.api import StreamConfig
from starlette.applications import Starlette

from governance.messages.problems import RequestError
from governance.policy.default import default_bundle
from member_node.api.event_lane import BATCH_PATH, EVENTS_PATH, EventLane, event_batcher
from member_node.metrics import NodeMetrics
from member_node.service.answers import history_finder
from member_node.service.index import SyncReport
from member_node.service.ingest import Ingest, LiveStream
from member_node.service.replay import StreamService
from member_node.service.stream_parts import StreamParts
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore, StreamStore
from member_node.streams.files import read_events
from member_node.streams.mapping import load_mapping
from member_node.streams.sources.deliveries import MAX_DELIVERY_BYTES, MAX_EVENT_BYTES
from member_node.streams.sources.jetstream import JetStreamSettings, JetStreamSource
from member_node.streams.sources.rows import MAX_FUTURE_US, RowForm
from scoring.features.engine import FeatureEngine

START = 1_772_000_000_000_000
PATIENCE = 20.0
MAPPING = """
[columns]
event_id = "event_id"
time = "time"
amount = "amount"
channel = "channel"
customer = "customer"
[types]
event_id = "text"
customer = "text"
[numbers]
latitude = "latitude"
"""
FEATURES = """
[[feature]]
name = "count_1h"
entity = "customer"
aggregation = "count"
window = "1h"
"""
RULES = """
name = "test"
version = 1
[[rule]]
id = "many"
when = "count_1h >= 3"
verdict = "challenge"
reason = "{count_1h} in an hour"
[[rule]]
id = "large"
when = "amount > 1000"
verdict = "block"
reason = "{amount}"
"""


class Nobody:
    """A consortium of one."""

    def tags(self, kind, values):
        raise AssertionError("no indicators are mapped")

    def evidence(self, kind, values):
        raise AssertionError("no indicators are mapped")

    def sync(self, now_ms):
        return SyncReport(0, 0, (), (), 0)

    def contribute(self, findings, now_ms):
        return 0

    def ask(self, first_day, last_day):
        raise AssertionError("no directory is mapped")


class Bank:
    """One bank's stream in a directory; ``restart`` forgets everything that is not on disk."""

    def __init__(self, directory):
        self.directory = directory
        self.paths = {}
        for name, text in (("mapping", MAPPING), ("features", FEATURES), ("rules", RULES)):
            self.paths[name] = directory / f"{name}.toml"
            self.paths[name].write_text(text)
        self.file = None
        self.start()

    def start(self):
        self.database = Database.in_directory(self.directory)
        nobody = Nobody()
        self.stream = StreamService(
            StreamParts(
                party="bank-a",
                directory=self.directory,
                public_ids=[],
                outcomes=OutcomeStore(self.database),
                stream=StreamStore(self.database),
                tags=nobody,
                mirror=nobody,
                contributor=nobody,
                asker=nobody,
                policy=default_bundle,
                engine=FeatureEngine,
                clock=lambda: START // 10**6,
            )
        )
        self.metrics = NodeMetrics(lambda: START / 1e6)
        self.live = None
        self.failing = None
        self.ingest = Ingest(self._live, self.metrics, now_us=lambda: START)
        if self.file is None:
            self.stream.open(self.paths["mapping"], self.paths["features"], self.paths["rules"])

    def _live(self):
        if self.failing is not None:
            raise self.failing
        if self.live is None:
            opened = self.stream.opened()
            form = RowForm.of(opened.mapping, opened.schema)
            self.live = LiveStream(opened.scoring, form, history_finder(opened.find))
        return self.live

    def stop(self):
        self.stream.close()
        self.database.close()

    def history(self):
        self.stream.flush()
        files = sorted((self.directory / "history").rglob("*.parquet"))
        return pl.concat([pl.read_parquet(file) for file in files]) if files else pl.DataFrame()


class HttpSource:
    """A real server with the lane in front of nothing."""

    def __init__(self, bank):
        self.bank = bank
        self.start()

    def start(self):
        bank = self.bank
        self.batcher = event_batcher(bank.ingest, bank.metrics)
        lane = EventLane(
            Starlette(), check=check_token, batcher=self.batcher, metrics=bank.metrics, party="bank-a"
        )
        config = uvicorn.Config(lane, host="127.0.0.1", port=0, log_level="critical", access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": "Bearer good"}, timeout=PATIENCE
        )

    def stop(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()
        asyncio.run(self.batcher.close(1.0))

    def close(self):
        self.stop()


class HttpOne(HttpSource):
    name = "http"

    def send(self, rows):
        answers = []
        for row in rows:
            headers = {"content-type": "application/json"}
            answer = self.client.post(EVENTS_PATH, content=as_json(row), headers=headers)
            assert answer.status_code in (200, 422), answer.text
            answers.append(answer.json())
            assert (answer.status_code == 422) == (answers[-1]["disposition"] == "refused")
        return answers

    def send_too_large(self):
        content = as_json(row(0, customer="x" * MAX_EVENT_BYTES))
        return self.client.post(EVENTS_PATH, content=content, headers={"content-type": "application/json"})


class HttpLines(HttpSource):
    name = "http-batch"
    media_type = "application/x-ndjson"

    def body(self, rows):
        return b"\n".join(as_json(row) for row in rows)

    def send(self, rows):
        headers = {"content-type": self.media_type}
        answer = self.client.post(BATCH_PATH, content=self.body(rows), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["answers"]

    def send_too_large(self):
        content = b" " * 10_000_000
        return self.client.post(BATCH_PATH, content=content, headers={"content-type": self.media_type})


class HttpArrow(HttpLines):
    name = "http-batch"
    media_type = "application/vnd.apache.arrow.stream"

    def body(self, rows):
        return as_arrow(rows)


class NatsSource:
    """The broker between a publisher and the bank."""

    name = "nats"

    def __init__(self, bank, server, encode=None):
        self.bank = bank
        self.server = server
        self.encode = encode or (lambda rows: (b"\n".join(map(as_json, rows)), {}))
        self.stream = f"S{abs(hash(bank.directory))}"
        self.peer = Peer(server.url)
        self.peer.run(self.peer.js.add_stream(StreamConfig(name=self.stream, subjects=[f"{self.stream}.>"])))
        self.verdicts = self.peer.listen("verdicts." + self.stream)
        self.dead = self.peer.listen("dead." + self.stream)
        self.start()

    def settings(self, **changed):
        return JetStreamSettings(
            servers=(self.server.url,),
            stream=self.stream,
            subject=f"{self.stream}.new",
            verdicts="verdicts." + self.stream,
            dead_letters="dead." + self.stream,
            **changed,
        )

    def start(self, **changed):
        self.source = JetStreamSource(self.settings(**changed), self.bank.ingest.take, self.bank.metrics)
        self.source.start()

    def stop(self):
        self.source.stop(PATIENCE)

    def publish(self, body, headers=None):
        self.peer.run(self.peer.js.publish(f"{self.stream}.new", body, headers=headers))

    def send(self, rows):
        self.publish(*self.encode(rows))
        return self.answers(len(rows))

    def answers(self, rows):
        answers = []
        while len(answers) < rows:
            answers += json.loads(self.peer.run(self.verdicts.next_msg(PATIENCE)).data)["answers"]
        return answers

    def pending(self):
        info = self.peer.run(self.peer.js.consumer_info(self.stream, "subrosa"))
        return info.num_pending + info.num_ack_pending

    def close(self):
        self.stop()
        self.peer.close()


class FileSource:
    """A file that is replayed: refusals are in the reader's report, answers in the history."""

    name = "file"

    def __init__(self, bank):
        self.bank = bank
        bank.stop()
        bank.file = bank.directory / "events.csv"
        bank.start()

    def send(self, rows):
        known = set(self.bank.history()["event_id"]) if self.bank.file.exists() else set()
        if not known:
            fields = ["event_id", "time", "amount", "channel", "customer", "latitude"]
            with open(self.bank.file, "w", newline="") as file:
                writer = csv.DictWriter(file, fields)
                writer.writeheader()
                for each in rows:
                    at = each.get("time_us")
                    moment = (
                        "" if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 10**6))
                    )
                    moment += "" if at is None else f".{at % 10**6:06d}Z"
                    writer.writerow({name: each.get(name) for name in fields} | {"time": moment})
        bank = self.bank
        bank.stream.open(bank.paths["mapping"], bank.paths["features"], bank.paths["rules"], bank.file)
        bank.stream.score((START // 1000) * 2)
        told = {each["event_id"]: each for each in bank.history().to_dicts()}
        mapping = load_mapping(bank.paths["mapping"])
        read = read_events(bank.file, mapping, latest_us=START + MAX_FUTURE_US)
        refused = {each.row - 2: each for each in read.rejects}
        answers = []
        for place, each in enumerate(rows):
            if place in refused:
                reject = refused[place]
                answer = {"disposition": "refused", "code": reject.code, "field": reject.column}
            else:
                found = told[each["event_id"]]
                disposition = "duplicate" if each["event_id"] in known else "applied"
                answer = {"disposition": disposition, "verdict": found["verdict"]}
            answers.append(answer | {"event_id": each.get("event_id")})
        return answers

    def stop(self):
        pass

    def start(self):
        pass

    def close(self):
        pass


class Server:
    """A real nats-server on loopback with JetStream in a directory."""

    def __init__(self, directory):
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        program = Path(sys.executable).with_name("nats-server")
        command = [program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._listens)

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Peer:
    """A publisher and reader of the other side, on a loop of its own."""

    def __init__(self, url):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.connection = self.run(nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1))
        self.js = self.connection.jetstream()

    def run(self, doing):
        return asyncio.run_coroutine_threadsafe(doing, self.loop).result(PATIENCE)

    def listen(self, subject):
        subscription = self.run(self.connection.subscribe(subject))
        self.run(self.connection.flush())
        return subscription

    def close(self):
        self.run(self.connection.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def check_token(scope):
    if (b"authorization", b"Bearer good") not in scope["headers"]:
        raise RequestError("unauthenticated", "the token is missing, wrong or revoked")


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


def row(number, **changed):
    made = {
        "event_id": f"e{number}",
        "time_us": START + number,
        "amount": 10.0,
        "channel": "card",
        "customer": f"c{number}",
        "latitude": 48.1,
    }
    return {name: value for name, value in (made | changed).items() if value is not ...}


def as_json(each):
    return json.dumps(each).encode()


def as_arrow(rows):
    names = dict.fromkeys(name for each in rows for name in each)
    batch = pa.table({name: [each.get(name) for each in rows] for name in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_table(batch)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture
def bank(tmp_path):
    made = Bank(tmp_path)
    yield made
    made.stop()


KINDS = {
    "http": HttpOne,
    "ndjson": HttpLines,
    "arrow": HttpArrow,
    "file": FileSource,
    "nats": NatsSource,
    "nats-arrow": NatsSource,
}


@pytest.fixture(params=KINDS)
def source(request, bank):
    if request.param.startswith("nats"):
        arrow = {"Content-Type": "application/vnd.apache.arrow.stream"}
        encode = (lambda rows: (as_arrow(rows), arrow)) if request.param == "nats-arrow" else None
        made = NatsSource(bank, request.getfixturevalue("nats_server"), encode)
    else:
        made = KINDS[request.param](bank)
    yield made
    made.close()


@pytest.fixture
def nats_source(bank, nats_server):
    made = NatsSource(bank, nats_server)
    yield made
    made.close()


def told(answers):
    return [(each["event_id"], each["disposition"], each.get("verdict")) for each in answers]


def test_rows_are_scored_in_the_order_they_arrive(source):
    # The third of a customer at one instant is challenged: which one that is, order of arrival says.
    rows = [row(number, time_us=START, customer=f"c{number % 2}") for number in (5, 2, 9, 4, 7, 6)]
    wanted = [("e5", "allow"), ("e2", "allow"), ("e9", "allow"), ("e4", "allow"), ("e7", "challenge")]
    assert told(source.send(rows)) == [
        (each, "applied", verdict) for each, verdict in [*wanted, ("e6", "challenge")]
    ]
    assert source.bank.history()["event_id"].to_list() == [each["event_id"] for each in rows]


def test_what_comes_again_is_applied_once_and_has_its_first_verdict(source):
    rows = [row(number, customer="c", time_us=START + number) for number in range(4)]
    first = source.send(rows)
    assert [each["verdict"] for each in first] == ["allow", "allow", "challenge", "challenge"]
    again = source.send(rows)
    assert told(again) == [(each["event_id"], "duplicate", each["verdict"]) for each in first]
    if "reasons" in first[2]:
        assert again[2]["reasons"] == first[2]["reasons"] != []
    assert source.bank.history()["event_id"].to_list() == [each["event_id"] for each in rows]


def test_bad_rows_are_refused_with_code_and_field_and_the_others_scored(source):
    rows = [
        row(0),
        row(1, amount=-1.0),
        row(2, channel="teleport"),
        row(3, amount=2000.0),
        row(4, time_us=-5),
        row(5, customer="x" * 300),
        row(6, latitude=float("inf")),
        row(7, amount=None),
        row(8),
    ]
    answers = source.send(rows)
    assert [(each.get("code"), each.get("field")) for each in answers] == [
        (None, None),
        ("amount-negative", "amount"),
        ("unknown-channel", "channel"),
        (None, None),
        ("time-out-of-range", "time"),
        ("text-too-long", "customer"),
        ("number-not-finite", "latitude"),
        ("field-missing", "amount"),
        (None, None),
    ]
    assert [each["verdict"] for each in answers if "verdict" in each] == ["allow", "block", "allow"]
    assert [each["event_id"] for each in answers] == [f"e{number}" for number in range(9)]
    if source.name != "file":
        assert f'subrosa_refusals_total{{code="unknown-channel",source="{source.name}"}} 1.0'.encode() in (
            source.bank.metrics.text()
        )


def test_an_event_of_the_future_is_refused_and_stops_nothing(source):
    rows = [row(0, time_us=START), row(1, time_us=START + MAX_FUTURE_US + 1), row(2, time_us=START)]
    rows.append(row(3, time_us=START + MAX_FUTURE_US))
    answers = source.send(rows)
    assert [(each["disposition"], each.get("code"), each.get("field")) for each in answers] == [
        ("applied", None, None),
        ("refused", "time-in-future", "time"),
        ("applied", None, None),
        ("applied", None, None),
    ]
    assert source.bank.history()["event_id"].to_list() == ["e0", "e2", "e3"]


def test_rows_that_staff_send_are_held_against_the_clock_too(bank):
    moments = ("2026-02-25T06:13:20Z", "2100-01-01T00:00:00Z", "2026-02-25T06:13:21Z")
    rows = [
        {"event_id": f"e{number}", "time": moment, "amount": 1, "channel": "card", "customer": "c"}
        for number, moment in enumerate(moments)
    ]
    answers, rejects = bank.stream.score_rows(rows)
    assert [(each.row, each.column, each.code) for each in rejects] == [(2, "time", "time-in-future")]
    assert told(answers) == [("e0", "applied", "allow"), ("e2", "applied", "allow")]


def test_what_is_too_large_is_refused_and_the_source_goes_on(source):
    if source.name == "file":
        pytest.skip("files are read in parts of any number")
    if source.name == "nats":
        # The server's own limit is a megabyte; rows can be too many below that.
        source.publish(b"{}\n" * 10_001)
        dead = source.peer.run(source.dead.next_msg(PATIENCE))
        assert "too-large" in dead.headers["Subrosa-Reason"]
    else:
        answer = source.send_too_large()
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:subrosa:problem:too-large")
        source.client.close()
        source.client = httpx.Client(
            base_url=source.client.base_url, headers=source.client.headers, timeout=PATIENCE
        )
    assert told(source.send([row(1)])) == [("e1", "applied", "allow")]


def test_stopping_and_going_on_loses_and_repeats_nothing(source):
    rows = [row(number, customer="c") for number in range(5)]
    first = source.send(rows[:4] if source.name != "file" else rows)
    source.stop()
    source.bank.stop()
    source.bank.start()
    source.start()
    # The first answers are no longer in memory: they come from the history.
    second = source.send(rows)
    assert told(second)[:4] == [(each["event_id"], "duplicate", each["verdict"]) for each in first[:4]]
    assert second[4]["verdict"] == "challenge"
    assert source.bank.history()["event_id"].to_list() == [each["event_id"] for each in rows]
    if "reasons" in first[2]:
        assert second[2]["reasons"] == first[2]["reasons"] != []


def test_poison_is_terminated_with_its_reason_and_copied(nats_source):
    nats_source.publish(b"no json")
    nats_source.publish(b"\0\0\0", {"Content-Type": "application/vnd.apache.arrow.stream"})
    nats_source.publish(b"{}", {"Content-Type": "text/csv"})
    reasons = []
    for content in (b"no json", b"\0\0\0", b"{}"):
        dead = nats_source.peer.run(nats_source.dead.next_msg(PATIENCE))
        assert dead.data == content
        reasons.append(dead.headers["Subrosa-Reason"].split(":")[0])
        assert dead.headers["Subrosa-Stream"] == nats_source.stream
    assert reasons == ["malformed", "malformed", "unsupported-media-type"]
    until(lambda: nats_source.pending() == 0)
    assert b'reason="unsupported-media-type",source="nats"} 1.0' in nats_source.bank.metrics.text()


def test_a_message_with_refused_rows_is_scored_and_copied(nats_source):
    answers = nats_source.send([row(1), row(2, amount=-1.0)])
    assert [each["disposition"] for each in answers] == ["applied", "refused"]
    dead = nats_source.peer.run(nats_source.dead.next_msg(PATIENCE))
    assert dead.headers["Subrosa-Reason"] == "1 rows refused, the first: amount-negative amount"


def test_what_is_not_accepted_comes_again(nats_source):
    nats_source.bank.failing = OSError("the disk is full")
    nats_source.publish(as_json(row(1)))
    until(lambda: "disk is full" in nats_source.source.failure)
    assert nats_source.pending() == 1
    nats_source.bank.failing = None
    assert told(nats_source.answers(1)) == [("e1", "applied", "allow")]
    until(lambda: nats_source.pending() == 0)


def test_a_verdict_that_could_not_be_acknowledged_is_given_again(nats_source, monkeypatch):
    nats_source.stop()
    monkeypatch.setattr(nats.aio.msg.Msg, "ack", lambda self: asyncio.sleep(0))
    nats_source.start(ack_seconds=0.5)
    nats_source.publish(as_json(row(1, amount=5000.0)))
    assert told(nats_source.answers(1)) == [("e1", "applied", "block")]
    monkeypatch.undo()
    assert told(nats_source.answers(1)) == [("e1", "duplicate", "block")]
    until(lambda: nats_source.pending() == 0)
    assert nats_source.bank.history().height == 1


def test_a_server_that_restarts_is_found_again(bank, tmp_path):
    server = Server(tmp_path / "nats")
    source = NatsSource(bank, server)
    try:
        assert told(source.send([row(1)])) == [("e1", "applied", "allow")]
        server.stop()
        until(lambda: source.source.failure != "" or not source.source._thread.is_alive())
        server.start()
        until(lambda: source.peer.connection.is_connected)
        assert told(source.send([row(2)])) == [("e2", "applied", "allow")]
        assert source.source.failure == ""
    finally:
        source.close()
        server.stop()


def test_only_so_many_messages_are_under_way(nats_source):
    nats_source.stop()
    held = threading.Event()
    seen = []

    def hold(deliveries):
        seen.append(len(deliveries))
        held.wait(PATIENCE)
        return nats_source.bank.ingest.take(deliveries)

    for number in range(12):
        nats_source.publish(as_json(row(number)))
    nats_source.source = JetStreamSource(
        nats_source.settings(max_ack_pending=4), hold, nats_source.bank.metrics
    )
    nats_source.source.start()
    until(lambda: seen)
    info = nats_source.peer.run(nats_source.peer.js.consumer_info(nats_source.stream, "subrosa"))
    assert info.num_ack_pending <= 4
    held.set()
    assert [each["event_id"] for each in nats_source.answers(12)] == [f"e{number}" for number in range(12)]
    assert max(seen) <= 4


def test_answers_that_one_message_cannot_hold_come_in_parts(nats_source):
    rows = [row(number) for number in range(9000)]
    nats_source.publish(as_arrow(rows), {"Content-Type": "application/vnd.apache.arrow.stream"})
    answers, parts = [], 0
    while len(answers) < len(rows):
        part = nats_source.peer.run(nats_source.verdicts.next_msg(PATIENCE))
        assert int(part.headers["Subrosa-First-Row"]) == len(answers)
        answers += json.loads(part.data)["answers"]
        parts += 1
    assert parts > 1
    assert [each["event_id"] for each in answers] == [each["event_id"] for each in rows]


def test_a_full_delivery_fits_its_bounds(bank):
    source = HttpLines(bank)
    try:
        rows = [row(number) for number in range(10_000)]
        assert len(source.body(rows)) < MAX_DELIVERY_BYTES
        answers = source.send(rows)
        assert {each["disposition"] for each in answers} == {"applied"}
    finally:
        source.close()
