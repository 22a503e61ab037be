"""The fast way in: single events and batches of them over HTTP, in front of everything FastAPI does.

``POST /bank/v1/events`` takes one JSON object and answers it with one; ``POST /bank/v1/events/batch`` takes NDJSON or
an Arrow IPC stream and answers ``{"answers": [...]}``, one a row. The door is the same as for the other bank-internal
calls: the token is checked before a byte of the body is read. What arrives within a moment is scored as one batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from governance.messages.problems import PROBLEM_MEDIA_TYPE, RequestError, problem_for
from member_node.metrics import NodeMetrics
from member_node.service.ingest import Ingest
from member_node.service.microbatch import (
    MAX_WAIT_MS,
    MAX_WEIGHT,
    RETRY_AFTER_SECONDS,
    BusyError,
    MicroBatcher,
)
from member_node.service.scoring import StreamHaltedError
from member_node.service.stream_parts import StreamError
from member_node.streams.journal import JournalError
from member_node.streams.sources.deliveries import REFUSED, Answer, Delivery, Encoding, check_size

LOGGER = logging.getLogger(__name__)
EVENTS_PATH, BATCH_PATH = "/bank/v1/events", "/bank/v1/events/batch"
SOURCES = {EVENTS_PATH: "http", BATCH_PATH: "http-batch"}
BODY_SECONDS = 30.0
_ENCODINGS = {
    EVENTS_PATH: {Encoding.OBJECT.value: Encoding.OBJECT},
    BATCH_PATH: {each.value: each for each in (Encoding.LINES, Encoding.ARROW)},
}
_JSON = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


class _GoneError(Exception):
    """The sender went away before the body had come to its end."""


class EventLane:
    """ASGI middleware: answers the two paths above and leaves all others to ``app``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        check: Callable[[Scope], object],
        batcher: MicroBatcher[Delivery, list[Answer]],
        metrics: NodeMetrics,
        party: str,
    ) -> None:
        """``check`` raises (``RequestError``) for whoever may not send events."""
        self._app = app
        self._check = check
        self._batcher = batcher
        self._metrics = metrics
        self._party = party
        self._patience = _Patience()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http" or scope["path"] not in SOURCES:
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        read = False
        try:
            if scope["method"] != "POST":
                raise RequestError("method-not-allowed", "events are sent with POST")
            self._check(scope)
            encoding, size = _announced(scope)
            check_size(encoding, size)
            body = await self._patience.read(receive, encoding)
            read = True
            delivery = Delivery(SOURCES[path], encoding, body, time.perf_counter())
            answers = await self._batcher.submit(delivery, delivery.weight)
        except _GoneError:
            return
        except Exception as error:  # noqa: BLE001 - translated once, in the one table
            await self._refuse(error, path, send, read=read)
            return
        if path == EVENTS_PATH:
            status = 422 if answers[0].disposition == REFUSED else 200
            await _answer(send, status, _encode(answers[0]), [_JSON])
        else:
            await _answer(send, 200, b'{"answers":' + _encode(answers) + b"}", [_JSON])

    async def _refuse(self, error: Exception, path: str, send: Send, *, read: bool) -> None:
        known = not read or isinstance(error, BusyError) or not isinstance(error, RequestError)
        if isinstance(error, StreamError | JournalError | StreamHaltedError):
            error = RequestError("unavailable", str(error), self._party)
        problem = problem_for(error, self._party)
        if known:  # the others were counted where the delivery was read
            self._metrics.count_delivery_refused(SOURCES[path], problem.name)
        if problem.name == "internal":
            LOGGER.error("unexpected error while scoring events", exc_info=error)
        headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode())]
        if problem.status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        if not read:
            # The rest of the body is not wanted on this connection.
            headers.append((b"connection", b"close"))
        await _answer(send, problem.status, problem.encode(), headers)


def event_batcher(
    ingest: Ingest, metrics: NodeMetrics, *, max_wait_ms: float = MAX_WAIT_MS, max_rows: int = MAX_WEIGHT
) -> MicroBatcher[Delivery, list[Answer]]:
    """Micro-batches of about ``max_rows`` rows in front of ``ingest``; what waits is among the metrics."""
    batcher: MicroBatcher[Delivery, list[Answer]] = MicroBatcher(
        ingest.begin, max_wait_ms=max_wait_ms, max_weight=max_rows
    )
    metrics.watch("queued_rows", "Rows that wait to be scored.", lambda: batcher.waiting)
    return batcher


def _announced(scope: Scope) -> tuple[Encoding, int]:
    """The encoding and the size that the headers tell (0 where they do not tell one)."""
    media_type, size = b"", b"0"
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length":
            size = value
    known = _ENCODINGS[scope["path"]]
    encoding = known.get(media_type.split(b";", 1)[0].strip().lower().decode("latin-1"))
    if encoding is None:
        raise RequestError("unsupported-media-type", f"events come here as {' or '.join(known)}")
    return encoding, int(size) if size.isdigit() else 0


class _Patience:
    """Gives up reading bodies that take longer than ``BODY_SECONDS``.

    One timer for all of them: a timer for each request would cost more than reading most bodies does.
    """

    def __init__(self) -> None:
        self._began: dict[asyncio.Task[object], float] = {}
        self._overdue: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, receive: Receive, encoding: Encoding) -> bytes:
        """The whole body, of at most the encoding's size."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._began[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(BODY_SECONDS / 2, self._sweep, loop)
        try:
            return await _body(receive, encoding)
        except asyncio.CancelledError:
            if task not in self._overdue:
                raise
            self._overdue.discard(task)
            task.uncancel()
            raise RequestError("malformed", "the body did not come to its end") from None
        finally:
            del self._began[task]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        latest = loop.time() - BODY_SECONDS
        for task, began in self._began.items():
            if began <= latest and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        if self._began:
            self._timer = loop.call_later(BODY_SECONDS / 2, self._sweep, loop)


async def _body(receive: Receive, encoding: Encoding) -> bytes:
    message = await receive()
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise _GoneError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        check_size(encoding, size)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        message = await receive()


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
