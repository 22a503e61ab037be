"""The fast way in, spoken to as ASGI: the door, bounds on bodies and on time, what a full or broken node answers."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from governance.messages.problems import RequestError
from member_node.api import event_lane
from member_node.api.event_lane import BATCH_PATH, EVENTS_PATH, EventLane
from member_node.metrics import NodeMetrics
from member_node.service.ingest import Ingest, LiveStream
from member_node.service.microbatch import BusyError, MicroBatcher
from member_node.service.scoring import StreamHaltedError
from member_node.service.stream_parts import StreamError
from member_node.streams.events import event_schema
from member_node.streams.journal import JournalError
from member_node.streams.sources.deliveries import MAX_DELIVERY_BYTES, MAX_EVENT_BYTES
from member_node.streams.sources.rows import RowForm
from scoring.schema import CHANNELS

NOW = 1_772_000_000_000_000
FORM = RowForm(event_schema({"customer": False}, integer_ids=False), {k: int(v) for k, v in CHANNELS.items()})
EVENT = {"event_id": "e1", "time_us": NOW, "amount": 5, "channel": "card"}


class Scoring:
    """Allows everything, or raises."""

    def __init__(self):
        self.error = None
        self.seen = []

    def settle(self):
        pass

    def score_unsettled(self, events, outcomes=None, facts=None):
        if self.error is not None:
            raise self.error
        rows = events.num_rows
        self.seen += events.column("event_id").to_pylist()
        return SimpleNamespace(
            disposition=np.zeros(rows, np.uint8),
            live=SimpleNamespace(verdict=np.zeros(rows, np.uint8)),
            scored=SimpleNamespace(version=np.full(rows, 3, np.int16)),
            reasons={},
            degraded=False,
        )


class Lane:
    """The lane in front of an application that only says that it was reached."""

    def __init__(self, **bounds):
        self.scoring = Scoring()
        self.metrics = NodeMetrics(lambda: NOW / 1e6)
        live = LiveStream(self.scoring, FORM, lambda ids: {})
        self.ingest = Ingest(lambda: live, self.metrics, now_us=lambda: NOW)
        self.batcher = MicroBatcher(self.ingest.begin, max_wait_ms=1, **bounds)
        self.app = EventLane(other, check=check, batcher=self.batcher, metrics=self.metrics, party="bank-a")

    def post(self, path, chunks, *, method="POST", token="good", **headers):
        return asyncio.run(self.ask(path, chunks, method=method, token=token, **headers))

    async def ask(self, path, chunks, *, method="POST", token="good", **headers):
        pending = list(chunks)
        sent = []

        async def receive():
            if not pending:
                await asyncio.sleep(3600)
            chunk = pending.pop(0)
            if chunk is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": bool(pending) or chunk is STUCK}

        async def send(message):
            sent.append(message)

        given = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        await self.app(scope, receive, send)
        return Answer(sent)


STUCK = bytearray(b"{")


class Answer:
    def __init__(self, sent):
        self.sent = sent
        if sent:
            self.status = sent[0]["status"]
            self.headers = dict(sent[0]["headers"])
            self.json = json.loads(sent[1]["body"])
            assert int(self.headers[b"content-length"]) == len(sent[1]["body"])

    @property
    def problem(self):
        return self.json["type"].rpartition(":")[2]


async def other(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def check(scope):
    if (b"authorization", b"Bearer good") not in scope["headers"]:
        raise RequestError("unauthenticated", "the token is missing, wrong or revoked")


def body(**changed):
    return json.dumps(EVENT | changed).encode()


def test_one_event():
    lane = Lane()
    answer = lane.post(EVENTS_PATH, [body()])
    assert answer.status == 200
    assert answer.json == {
        "event_id": "e1",
        "disposition": "applied",
        "verdict": "allow",
        "degraded": False,
        "reasons": [],
        "rule_version": 3,
    }
    refused = lane.post(EVENTS_PATH, [body(amount=-1)])
    assert refused.status == 422
    assert refused.json == {
        "event_id": "e1",
        "disposition": "refused",
        "code": "amount-negative",
        "field": "amount",
    }


def test_a_batch_may_come_in_pieces():
    lane = Lane()
    content = b"\n".join([body(), b"{", body(event_id="e2")])
    answer = lane.post(
        BATCH_PATH, [content[:10], content[10:]], content_type="application/x-ndjson; charset=utf-8"
    )
    assert [each["disposition"] for each in answer.json["answers"]] == ["applied", "refused", "applied"]
    assert lane.scoring.seen == ["e1", "e2"]


@pytest.mark.parametrize(
    ("path", "headers", "status", "problem"),
    [
        (EVENTS_PATH, {"token": "bad"}, 401, "unauthenticated"),
        (EVENTS_PATH, {"method": "GET"}, 405, "method-not-allowed"),
        (EVENTS_PATH, {"content_type": "text/plain"}, 415, "unsupported-media-type"),
        (EVENTS_PATH, {"content_type": "application/x-ndjson"}, 415, "unsupported-media-type"),
        (BATCH_PATH, {"content_type": "application/json"}, 415, "unsupported-media-type"),
        (EVENTS_PATH, {"content_length": str(MAX_EVENT_BYTES + 1)}, 413, "too-large"),
        (
            BATCH_PATH,
            {"content_length": "10000000", "content_type": "application/x-ndjson"},
            413,
            "too-large",
        ),
    ],
)
def test_what_may_not_come_in_is_refused_before_its_body_is_read(path, headers, status, problem):
    lane = Lane()
    answer = lane.post(path, [], **headers)  # reading would never end
    assert (answer.status, answer.problem) == (status, problem)
    assert answer.headers[b"connection"] == b"close"
    assert f'subrosa_deliveries_refused_total{{reason="{problem}"'.encode() in lane.metrics.text()


@pytest.mark.parametrize("path", [EVENTS_PATH, BATCH_PATH])
def test_a_body_that_grows_too_large_is_not_read_to_its_end(path):
    most = MAX_EVENT_BYTES if path == EVENTS_PATH else MAX_DELIVERY_BYTES
    media_type = "application/json" if path == EVENTS_PATH else "application/x-ndjson"
    for chunks in ([b" " * (most + 1)], [b" " * most, b" ", *[b" "] * 1000]):
        answer = Lane().post(path, chunks, content_type=media_type)
        assert (answer.status, answer.problem) == (413, "too-large")


def test_a_slow_body_is_given_up(monkeypatch):
    monkeypatch.setattr(event_lane, "BODY_SECONDS", 0.05)
    for chunks in ([], [STUCK]):
        answer = Lane().post(EVENTS_PATH, chunks)
        assert (answer.status, answer.problem) == (400, "malformed")
        assert "did not come to its end" in answer.json["detail"]


def test_nobody_is_answered_who_has_gone():
    assert Lane().post(EVENTS_PATH, [b"{", None]).sent == []


def test_a_delivery_that_cannot_be_read_is_refused_as_a_whole():
    lane = Lane()
    answer = lane.post(BATCH_PATH, [b"\0\1\2"], content_type="application/vnd.apache.arrow.stream")
    assert (answer.status, answer.problem) == (400, "malformed")
    assert b"connection" not in answer.headers
    assert b'deliveries_refused_total{reason="malformed",source="http-batch"} 1.0' in lane.metrics.text()


@pytest.mark.parametrize(
    ("error", "status", "problem"),
    [
        (JournalError("the disk is full"), 503, "unavailable"),
        (StreamHaltedError("scoring stopped"), 503, "unavailable"),
        (StreamError("call replay/open first"), 503, "unavailable"),
        (KeyError("unexpected"), 500, "internal"),
    ],
)
def test_a_node_that_cannot_score_says_so(error, status, problem):
    lane = Lane()
    lane.scoring.error = error
    answer = lane.post(EVENTS_PATH, [body()])
    assert (answer.status, answer.problem) == (status, problem)
    assert (answer.headers.get(b"retry-after") == b"1") == (status == 503)
    assert "unexpected" not in answer.json["detail"].lower() or problem == "internal"
    assert f'reason="{problem}",source="http"}} 1.0'.encode() in lane.metrics.text()


def test_a_full_queue_is_answered_with_a_time_to_come_back():
    lane = Lane()

    def full(delivery, weight):
        raise BusyError("too many events are waiting")

    lane.batcher.submit = full
    answer = lane.post(EVENTS_PATH, [body()])
    assert (answer.status, answer.problem, answer.headers[b"retry-after"]) == (503, "unavailable", b"1")


def test_requests_that_wait_at_the_end_are_answered():
    lane = Lane()
    lane.batcher = MicroBatcher(lane.ingest.begin, max_wait_ms=60_000)
    lane.app._batcher = lane.batcher

    async def main():
        waiting = asyncio.create_task(lane.ask(EVENTS_PATH, [body()]))
        while not lane.batcher.waiting:
            await asyncio.sleep(0.001)
        await lane.batcher.close(10)
        late = await lane.ask(EVENTS_PATH, [body(event_id="e2")])
        return await waiting, late

    answered, late = asyncio.run(main())
    assert (answered.status, answered.json["verdict"]) == (200, "allow")
    assert (late.status, late.problem) == (503, "unavailable")


def test_other_paths_are_left_to_the_application():
    for path in ("/bank/v1/transactions", "/bank/v1/events/", "/v1/events"):
        assert Lane().post(path, [b""]).status == 204


def test_requests_at_once_are_one_batch_each_with_its_own_answer():
    lane = Lane()
    lane.batcher = MicroBatcher(lane.ingest.begin, max_wait_ms=50)
    lane.app._batcher = lane.batcher

    async def main():
        bodies = [body(event_id=f"e{number}") for number in range(20)]
        bodies[7] = b"{"
        return await asyncio.gather(*(lane.ask(EVENTS_PATH, [each]) for each in bodies))

    answers = asyncio.run(main())
    assert [each.json["event_id"] for each in answers] == [
        None if number == 7 else f"e{number}" for number in range(20)
    ]
    assert [each.status for each in answers].count(422) == 1
    assert 'subrosa_events_total{disposition="applied",source="http"} 19.0' in lane.metrics.text().decode()
