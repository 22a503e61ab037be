"""HTTP whose calls end: one deadline for a whole call, however slowly bytes come, and an end to all of them at once.

Timeouts of the HTTP library count from the last byte, so a party that sends one byte now and then could hold a caller
for ever. Here every wait for a socket ends at the call's deadline; the library itself is left as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import httpcore
import httpx

# How long a thread that waits for a socket may overlook that its node is closing.
SLICE_SECONDS = 0.25
_FOR_EVER = float("inf")
_DEADLINE: ContextVar[float] = ContextVar("deadline", default=_FOR_EVER)
_NAMES = (
    "ConnectError",
    "ConnectTimeout",
    "LocalProtocolError",
    "PoolTimeout",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "WriteError",
    "WriteTimeout",
)
_ERRORS: Mapping[type[Exception], type[httpx.TransportError]] = {
    getattr(httpcore, name): getattr(httpx, name) for name in _NAMES
}
_SocketOptions = Iterable[httpcore.SOCKET_OPTION]


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Inside, in this thread, every connect, read and write ends at ``deadline`` (of ``time.monotonic``)."""
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


class DeadlineTransport(httpx.BaseTransport):
    """A connection pool that minds :func:`until`; :meth:`abort` ends what is under way."""

    def __init__(self, *, connections: int = 64, kept: int = 32) -> None:
        self._stopping = threading.Event()
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=connections,
            max_keepalive_connections=kept,
            keepalive_expiry=5.0,
            network_backend=_Backend(self._stopping),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the body is read by whoever iterates over it."""
        asked = httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _translated():
            answered = self._pool.handle_request(asked)
        assert isinstance(answered.stream, Iterable)
        return httpx.Response(
            answered.status, headers=answered.headers, stream=_Body(answered), extensions=answered.extensions
        )

    def abort(self) -> None:
        """End every call that is under way, and refuse new ones."""
        self._stopping.set()

    def close(self) -> None:
        """Close all connections."""
        self.abort()
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _translated():
            yield from self._response.iter_stream()

    def close(self) -> None:
        with _translated():
            self._response.close()


class _Backend(httpcore.NetworkBackend):
    """Connections whose waits end in time."""

    def __init__(self, stopping: threading.Event) -> None:
        self._inner = httpcore.SyncBackend()
        self._stopping = stopping

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _SocketOptions | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(_give_up_at(timeout), self._stopping, httpcore.ConnectTimeout)
        options = None if socket_options is None else list(socket_options)
        stream = self._inner.connect_tcp(host, port, left, local_address, options)
        return _Stream(stream, self._stopping)

    def sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, stopping: threading.Event) -> None:
        self._inner = inner
        self._stopping = stopping

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        give_up_at = _give_up_at(timeout)
        while True:
            left = _left(give_up_at, self._stopping, httpcore.ReadTimeout)
            try:
                return self._inner.read(max_bytes, min(left, SLICE_SECONDS))
            except httpcore.ReadTimeout:
                continue  # a slice is over, or the deadline is: the next turn knows

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        give_up_at = _give_up_at(timeout)
        # On the socket itself: after a timeout in the library nobody knows how much of the buffer was sent.
        socket = self._inner.get_extra_info("socket")
        rest = memoryview(buffer)
        while rest:
            left = _left(give_up_at, self._stopping, httpcore.WriteTimeout)
            socket.settimeout(min(left, SLICE_SECONDS))
            try:
                rest = rest[socket.send(rest) :]
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: object, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(_give_up_at(timeout), self._stopping, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._stopping)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _give_up_at(timeout: float | None) -> float:
    return min(_DEADLINE.get(), _FOR_EVER if timeout is None else time.monotonic() + timeout)


def _left(give_up_at: float, stopping: threading.Event, late: type[httpcore.TimeoutException]) -> float:
    """Seconds that are left; raises when there are none, or the node is closing."""
    if stopping.is_set():
        raise httpcore.ReadError("this node is closing")
    left = give_up_at - time.monotonic()
    if left <= 0:
        raise late("the call's deadline has passed")
    return left


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except tuple(_ERRORS) as error:
        raise _ERRORS[type(error)](str(error)) from error
