"""A member node as a process: two shards give one engine's features; SIGTERM ends it and its Ray without a trace."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow.dataset
import pytest

from coordinator.setup import init_coordinator
from member_node import setup
from member_node.client.desk import BankDesk, BankUnreachableError, DeskError
from member_node.compute.ray_cluster import OWNER_FILE, PREFIX, TEMPORARY_ROOT
from member_node.settings import read_tables, write_tables

pytestmark = pytest.mark.slow

MAPPING = Path(__file__).parents[2] / "sandbox" / "mappings" / "handbook.toml"
ORIGIN = "test.subrosa.example/log"
START_SECONDS = 60
STOP_SECONDS = 15.0
ROWS = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Node:
    """One bank's node that knows a coordinator's keys, but reaches nobody."""

    def __init__(self, home: Path, shards: int) -> None:
        self.home = home
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        anchors = init_coordinator(home.with_name(f"{home.name}-chair"), port=1, origin=ORIGIN)
        setup.init_member(
            home,
            party="bank-a",
            name="A",
            host="127.0.0.1",
            port=port,
            coordinator_url="http://127.0.0.1:1",
        )
        setup.trust(home, anchors.card, anchors.log_verifier_key, ORIGIN)
        tables = read_tables(home)
        tables["member"]["shards"] = shards
        write_tables(home, tables)
        self.desk = BankDesk("bank-a", self.url, home, timeout=120)
        self.output = home.with_name(f"{home.name}.out")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "member_node", "--directory", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            try:
                httpx.get(f"{self.url}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)

    def stop(self, how: int = signal.SIGTERM) -> float:
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        return time.monotonic() - began

    def ray_folders(self) -> list[Path]:
        assert self.process is not None
        mine = []
        for folder in Path(TEMPORARY_ROOT).glob(f"{PREFIX}*"):
            try:
                owner = (folder / OWNER_FILE).read_text()
            except OSError:
                continue
            if owner.split()[0] == str(self.process.pid):
                mine.append(folder)
        return mine

    def history(self) -> Any:
        self.desk.post("stream/flush")
        files = [str(path) for path in (self.home / "history").glob("*.parquet")]
        return pyarrow.dataset.dataset(files, format="parquet").to_table().sort_by("event_id")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[int, Node]]:
    made = {shards: Node(tmp_path / f"shards-{shards}", shards) for shards in (1, 2)}
    yield made
    for node in made.values():
        node.desk.close()
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait()


def transactions() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    seconds = np.sort(random.integers(0, 86_400, ROWS))
    return [
        {
            "event_id": number,
            "time": f"2018-04-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}",
            "amount": float(round(random.gamma(1.5, 60), 2)),
            "customer": int(random.integers(0, 12)),
            "terminal": int(random.integers(0, 6)),
        }
        for number, second in enumerate(seconds)
    ]


def score(node: Node) -> list[dict[str, Any]]:
    node.desk.post("replay/open", mapping=str(MAPPING))
    rows = transactions()
    scored: list[dict[str, Any]] = []
    for start in range(0, ROWS, 100):
        scored += node.desk.post("transactions", transactions=rows[start : start + 100])["scored"]
    return scored


def test_two_shards_give_the_verdicts_of_one_and_leave_nothing_behind(nodes: dict[int, Node]) -> None:
    answers = {}
    for shards, node in nodes.items():
        node.start()
        answers[shards] = score(node)
    assert answers[1] == answers[2]
    assert {each["verdict"] for each in answers[1]} > {"allow"}
    assert nodes[1].history().equals(nodes[2].history())
    (row,) = [row for row in nodes[2].desk.get("status")["latencies"] if row["operation"] == "score batch"]
    assert (row["count"], row["items"]) == (4, ROWS)
    assert row["p50_ms"] <= row["p99_ms"]

    assert nodes[1].ray_folders() == []
    (folder,) = nodes[2].ray_folders()
    process = nodes[2].process
    assert process is not None
    children = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {child.name() for child in children}
    assert nodes[2].stop() < STOP_SECONDS
    assert not folder.exists()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert nodes[1].stop() < STOP_SECONDS


def test_sigterm_ends_a_node_at_work_and_its_stream_goes_on_later(nodes: dict[int, Node]) -> None:
    node = nodes[2]
    node.start()
    before = score(node)
    ended = threading.Event()

    def work() -> None:
        number = 10**6
        with suppress(DeskError, BankUnreachableError):
            while True:
                rows = [
                    {**row, "event_id": number + place, "time": "2018-04-02T00:00:00"}
                    for place, row in enumerate(transactions())
                ]
                node.desk.post("transactions", transactions=rows)
                number += ROWS
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(1)
    assert not ended.is_set()
    assert node.stop() < STOP_SECONDS
    worker.join(30)
    assert ended.is_set()
    assert node.ray_folders() == []
    node.start()
    assert node.desk.get("stream")["open"] is True
    # The shards are rebuilt from the journal: what was scored is not applied again.
    again = node.desk.post("transactions", transactions=transactions()[:1])["scored"]
    assert again[0]["disposition"] != before[0]["disposition"]
    assert node.desk.get("status")["restarts"] == 1
    assert node.stop() < STOP_SECONDS
    assert node.ray_folders() == []
