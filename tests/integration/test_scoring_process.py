"""A whole node over HTTP: rules change under load, a case becomes outcome and exemption, SIGKILL loses nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet
import pytest

from coordinator.setup import init_coordinator
from member_node import setup

pytestmark = pytest.mark.slow

ORIGIN = "test.subrosa.example/log"
START_SECONDS = 90
FEATURES = """
[[feature]]
name = "spent_1d"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1d"
"""
RULES = """
name = "live"
[[rule]]
id = "large"
when = "amount > {limit}"
verdict = "{verdict}"
reason = "{{amount}}, {{spent_1d}} in a day"
"""
MAPPING = """
[columns]
event_id = "id"
time = "at"
amount = "amount"
customer = "customer"
[types]
event_id = "integer"
[constants]
channel = "card"
"""


class Node:
    """One bank's node that knows a coordinator's keys, but reaches nobody."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.path, self.home = path, path / "node"
        self.url = f"http://127.0.0.1:{port}"
        anchors = init_coordinator(path / "chair", port=1, origin=ORIGIN)
        setup.init_member(
            self.home,
            party="bank-a",
            name="A",
            host="127.0.0.1",
            port=port,
            coordinator_url="http://127.0.0.1:1",
        )
        setup.trust(self.home, anchors.card, anchors.log_verifier_key, ORIGIN)
        for folder, text in (
            ("mappings", MAPPING),
            ("features", FEATURES),
            ("rules", RULES.format(limit=90, verdict="review")),
        ):
            (path / folder).mkdir()
            (path / folder / "live.toml").write_text(text)
        self.token = (self.home / "operator.token").read_text().strip()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        output = self.path / "node.out"
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "member_node", "--directory", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.1)

    def ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", trust_env=False).json()
            if answer["state"] != "not-ready":
                return answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)

    def end(self, how: int) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(timeout=60)

    def call(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        answer = httpx.request(
            method,
            f"{self.url}/bank/v1/{path}",
            json=body,
            headers={"Authorization": f"Bearer {token or self.token}"},
            timeout=60,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, client: httpx.Client, first: int, last: int) -> list[dict[str, Any]]:
        now = int(time.time() * 1_000_000)
        rows = [
            {"event_id": each, "time_us": now, "amount": float(each % 100), "customer": f"c{each % 7}"}
            for each in range(first, last)
        ]
        body = b"\n".join(msgspec.json.encode(row) for row in rows)
        answer = client.post(
            f"{self.url}/bank/v1/events/batch",
            content=body,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/x-ndjson"},
        )
        assert answer.status_code == 200, answer.text
        answers: list[dict[str, Any]] = answer.json()["answers"]
        return answers


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.start()
    yield made
    assert made.process is not None
    if made.process.poll() is None:
        made.end(signal.SIGKILL)


def propose_and_activate(node: Node, text: str) -> int:
    tokens = {}
    for name, role in (("ann", "analyst"), ("bob", "approver")):
        tokens[name] = node.call("POST", "staff", {"name": name, "role": role})["token"]
    saved = node.call("POST", "rules/versions", {"text": text, "why": "fewer"}, tokens["ann"])
    number = int(saved["number"])
    node.call("POST", f"rules/versions/{number}/act", {"action": "approve", "why": "fine"}, tokens["bob"])
    seen = node.call("GET", "rules")["deployed"]["deployment"]
    body = {"action": "activate", "why": "now", "deployment": seen}
    node.call("POST", f"rules/versions/{number}/act", body, tokens["bob"])
    return number


def test_rules_cases_and_a_kill_over_http(node: Node) -> None:
    assert httpx.get(f"{node.url}/readyz", trust_env=False).json()["faults"] == ["closed"]
    node.call("POST", "replay/open", {"mapping": str(node.path / "mappings" / "live.toml")})
    assert node.ready()["state"] == "ready"
    answers: dict[int, dict[str, Any]] = {}
    stopping = threading.Event()
    sent = [0]

    def load() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not stopping.is_set():
                first = sent[0]
                for answer in node.send(client, first, first + 50):
                    assert answer["event_id"] not in answers
                    answers[answer["event_id"]] = answer
                sent[0] = first + 50

    loader = threading.Thread(target=load)
    loader.start()
    try:
        while sent[0] < 500:
            time.sleep(0.01)
        number = propose_and_activate(node, RULES.format(limit=50, verdict="block"))
        activated = sent[0]
        while sent[0] < activated + 500:
            time.sleep(0.01)
    finally:
        stopping.set()
        loader.join()
    assert number == 2
    assert {answer["disposition"] for answer in answers.values()} == {"applied"}
    for event_id, answer in answers.items():
        limit, verdict = {1: (90, "review"), 2: (50, "block")}[answer["rule_version"]]
        assert answer["verdict"] == (verdict if event_id % 100 > limit else "allow")
    versions = [answers[event_id]["rule_version"] for event_id in sorted(answers)]
    assert versions == sorted(versions)
    assert versions[-1] == 2
    assert versions[activated + 100] == 2  # at most the batch that was under way when it was answered

    # A case of the queue: the analyst finds it genuine, the customer is exempt from the rule from then on.
    deadline = time.monotonic() + 30
    while not (cases := node.call("GET", "cases?severity=block")["cases"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    case = cases[0]
    until = int(time.time() * 1_000_000) + 86_400_000_000
    decided = node.call(
        "POST",
        f"cases/{case['case_id']}/decide",
        {"decision": "genuine", "text": "on holiday", "exempt_rule": "large", "exempt_until_us": until},
    )
    assert decided["outcomes"] == len({alert["event_id"] for alert in decided["alert_rows"]}) > 0
    customer = int(case["customer"].removeprefix("c"))
    client = httpx.Client(trust_env=False, timeout=60)
    first = sent[0]
    for answer in node.send(client, first, first + 140):
        answers[answer["event_id"]] = answer
        exempt = answer["event_id"] % 7 == customer
        assert (answer["verdict"] == "block") == (answer["event_id"] % 100 > 50 and not exempt)
    last = first + 140

    # Killed, it goes on where it was: every event once, every verdict as it was given, duplicates told the same.
    node.end(signal.SIGKILL)
    node.start()
    assert node.ready()["state"] == "ready"
    again = {answer["event_id"]: answer for answer in node.send(client, 0, 200)}
    client.close()
    for event_id, answer in again.items():
        assert answer == {**answers[event_id], "disposition": "duplicate"}
    node.call("POST", "stream/flush", {})
    files = sorted((node.home / "history").glob("*.parquet"))
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    assert sorted(row["event_id"] for row in rows) == list(range(last))
    for row in rows:
        told = answers[row["event_id"]]
        assert (row["verdict"], row["rule_version"]) == (told["verdict"], told["rule_version"])
    metrics = httpx.get(
        f"{node.url}/bank/v1/metrics", headers={"Authorization": f"Bearer {node.token}"}, trust_env=False
    ).text
    assert 'subrosa_events_total{disposition="duplicate",source="http-batch"} 200.0' in metrics
    assert node.call("GET", "cases/counts")["decisions"] == {"genuine": 1}
    began = time.monotonic()
    node.end(signal.SIGTERM)
    assert time.monotonic() - began < 15


# Not Pandas: it is none of ours, and Arrow looks for it by itself where it is installed.
HEAVY = (
    "duckdb",
    "lightgbm",
    "onnxmltools",
    "skl2onnx",
    "sklearn",
    "matplotlib",
    "opendp",
    "polars",
    "nats",
    "onnxruntime",
    "ray",
)


def test_a_node_that_serves_loads_nothing_heavy(tmp_path: Path) -> None:
    node = Node(tmp_path)
    script = f"""
import sys
from pathlib import Path
from member_node.app import create_app
from member_node.settings import load_settings
app = create_app(load_settings(Path({str(node.home)!r})))
desk = app.state.desk
mapping = Path({str(tmp_path)!r}) / "mappings" / "live.toml"
beside = mapping.parent.parent
desk.stream.open(mapping, beside / "features" / "live.toml", beside / "rules" / "live.toml")
print(desk.readiness().state, sorted(set({HEAVY!r}) & set(sys.modules)))
app.state.node.close()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "ready []", run.stdout + run.stderr
