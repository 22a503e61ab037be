"""The coordinator as a process: it serves real HTTP, stops when it is told to, and loses nothing when killed."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coordinator.export import export_log
from coordinator.setup import admit, init_coordinator, install_policy
from crypto.signing import SigningKey
from governance.log.entries import RefusalEntry
from governance.log.follow import TrustedLog
from governance.messages.codec import decode, encode
from governance.messages.http_signatures import (
    RequestParts,
    collect_headers,
    request_signature,
    sign_request,
    verify_response,
)
from governance.messages.index import SealedLabel, SubmitLabels
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.problems import parse_problem
from governance.messages.roll import PartyCard
from governance.messages.signed import sign_message
from governance.policy.default import default_bundle

ORIGIN = "test.example/log"
START_SECONDS = 60


class Served:
    """A coordinator process with one bank and one regulator."""

    def __init__(self, directory: Path, output: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.directory, self.output = directory, output
        self.url = f"http://127.0.0.1:{self.port}"
        self.anchors = init_coordinator(directory, port=self.port, origin=ORIGIN)
        self.keys = {party: SigningKey(secrets.token_bytes(32)) for party in ("bank-a", "regulator")}
        for party, key in self.keys.items():
            role = "regulator" if party == "regulator" else "member"
            card = PartyCard(
                party=party, name=party, role=role, verify_key=key.verify_key.hex(), url="http://127.0.0.1:1"
            )
            admit(directory, card, 1 if role == "member" else 0)
        install_policy(directory, default_bundle())
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coordinator", "--directory", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.output.read_text()
            try:
                if httpx.get(f"{self.url}/ready", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"not ready in time: {self.output.read_text()}")

    def stop(self, how: int = signal.SIGTERM) -> float:
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        return time.monotonic() - began

    def call(
        self, party: str, target: str, method: str = "GET", content: object = b"", *, signed: bool = True
    ) -> httpx.Response:
        path, _, query = target.partition("?")
        body = content if isinstance(content, bytes) else b""
        headers = sign_request(
            RequestParts(method, f"127.0.0.1:{self.port}", path, query, {}, body),
            signer=party,
            key=self.keys[party],
            recipient="coordinator",
            policy_epoch=1,
            now=int(time.time()),
            nonce=secrets.token_bytes(16),
        )
        response = httpx.request(
            method, self.url + target, content=content, headers=headers, timeout=30, trust_env=False
        )
        if not signed:
            assert "signature" not in response.headers
            return response
        verify_response(
            response.status_code,
            collect_headers(response.headers.raw),
            response.content,
            request_signature(headers),
            signer="coordinator",
            verify_keys={"coordinator": bytes.fromhex(self.anchors.card.verify_key)},
            now=int(time.time()),
        )
        return response

    def refused_batch(self) -> SubmitLabels:
        """A label of bank-a, for a purpose that no policy permits."""
        label = SealedLabel(
            epoch=1,
            kind="terminal",
            tag=bytes(16),
            contributor="bank-a",
            issued_at=0,
            expires_at=1,
            sealed=b"sealed",
        )
        return SubmitLabels(purpose="curiosity", labels=[sign_message(label, "bank-a", self.keys["bank-a"])])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path / "coordinator", tmp_path / "output")
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def test_serves_stops_and_survives_a_kill(served: Served, tmp_path: Path) -> None:
    with socket.socket() as outside:
        outside.settimeout(1)
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            assert outside.connect_ex((own, served.port)) != 0
    trusted = TrustedLog.start(served.anchors.log_verifier_key)
    for _ in range(5):
        refused = served.call("regulator", "/v1/index/deltas")
        assert parse_problem(refused.content).party == "regulator"
    served.stop(signal.SIGKILL)
    served.start()
    response = served.call("regulator", "/v1/log?count=100")
    page = decode(LogPage, response.content)
    trusted = trusted.advance(page.checkpoint, now=int(time.time()), max_age=300)
    entries = [trusted.verify_entry(entry) for entry in page.entries]
    [refusal] = [entry for entry in entries if isinstance(entry, RefusalEntry)]
    assert refusal.at <= int(time.time())

    # an export beside the serving process, which then goes on: the repetitions, the read, the export
    report = export_log(served.directory, tmp_path / "out")
    assert (report.refusals(), report.entries["refusal"], report.entries["reads"]) == (5, 2, 1)
    served.call("bank-a", "/v1/index/labels", "POST", encode(served.refused_batch()))
    update = decode(CheckpointUpdate, served.call("bank-a", f"/v1/checkpoint?since={trusted.size}").content)
    assert trusted.advance(update, now=int(time.time()), max_age=300).size == trusted.size + 4

    # long polls end at once when the process is told to stop, and nothing else keeps it
    answers: list[int] = []
    polls = [
        threading.Thread(
            target=lambda: answers.append(served.call("bank-a", "/v1/inquiries/tasks?wait=20").status_code)
        )
        for _ in range(3)
    ]
    for poll in polls:
        poll.start()
    time.sleep(0.5)
    assert served.stop() < 5
    for poll in polls:
        poll.join()
    assert answers == [200, 200, 200]
    assert served.process is not None
    assert served.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in served.output.read_text()
    assert export_log(served.directory, tmp_path / "after").refusals() == 6


def test_an_endless_body_is_cut_off(served: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200 * 2**20:
            sent += 2**20
            yield bytes(2**20)

    try:
        response = served.call("bank-a", "/v1/index/labels", "POST", endless(), signed=False)
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        pass  # the connection may be closed while we still send
    else:
        problem = parse_problem(response.content)
        assert (problem.name, problem.party) == ("too-large", "bank-a")
    assert sent < 100 * 2**20
    assert httpx.get(f"{served.url}/health", trust_env=False).json()["status"] == "serving"
    assert served.stop() < 12
