"""A whole node behind a real NATS server: verdicts come back, a kill of either loses and repeats nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pyarrow as pa
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from coordinator.setup import init_coordinator
from member_node import setup
from member_node.settings import read_tables, write_tables

pytestmark = pytest.mark.slow

PATIENCE = 90.0
START = int(time.time()) * 1_000_000
FILES = {
    "mappings": """
[columns]
event_id = "id"
time = "at"
amount = "amount"
customer = "customer"
[types]
event_id = "integer"
[constants]
channel = "card"
""",
    "features": """
[[feature]]
name = "spent_1d"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1d"
""",
    "rules": """
name = "live"
[[rule]]
id = "much"
when = "spent_1d > 5000 and amount > 98"
verdict = "review"
reason = "{spent_1d} in a day"
""",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


class Broker:
    """A real nats-server on loopback with JetStream in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.url = f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = Path(sys.executable).with_name("nats-server")
        command = [program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._listens, "the broker listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Node:
    """One bank's node that takes its events from the broker, and reaches nobody else."""

    def __init__(self, path: Path, broker: Broker) -> None:
        self.path, self.home, port = path, path / "node", free_port()
        self.url = f"http://127.0.0.1:{port}"
        anchors = init_coordinator(path / "chair", port=1, origin="t.example/log")
        setup.init_member(
            self.home,
            party="bank-a",
            name="A",
            host="127.0.0.1",
            port=port,
            coordinator_url="http://127.0.0.1:1",
        )
        setup.trust(self.home, anchors.card, anchors.log_verifier_key, "t.example/log")
        tables = read_tables(self.home)
        tables["scoring"] = {
            "nats_url": broker.url,
            "nats_stream": "payments",
            "nats_subject": "payments.new",
            "nats_verdicts": "verdicts.a",
            "nats_dead_letters": "dead.a",
        }
        write_tables(self.home, tables)
        for folder, text in FILES.items():
            (path / folder).mkdir()
            (path / folder / "live.toml").write_text(text)
        self.token = (self.home / "operator.token").read_text().strip()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.path / "node.out").open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "member_node", "--directory", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        until(lambda: self.readiness() is not None, "the node answers")

    def readiness(self) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.poll() is None, (self.path / "node.out").read_text()
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", trust_env=False).json()
        except httpx.TransportError:
            return None
        return answer

    def degraded(self) -> list[str]:
        found = self.readiness()
        return ["unreachable"] if found is None else [*found["faults"], *found["degraded"]]

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(
            method, f"{self.url}/bank/v1/{path}", json=body, headers=headers, timeout=60, trust_env=False
        )

    def kill(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def node(tmp_path: Path, broker: Broker) -> Iterator[Node]:
    made = Node(tmp_path, broker)
    yield made
    if made.process is not None:
        made.kill()


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"event_id": each, "time_us": START + each, "amount": float(each % 100), "customer": f"c{each % 7}"}
        for each in range(first, last)
    ]


def lines(given: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, given)).encode()


def arrow(given: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(given)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class Peer:
    """The other side of the broker: publishes messages, gathers what the node says of them."""

    async def connect(self, url: str) -> None:
        self.connection = await nats.connect(
            url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=self._lost
        )
        self.stream = self.connection.jetstream()
        self.verdicts = await self.connection.subscribe("verdicts.a")
        self.dead = await self.connection.subscribe("dead.a")
        await self.connection.flush()

    async def _lost(self, _error: Exception) -> None:
        """The broker dies in these tests."""

    async def publish(self, body: bytes, kind: str = "application/x-ndjson") -> None:
        await self.stream.publish("payments.new", body, headers={"Content-Type": kind})

    async def answers(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += json.loads((await self.verdicts.next_msg(PATIENCE)).data)["answers"]
        return found

    async def redeliver_soon(self) -> None:
        """Have the server deliver again what is not acknowledged within a second."""
        config = ConsumerConfig(
            durable_name="subrosa",
            filter_subject="payments.new",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=1,
            max_ack_pending=64,
        )
        await self.stream.add_consumer("payments", config)


def test_verdicts_come_back_and_kills_lose_and_repeat_nothing(node: Node, broker: Broker) -> None:
    async def exchange() -> None:
        peer = Peer()
        await peer.connect(broker.url)
        try:
            await _exchange(node, broker, peer)
        finally:
            await peer.connection.close()

    asyncio.run(exchange())


async def _exchange(node: Node, broker: Broker, peer: Peer) -> None:
    await peer.stream.add_stream(StreamConfig(name="payments", subjects=["payments.>"]))
    # Before a stream is open messages wait at the broker: nothing is lost by starting in this order.
    await peer.publish(lines(rows(0, 50)))
    await asyncio.to_thread(node.start)
    opened = await asyncio.to_thread(
        node.call, "POST", "replay/open", {"mapping": str(node.path / "mappings" / "live.toml")}
    )
    assert opened.status_code == 200, opened.text
    given = {each["event_id"]: each for each in await peer.answers(50)}
    await asyncio.to_thread(until, lambda: node.degraded() == [], "ready, with the broker")

    # Arrow, and a row that is refused: the rest is scored, the message is copied to the dead letters.
    bad = rows(50, 100)
    bad[7]["amount"] = -1.0
    await peer.publish(arrow(bad), "application/vnd.apache.arrow.stream")
    told = await peer.answers(50)
    assert (told[7]["disposition"], told[7]["code"]) == ("refused", "amount-negative")
    given |= {each["event_id"]: each for each in told if each["disposition"] == "applied"}
    assert len(given) == 99
    dead = await peer.dead.next_msg(PATIENCE)
    assert dead.headers["Subrosa-Reason"].startswith("1 rows refused")

    # A burst, and the node is killed in the middle of it: what was not acknowledged comes again.
    for first in range(100, 4100, 50):
        await peer.publish(lines(rows(first, first + 50)))
    await peer.redeliver_soon()
    burst = await peer.answers(50)
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)
    await peer.redeliver_soon()
    seen: dict[int, list[dict[str, Any]]] = {}
    while len(seen) < 4000:
        for each in burst:
            seen.setdefault(each["event_id"], []).append(each)
        burst = await peer.answers(1) if len(seen) < 4000 else []
    for event_id, answers in seen.items():
        applied = [each for each in answers if each["disposition"] == "applied"]
        assert len(applied) <= 1, "an event was applied twice"
        verdicts = {each["verdict"] for each in answers}
        assert len(verdicts) == 1, (event_id, answers)
        given[event_id] = answers[0]

    # Each counts once in the sums: the next event of a customer sees all of them (in whatever order they came again).
    spent: dict[str, float] = {}
    last = [{**row, "amount": 99.0} for row in rows(4100, 4107)]
    for row in [*rows(0, 4100), *last]:
        if row["event_id"] != 57:  # the refused one
            spent[row["customer"]] = spent.get(row["customer"], 0.0) + row["amount"]
    await peer.publish(lines(last))
    for row, answer in zip(last, await peer.answers(7), strict=True):
        assert (answer["disposition"], answer["verdict"]) == ("applied", "review")
        assert float(answer["reasons"][0]["text"].split()[0]) == spent[row["customer"]]

    # Sent again: duplicates with the first verdicts.
    await peer.publish(lines(rows(0, 50)))
    for each in await peer.answers(50):
        assert (each["disposition"], each["verdict"]) == ("duplicate", given[each["event_id"]]["verdict"])

    # The broker dies: the node says so, scores on over HTTP, and goes on when it is back.
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(until, lambda: node.degraded() == ["nats"], "degraded without the broker")
    single = await asyncio.to_thread(node.call, "POST", "events", rows(5000, 5001)[0])
    assert single.json()["disposition"] == "applied"
    await asyncio.to_thread(broker.start)
    await asyncio.to_thread(until, lambda: node.degraded() == [], "ready with the broker again")
    while not peer.connection.is_connected:
        await asyncio.sleep(0.05)
    await peer.connection.flush()
    await peer.publish(lines(rows(4999, 5002)))
    # What the broker forgot the acknowledgement of comes once more, as duplicates.
    found: dict[int, str] = {}
    while not found.keys() >= {4999, 5000, 5001}:
        found |= {each["event_id"]: each["disposition"] for each in await peer.answers(1)}
    again = {each: disposition for each, disposition in found.items() if each < 4999}
    assert set(again.values()) <= {"duplicate"}
    assert (found[4999], found[5000], found[5001]) == ("applied", "duplicate", "applied")
    metrics = (await asyncio.to_thread(node.call, "GET", "metrics")).text
    assert 'subrosa_source_pending{source="nats"}' in metrics
