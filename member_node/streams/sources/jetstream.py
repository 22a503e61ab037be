"""NATS JetStream as a source: a durable pull consumer whose messages are batches of rows.

A message is acknowledged when its verdicts are on disk, never before, so that whatever dies in between is delivered
again; what was applied then comes back as a duplicate with its first verdict. At most ``max_ack_pending`` messages are
under way, the others wait at the server. A message that cannot be read is *terminated* with its reason and copied to
the dead-letter subject; so is one with refused rows, whose other rows were scored, after it was acknowledged.

Headers: ``Content-Type`` as for HTTP (NDJSON where there is none). Answers carry ``Subrosa-Stream``,
``Subrosa-Sequence`` and ``Subrosa-First-Row``; dead letters the first two and ``Subrosa-Reason``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig

from governance.messages.problems import RequestError
from member_node.metrics import NodeMetrics
from member_node.streams.sources.deliveries import REFUSED, Answer, Answered, Delivery, Encoding, Take
from scoring.row_codes import RowCode

LOGGER = logging.getLogger(__name__)
SOURCE = "nats"
FETCH_SECONDS = 0.5
RETRY_SECONDS = 1.0
INFO_SECONDS = 5.0
_ENCODINGS = {each.value: each for each in Encoding}
_NO_JSON = RowCode.MALFORMED.text
_NETWORK = (nats.errors.Error, OSError, TimeoutError)


@dataclass(frozen=True)
class JetStreamSettings:
    """Which consumer of which stream. ``verdicts`` and ``dead_letters``: subjects to publish to, empty for none.

    ``credentials``: a NATS credentials file; ``fetch_messages``: messages scored as one batch at most;
    ``max_ack_pending``: messages under way at most; ``ack_seconds``: after which one is delivered again.
    """

    servers: tuple[str, ...]
    stream: str
    subject: str
    durable: str = "subrosa"
    verdicts: str = ""
    dead_letters: str = ""
    credentials: Path | None = None
    fetch_messages: int = 16
    max_ack_pending: int = 64
    ack_seconds: float = 30.0


class JetStreamSource:
    """Consumes one stream in a thread of its own, from :meth:`start` to :meth:`stop`; reconnects by itself."""

    def __init__(self, settings: JetStreamSettings, take: Take, metrics: NodeMetrics) -> None:
        """``take`` is called in turn, in worker threads; what it raises is tried again after a moment."""
        self._settings = settings
        self._take = take
        self._metrics = metrics
        self._thread = threading.Thread(target=self._run, name="jetstream", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self.failure = "not connected yet"

    def start(self) -> None:
        """Begin to consume; connection failures are logged and tried again, see ``failure``."""
        self._thread.start()
        self._started.wait()

    def stop(self, seconds: float) -> None:
        """Finish and acknowledge what is under way, for so long at most, and leave the rest at the server."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        while not self._stopping.is_set():
            try:
                await self._consume(self._stopping)
            except _NETWORK as error:
                self._fail(f"{type(error).__name__}: {error}")
                await _wait(self._stopping, RETRY_SECONDS)

    def _fail(self, reason: str) -> None:
        if reason != self.failure:
            LOGGER.warning("%s cannot be consumed at present: %s", self._settings.stream, reason)
        self.failure = reason

    async def _consume(self, stopping: asyncio.Event) -> None:
        settings = self._settings
        connection = await nats.connect(
            list(settings.servers),
            user_credentials=None if settings.credentials is None else str(settings.credentials),
            max_reconnect_attempts=1,
            reconnect_time_wait=0.1,
            connect_timeout=2,
            error_cb=_log_error,
        )
        try:
            stream = connection.jetstream()
            # Makes the consumer, or gives the one there is these settings.
            await stream.add_consumer(
                settings.stream,
                ConsumerConfig(
                    durable_name=settings.durable,
                    filter_subject=settings.subject,
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=settings.ack_seconds,
                    max_ack_pending=settings.max_ack_pending,
                ),
            )
            consumer = await stream.pull_subscribe_bind(durable=settings.durable, stream=settings.stream)
            self.failure = ""
            asked = 0.0
            while not stopping.is_set():
                if time.monotonic() - asked > INFO_SECONDS:
                    asked = time.monotonic()
                    info = await consumer.consumer_info()
                    self._metrics.set_pending(SOURCE, info.num_pending or 0)
                messages = await self._fetch(consumer)
                if messages:
                    await self._handle(connection, messages, stopping)
            await connection.flush()
        finally:
            await connection.close()

    async def _fetch(self, consumer: Any) -> list[Any]:
        """What is there now, at most ``fetch_messages``; waits a moment for the first."""
        try:
            messages: list[Any] = await consumer.fetch(1, timeout=FETCH_SECONDS)
            # Asking for more than there are would hold back the first.
            more = min(messages[0].metadata.num_pending, self._settings.fetch_messages - 1)
            if more:
                messages += await consumer.fetch(more, timeout=FETCH_SECONDS)
        except TimeoutError:
            return []
        return messages

    async def _handle(self, connection: Any, messages: Sequence[Any], stopping: asyncio.Event) -> None:
        now = time.perf_counter()
        encodings = [_encoding(each.headers) for each in messages]
        readable = [(m, e) for m, e in zip(messages, encodings, strict=True) if e is not None]
        deliveries = [Delivery(SOURCE, encoding, each.data, now) for each, encoding in readable]
        try:
            answered = await asyncio.to_thread(self._take, deliveries)
        except Exception as error:  # nothing was accepted; the messages come again
            LOGGER.warning("a batch from %s was not accepted", self._settings.stream, exc_info=error)
            self.failure = f"{type(error).__name__}: {error}"
            for each in messages:
                await each.nak(delay=RETRY_SECONDS)
            await _wait(stopping, RETRY_SECONDS)
            return
        self.failure = ""
        results = iter(answered)
        for message, encoding in zip(messages, encodings, strict=True):
            result = next(results) if encoding is not None else self._unreadable()
            await self._settle(connection, message, result)

    def _unreadable(self) -> RequestError:
        error = RequestError("unsupported-media-type", f"messages are one of {', '.join(_ENCODINGS)}")
        self._metrics.count_delivery_refused(SOURCE, error.name)
        return error

    async def _settle(self, connection: Any, message: Any, result: Answered) -> None:
        """Say what became of a message, then acknowledge it: in this order, so that nothing is said of it never."""
        if not isinstance(result, RequestError) and result and all(each.code == _NO_JSON for each in result):
            result = RequestError("malformed", "no row of the message is JSON")
        if isinstance(result, RequestError):
            await self._bury(connection, message, f"{result.name}: {result.detail}")
            await connection.publish(message.reply, b"+TERM " + result.name.encode())
            return
        if self._settings.verdicts:
            await self._publish(connection, message, result, 0)
        refused = sum(1 for each in result if each.disposition == REFUSED)
        if refused:
            first = next(each for each in result if each.disposition == REFUSED)
            await self._bury(
                connection, message, f"{refused} rows refused, the first: {first.code} {first.field}"
            )
        await message.ack()

    async def _publish(self, connection: Any, message: Any, answers: list[Answer], first: int) -> None:
        """Publish answers, in parts where one message cannot hold them."""
        content = msgspec.json.encode({"answers": answers})
        if len(content) > connection.max_payload // 2 and len(answers) > 1:
            half = len(answers) // 2
            await self._publish(connection, message, answers[:half], first)
            await self._publish(connection, message, answers[half:], first + half)
            return
        headers = {**_place(message), "Subrosa-First-Row": str(first), "Content-Type": Encoding.OBJECT.value}
        await connection.publish(self._settings.verdicts, content, headers=headers)

    async def _bury(self, connection: Any, message: Any, reason: str) -> None:
        if not self._settings.dead_letters:
            return
        headers = {**(message.headers or {}), **_place(message), "Subrosa-Reason": _one_line(reason)}
        # A message near the server's limit has no room for the reason: its place in the stream is told all the same.
        content = message.data if len(message.data) < connection.max_payload - 4096 else b""
        await connection.publish(self._settings.dead_letters, content, headers=headers)


def _encoding(headers: Mapping[str, str] | None) -> Encoding | None:
    given = (headers or {}).get("Content-Type", Encoding.LINES.value)
    return _ENCODINGS.get(given.split(";", 1)[0].strip().lower())


def _place(message: Any) -> dict[str, str]:
    metadata = message.metadata
    return {"Subrosa-Stream": metadata.stream, "Subrosa-Sequence": str(metadata.sequence.stream)}


def _one_line(text: str) -> str:
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:500]


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    """Until ``stopping`` is set, for so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


async def _log_error(error: Exception) -> None:
    LOGGER.info("the connection to NATS: %s: %s", type(error).__name__, error)
