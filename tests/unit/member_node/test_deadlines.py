"""One deadline for a whole call: whoever sends byte by byte, reads nothing or says nothing holds nobody up."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from crypto.signing import SigningKey
from member_node.client.deadlines import DeadlineTransport, until
from member_node.client.ports import PartyUnreachableError, Patience
from member_node.client.signed_http import Caller, SignedHttp
from member_node.traffic import TrafficMeter

SECONDS = 0.6
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"


@contextmanager
def holder(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server on loopback that treats each connection as ``behave`` says; its address."""
    end = threading.Event()
    threads: list[threading.Thread] = []

    def treat(connection: socket.socket) -> None:
        try:
            behave(connection, end)
        except OSError:
            return
        finally:
            connection.close()

    def accept() -> None:
        while not end.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=treat, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            end.set()
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(10)
            for thread in threads:
                thread.join(10)


def drip(head: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def behave(connection: socket.socket, end: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(head)
        while not end.wait(0.05):
            connection.sendall(b"x")

    return behave


def say_nothing(connection: socket.socket, end: threading.Event) -> None:
    connection.recv(65_536)
    end.wait(30)


def read_nothing(connection: socket.socket, end: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.wait(30)


def client(transport: httpx.BaseTransport | None = None) -> tuple[SignedHttp, TrafficMeter]:
    meter = TrafficMeter()
    caller = Caller(
        "bank-a",
        SigningKey(b"a" * 32),
        lambda: 1,
        dict,
        lambda: int(time.time()),
        secrets.token_bytes,
    )
    return SignedHttp(caller, meter, transport=transport), meter


@pytest.mark.parametrize(
    ("behave", "body"),
    [
        (drip(b"HTTP/1.1 200 OK\r\nX-Slow: "), b""),
        (drip(HEAD + b"\r\n"), b""),
        (say_nothing, b""),
        (read_nothing, bytes(32 * 2**20)),
    ],
    ids=["headers byte by byte", "body byte by byte", "silence", "reads nothing"],
)
def test_a_slow_party_is_given_up_at_the_deadline(behave, body):
    http, meter = client()
    with holder(behave) as url:
        began = time.monotonic()
        with pytest.raises(PartyUnreachableError, match=r"within 0\.6 s"):
            http.call(
                "bank-b",
                url,
                "POST",
                "/v1/evaluate",
                name="evaluate",
                body=body,
                idempotent=True,
                seconds=SECONDS,
                elements=7,
            )
        assert SECONDS * 0.9 <= time.monotonic() - began < SECONDS + 1.5
    (row,) = meter.report()
    # Whether it answered or not, the elements were sent to it.
    assert (row["requests"], row["errors"], row["elements"]) == (1, 1, 7)
    http.close()


def test_calls_that_are_under_way_end_when_the_node_closes():
    http, _ = client()
    failed: list[Exception] = []

    def call() -> None:
        try:
            http.call("bank-b", url, "GET", "/v1/log", name="log", wait=20)
        except PartyUnreachableError as error:
            failed.append(error)

    with holder(say_nothing) as url:
        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        http.abort()
        thread.join(10)
        assert time.monotonic() - began < 2
    assert len(failed) == 1
    http.close()


def test_an_honest_answer_passes_and_connections_are_kept():
    seen: list[int] = []

    def behave(connection: socket.socket, end: threading.Event) -> None:
        connection.settimeout(5)
        while request := connection.recv(65_536):
            seen.append(len(request))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: 1\r\n\r\nok")

    transport = DeadlineTransport()
    with holder(behave) as url, httpx.Client(transport=transport, trust_env=False) as plain:
        for _ in range(3):
            with until(time.monotonic() + 5):
                response = plain.get(url)
            assert (response.content, response.headers["x-one"]) == (b"ok", "1")
        with pytest.raises(httpx.TimeoutException), until(time.monotonic() - 1):
            plain.get(url)
        transport.close()
    assert len(seen) == 3


def test_nobody_there_is_an_error_of_the_transport():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        httpx.Client(transport=DeadlineTransport(), trust_env=False) as plain,
        pytest.raises(httpx.ConnectError),
    ):
        plain.get(f"http://127.0.0.1:{port}")


def test_patience_grows_with_the_batch():
    patience = Patience(seconds=2, seconds_per_element=0.002, late_share=0.25)
    assert patience.deadline(1) == pytest.approx(2.002)
    assert patience.deadline(4096) == pytest.approx(10.192)
    assert patience.late(4096) == pytest.approx(2.548)
