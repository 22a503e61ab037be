"""A load generator for HTTP on this machine: many connections in a process of its own, one request at a time on each.

Requests are whole HTTP/1.1 messages made beforehand, so that both sides of a ratio are sent the same bytes. Without a
rate every connection sends its next request when it has its answer; with one, requests start at their appointed times
and their latency counts from then, so a stalled server cannot hide what it delays (coordinated omission).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
import uvicorn
import uvloop

READY_SECONDS = 300.0
_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


class LoadError(RuntimeError):
    """The server under load did not start, or closed a connection."""


@dataclass(frozen=True)
class LoadReport:
    """What came back: answers by HTTP status, seconds from first request to last answer, latencies in ms."""

    requests: int
    seconds: float
    statuses: Mapping[int, int]
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return self.requests / self.seconds


def http_request(path: str, body: bytes, content_type: str, token: str = "") -> bytes:
    """One POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-type: {content_type}"]
    lines += [f"content-length: {len(body)}"]
    lines += [f"authorization: Bearer {token}"] if token else []
    return "\r\n".join(lines).encode() + _END + body


def run_load(
    port: int, requests: Sequence[bytes], connections: int = 64, rate: float | None = None
) -> LoadReport:
    """Send every request once over ``connections`` to a server on loopback; ``rate``: requests a second in all.

    In a process of its own, so that the sender's interpreter lock is not the server's.
    """
    return _apart(_drive, (port, list(requests), connections, rate))


@contextmanager
def serving(factory: Callable[..., Any], *arguments: Any) -> Iterator[int]:
    """A server of ``factory(*arguments)`` (an ASGI application) in a process of its own; the port it listens on."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, factory, arguments), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(READY_SECONDS):
            raise LoadError("the server did not start in time")
        yield int(here.recv())
    except EOFError as error:
        raise LoadError("the server ended before it listened") from error
    finally:
        here.close()
        process.terminate()
        process.join(10)


def _serve(pipe: Connection, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
    config = uvicorn.Config(
        factory(*arguments), host="127.0.0.1", port=0, log_level="warning", access_log=False
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            pipe.send(self.servers[0].sockets[0].getsockname()[1])

    Server(config).run()


def _apart(function: Callable[..., LoadReport], arguments: Sequence[Any]) -> LoadReport:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, tuple(arguments))


def _drive(port: int, requests: Sequence[bytes], connections: int, rate: float | None) -> LoadReport:
    return uvloop.run(_run(port, requests, connections, rate))


class _Connection(asyncio.Protocol):
    """Sends one request, waits for its answer, tells ``done``."""

    def __init__(self, done: Callable[[_Connection, int, float], None], lost: Callable[[], None]) -> None:
        self._done = done
        self._lost = lost
        self._buffer = b""
        self._began = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by type

    def send(self, request: bytes, began: float) -> None:
        self._began = began
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = data if not self._buffer else self._buffer + data
        end = self._buffer.find(_END)
        if end < 0:
            return
        place = self._buffer.find(_LENGTH, 0, end)
        length = int(self._buffer[place + len(_LENGTH) : self._buffer.find(b"\r", place)])
        if len(self._buffer) < end + len(_END) + length:
            return
        status = int(self._buffer[9:12])
        self._buffer = b""
        self._done(self, status, time.perf_counter() - self._began)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


async def _run(port: int, requests: Sequence[bytes], connections: int, rate: float | None) -> LoadReport:
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    statuses: Counter[int] = Counter()
    taken: list[float] = []
    waiting = iter(requests)
    idle: list[_Connection] = []
    due: list[float] = []  # appointed times that have come while every connection was busy
    ending = False

    def following(connection: _Connection, began: float) -> None:
        request = next(waiting, None)
        if request is not None:
            connection.send(request, began)

    def done(connection: _Connection, status: int, seconds: float) -> None:
        statuses[status] += 1
        taken.append(seconds)
        if len(taken) == len(requests):
            if not finished.done():
                finished.set_result(None)
        elif rate is None:
            following(connection, time.perf_counter())
        elif due:
            following(connection, due.pop(0))
        else:
            idle.append(connection)

    def lost() -> None:
        if not ending and not finished.done():
            finished.set_exception(LoadError("the server closed a connection"))

    open_connections = [
        (await loop.create_connection(lambda: _Connection(done, lost), "127.0.0.1", port))[1]
        for _ in range(min(connections, len(requests)))
    ]
    began = time.perf_counter()
    if rate is None:
        for connection in open_connections:
            following(connection, time.perf_counter())
    else:
        idle += open_connections
        for number in range(len(requests)):
            appointed = began + number / rate
            if (left := appointed - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            if idle:
                following(idle.pop(), appointed)
            else:
                due.append(appointed)
    await finished
    seconds = time.perf_counter() - began
    ending = True
    for connection in open_connections:
        connection.transport.close()
    p50, p99, most = (float(each) * 1000 for each in np.quantile(taken, (0.5, 0.99, 1.0)))
    return LoadReport(len(taken), seconds, dict(statuses), p50, p99, most)
