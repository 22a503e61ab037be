"""A node with its stream put together as it serves: settings that arrive, metrics, drift, status, secrets, checks."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import member_node.service.opened as opened_module
from coordinator.setup import init_coordinator
from member_node import setup
from member_node.app import ShardedEngines, build_app, create_app
from member_node.cases_cli import app as cases_commands
from member_node.cli import _status_text
from member_node.cli import app as member_commands
from member_node.compute.ray_cluster import RayCluster
from member_node.indicator_cli import app as indicator_commands
from member_node.node import MemberNode
from member_node.service.history_files import HistoryError
from member_node.settings import load_settings
from sandbox.doctor import app as doctor_command
from scoring.devices.linker import DeviceLinker
from scoring.models.artefact import encode_artefact
from scoring.models.dataset import NEVER, DataWindow, LabelledRows
from scoring.models.training import TrainingOptions, train
from subrosa import COMMANDS

START = 1_800_000_000
FILES = {
    "mappings": """
[columns]
event_id = "id"
time = "at"
amount = "amount"
customer = "customer"
device_components = "device"
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
id = "large"
when = "amount > 90"
verdict = "review"
reason = "{amount}"
[[rule]]
id = "divides"
when = "amount / (amount - amount) > 1"
verdict = "block"
reason = "never"
""",
}


@dataclass
class Bank:
    """A node that is not started, its application, and calls to it."""

    path: Path
    node: MemberNode
    app: Any
    now: list[int]

    @property
    def desk(self) -> Any:
        return self.app.state.desk

    def open(self) -> None:
        paths = [self.path / folder / "live.toml" for folder in FILES]
        self.desk.stream.open(*paths)

    def call(self, method: str, path: str, body: Any = None, token: str = "", **more: Any) -> httpx.Response:
        return asyncio.run(self._call(method, path, body, token, more))

    async def _call(
        self, method: str, path: str, body: Any, token: str, more: dict[str, Any]
    ) -> httpx.Response:
        mine = token or (self.node.directory / "operator.token").read_text().strip()
        headers = {"Authorization": f"Bearer {mine}", **more.pop("headers", {})}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bank") as client:
            return await client.request(method, f"/bank/v1/{path}", json=body, headers=headers, **more)

    def send(
        self, first: int, last: int, amount: Any = lambda number: float(number % 100)
    ) -> list[dict[str, Any]]:
        rows = [
            {
                "event_id": each,
                "time_us": START * 1_000_000 + each * 1000,
                "amount": amount(each),
                "customer": f"c{each % 7}",
            }
            for each in range(first, last)
        ]
        body = "\n".join(map(json.dumps, rows))
        headers = {"Content-Type": "application/x-ndjson"}
        answer = self.call("POST", "events/batch", headers=headers, content=body)
        assert answer.status_code == 200, answer.text
        answers: list[dict[str, Any]] = answer.json()["answers"]
        return answers

    def metrics(self) -> dict[tuple[str, str], float]:
        """Samples by name and the values of their labels in the order of the labels' names."""
        found = {}
        for family in text_string_to_metric_families(self.call("GET", "metrics").text):
            for each in family.samples:
                found[each.name, ",".join(each.labels[name] for name in sorted(each.labels))] = each.value
        return found


def make_home(path: Path, migrated: Path) -> Path:
    home = path / "node"
    anchors = init_coordinator(path / "chair", port=1, origin="t.example/log")
    setup.init_member(
        home, party="bank-a", name="A", host="127.0.0.1", port=1, coordinator_url="http://127.0.0.1:1"
    )
    setup.trust(home, anchors.card, anchors.log_verifier_key, "t.example/log")
    shutil.copy(migrated, home / "member.sqlite3")
    for folder, text in FILES.items():
        (path / folder).mkdir()
        (path / folder / "live.toml").write_text(text)
    return home


def make_bank(path: Path, home: Path, **scoring: Any) -> Bank:
    settings = load_settings(home)
    settings = dataclasses.replace(settings, scoring=dataclasses.replace(settings.scoring, **scoring))
    now = [START]
    node = MemberNode(settings, clock=lambda: now[0])
    return Bank(path, node, build_app(node), now)


@pytest.fixture
def bank(tmp_path: Path, migrated: Path) -> Iterator[Bank]:
    made = make_bank(tmp_path, make_home(tmp_path, migrated))
    made.open()
    yield made
    made.node.close()


def activate_model(bank: Bank) -> int:
    """A model of amount and spending that saw amounts up to 100 only."""
    random = np.random.default_rng(1)
    features = np.column_stack([random.integers(0, 100, 4000), random.integers(0, 8000, 4000)]).astype(float)
    times = np.arange(4000)
    fraud = features[:, 0] > 90
    data = LabelledRows(
        ("amount", "spent_1d"),
        features,
        np.where(fraud, times, NEVER),
        times,
        features[:, 0],
        times % 50,
        np.ones(4000),
    )
    artefact = train("cards", data, DataWindow(0, 3000, 0, 4000), TrainingOptions(trees=3, leaves=4))
    version = bank.desk.models.register(encode_artefact(artefact), "ann").version
    bank.desk.models.promote(version, "ben")
    return int(version)


def test_metrics_tell_what_was_scored(bank: Bank) -> None:
    lists = bank.desk.lists
    lists.create("bad", "block", "customer", reason="test", author="ann", may_loosen=True)
    added = bank.call("POST", "lists/bad/entries", {"values": ["c3"], "reason": "mule"})
    assert added.status_code == 200, added.text
    version = activate_model(bank)
    before = bank.metrics()
    assert before["subrosa_journal_bytes", ""] == sum(
        path.stat().st_size for path in (bank.node.directory / "journal").glob("*.journal")
    )
    assert np.isnan(before["subrosa_snapshot_age_seconds", ""])
    answers = bank.send(0, 100) + bank.send(100, 200) + bank.send(190, 200)
    bank.desk.stream.flush()
    found = bank.metrics()
    assert found["subrosa_events_total", "applied,http-batch"] == 200
    assert found["subrosa_events_total", "duplicate,http-batch"] == 10
    blocked = sum(1 for each in range(200) if each % 7 == 3)
    reviewed = sum(1 for each in range(200) if each % 7 != 3 and each % 100 > 90)
    assert found["subrosa_verdicts_total", "block"] == blocked
    assert found["subrosa_verdicts_total", "review"] == reviewed
    assert [each["verdict"] for each in answers[:200]].count("block") == blocked
    assert found["subrosa_rule_hits_total", "large"] == sum(1 for each in range(200) if each % 100 > 90)
    assert found["subrosa_rule_errors_total", "divides"] == 200
    for stage, least in (
        ("journal", 3), ("features", 3), ("rules", 3), ("model", 3), ("sync", 3), ("history", 1),
    ):  # fmt: skip
        assert found["subrosa_latency_seconds_count", stage] >= least, stage
        assert 0 < found["subrosa_latency_seconds_sum", stage] < 600
    assert found["subrosa_latency_seconds_count", "rules"] == 3
    assert found["subrosa_latency_seconds_sum", "model"] < found["subrosa_latency_seconds_sum", "rules"]
    assert found["subrosa_latency_seconds_count", "accept-to-verdict"] == 210
    assert found["subrosa_list_entries", "bad"] == 1
    assert found["subrosa_rule_stopped", "large"] == 0
    assert found["subrosa_model_version", ""] == version
    assert found["subrosa_model_degraded", ""] == 0
    assert found["subrosa_model_rows_without_score", str(version)] == 0
    assert found["subrosa_journal_segments", ""] == 1
    assert found["subrosa_journal_sequence", ""] == bank.desk.stream.opened().journal.last_sequence
    assert found["subrosa_history_rows", ""] == 200
    assert found["subrosa_history_waiting_rows", ""] == 0
    assert found["subrosa_queued_rows", ""] == 0
    assert found["subrosa_event_lag_seconds", "http-batch"] == pytest.approx(-0.199, abs=1e-6)
    assert found["subrosa_stream_open", ""] == 1
    opened = bank.desk.stream.opened()
    opened.scoring.checkpoint(opened.keeper.save)
    found = bank.metrics()
    assert 0 <= found["subrosa_snapshot_age_seconds", ""] < 600
    assert found["subrosa_snapshot_sequence", ""] == opened.journal.last_sequence
    assert found["subrosa_scrape_errors_total", ""] == 0


def test_gauges_of_a_closed_stream_do_not_open_it(tmp_path: Path, migrated: Path) -> None:
    bank = make_bank(tmp_path, make_home(tmp_path, migrated))
    found = bank.metrics()
    assert found["subrosa_stream_open", ""] == 0
    assert np.isnan(found["subrosa_journal_bytes", ""])
    assert found["subrosa_scrape_errors_total", ""] == 0
    assert bank.desk.stream.state == "closed"
    bank.node.close()


def test_settings_reach_the_batcher(tmp_path: Path, migrated: Path) -> None:
    bank = make_bank(tmp_path, make_home(tmp_path, migrated), max_wait_ms=40.0, max_batch_rows=3)
    bank.open()
    assert bank.desk.batcher._max_wait == pytest.approx(0.04)

    async def singles() -> list[httpx.Response]:
        bodies = [
            {"event_id": each, "time_us": START * 1_000_000, "amount": 1.0, "customer": "c"}
            for each in range(7)
        ]
        return await asyncio.gather(*(bank._call("POST", "events", each, "", {}) for each in bodies))

    assert {each.json()["verdict"] for each in asyncio.run(singles())} == {"allow"}
    # Seven events, three at once: more than two batches.
    assert bank.metrics()["subrosa_latency_seconds_count", "rules"] >= 3
    bank.node.close()


def test_what_a_backtest_or_training_reads_is_written_when_it_asks(bank: Bank) -> None:
    history = bank.node.directory / "history"
    bank.send(0, 10)
    assert bank.call("POST", "rules/history").json() == {"written": True}
    assert bank.desk.history.count(0, 2**62) == 10
    bank.send(10, 30)
    assert bank.call("POST", "models/history").json() == {"written": True}
    assert bank.desk.history.count(0, 2**62) == 30
    assert list(history.glob("*.parquet"))


def drift_step(bank: Bank) -> float:
    loop = next(each for each in bank.node.loops if each.name == "drift")
    return loop._step()


def test_drift_is_measured_alarmed_shown_and_not_measured_again_too_soon(bank: Bank) -> None:
    assert drift_step(bank) == 60.0
    assert bank.desk.status()["drift"] is None  # no model, nothing to measure
    version = activate_model(bank)
    bank.send(0, 500, amount=lambda number: float(number % 100))
    bank.desk.stream.flush()
    drift_step(bank)
    assert "too few" in bank.desk.status()["drift"]["note"]
    alarms = bank.call("GET", "cases?kind=drift").json()["cases"]
    assert alarms == []
    # A day later, with amounts the model has never seen.
    bank.send(500, 2500, amount=lambda number: 80.0)
    bank.desk.stream.flush()
    drift_step(bank)
    assert bank.desk.status()["drift"]["rows"] == 500, "not due yet"
    bank.now[0] += 86_400
    drift_step(bank)
    state = bank.desk.status()["drift"]
    assert (state["version"], state["rows"], state["level"]) == (version, 2500, "major")
    assert state["worst_psi"] > 0.25
    (case,) = bank.call("GET", "cases?kind=drift").json()["cases"]
    shown = bank.call("GET", f"cases/{case['case_id']}").json()
    assert f"model cards {version} has drifted on the 2500 events" in shown["alert_rows"][0]["reasons"]
    found = bank.metrics()
    assert found["subrosa_drift_worst_psi", ""] == pytest.approx(state["worst_psi"])
    assert found["subrosa_drift_score_psi", ""] == pytest.approx(state["score_psi"])
    drift_step(bank)
    assert bank.call("GET", f"cases/{case['case_id']}").json()["alerts"] == 1


def test_drift_outlives_a_restart(bank: Bank) -> None:
    activate_model(bank)
    bank.send(0, 1500)
    bank.desk.stream.flush()
    drift_step(bank)
    told = bank.desk.status()["drift"]
    assert told["level"]
    bank.node.close()
    again = make_bank(bank.path, bank.node.directory)
    assert again.desk.status()["drift"] == told
    again.node.close()


def test_drift_of_a_long_history_reads_a_share_of_it(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    activate_model(bank)
    bank.send(0, 4000)
    bank.desk.stream.flush()
    monkeypatch.setattr("member_node.service.training.DRIFT_ROWS", 1000)
    drift_step(bank)
    assert 800 < bank.desk.status()["drift"]["rows"] < 1200


def test_status_for_people(bank: Bank) -> None:
    bank.desk.lists.create("bad", "block", "customer", reason="test", author="ann", may_loosen=True)
    version = activate_model(bank)
    bank.send(0, 100)
    opened = bank.desk.stream.opened()
    opened.scoring.checkpoint(opened.keeper.save)
    answer = bank.call("GET", "status").json()
    scoring = answer["scoring"]
    assert (scoring["state"], scoring["degraded"]) == ("open", [])
    assert scoring["journal"]["last"] == opened.journal.last_sequence
    assert scoring["snapshot"]["sequence"] == opened.journal.last_sequence
    assert scoring["rules"]["stopped"] == []
    assert scoring["model"]["active"] == version
    text = _status_text(answer)
    for line in (
        f"  journal: frames 1 to {opened.journal.last_sequence}, ",
        f"  snapshot: frame {opened.journal.last_sequence}, ",
        "  history: 100 events",
        "  rules: version 1, none stopped by the brake",
        "  block list bad: 0 entries",
        f"  model: cards {version}",
    ):
        assert line in text
    bank.node.close()
    again = make_bank(bank.path, bank.node.directory)
    assert "  scoring: closed" in _status_text(again.call("GET", "status").json())
    again.node.close()


BUNDLE = {
    "platform": {"value": "MacIntel"},
    "screenResolution": {"value": [2560, 1440]},
    "hardwareConcurrency": {"value": 8},
    "canvas": {"value": {"winding": True, "geometry": "aXk3", "text": "bmVl"}},
    "audio": {"value": 124.04347527516074},
    "fonts": {"value": ["Arial", "Gill Sans", "Helvetica Neue", "Menlo"]},
    "timezone": {"value": "Europe/Berlin"},
    "languages": {"value": [["de-DE"]]},
}


def test_device_ids_are_made_under_a_key_of_the_bank(tmp_path: Path, migrated: Path) -> None:
    ids = []
    for name in ("one", "two"):
        path = tmp_path / name
        path.mkdir()
        home = make_home(path, migrated)
        for _ in range(2):
            bank = make_bank(path, home)
            bank.open()
            linker = bank.desk.stream.opened().scoring.core._linker
            found = linker.observe([BUNDLE], np.ones(1, np.uint64), np.array([START * 1_000_000]))
            ids.append(found.device_id[0])
            bank.node.close()
    public = DeviceLinker().observe([BUNDLE], np.ones(1, np.uint64), np.array([START * 1_000_000]))
    assert None not in ids
    assert ids[0] == ids[1], "the same after a restart"
    assert ids[2] == ids[3]
    assert len({ids[0], ids[2], public.device_id[0]}) == 3


def test_old_duplicates_do_not_wait_for_a_history_that_cannot_be_written(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.send(0, 50)
    opened = bank.desk.stream.opened()
    opened.flush()
    full = threading.Event()

    def refuse(sequence: int, table: Any) -> None:
        full.set()
        raise HistoryError("no room on the disk")

    monkeypatch.setattr(opened.history, "write", refuse)
    monkeypatch.setattr(opened_module, "FIND_SECONDS", 0.05)
    bank.send(50, 60)
    assert opened.find_held(["7"], ["verdict"]).num_rows == 1
    assert full.wait(30)
    assert opened.find(["7", "49"], ["verdict"]).num_rows == 2, "what is there is told"
    with pytest.raises(HistoryError, match="10 rows behind"):
        opened.find(["7", "55"], ["verdict"])
    # Sent again after a restart of the memory: answered at once, without the verdict nobody can look up.
    bank.desk.stream.opened()
    again = bank.send(0, 60)
    assert {each["disposition"] for each in again} == {"duplicate"}
    monkeypatch.undo()


def test_lists_and_brake_are_compiled_before_the_first_event() -> None:
    script = """
from member_node.service.warming import warm_judging
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring import brake, lists_table
from scoring.rules import screen
text = '''name = "r"
version = 1
[[rule]]
id = "large"
when = "amount > 9"
verdict = "block"
reason = "x"
'''
deployment = Deployment(number=1, active=load_ruleset(text, ColumnSchema([Column("amount", ColumnType.NUMBER)])))
assert not brake._count.signatures
warm_judging(deployment)
(signature,) = brake._count.signatures
# The engine's own arrays have the same types: nothing more is compiled.
import numpy as np
judged = deployment.evaluate({"amount": np.array([1.0, 20.0])}, 2, {}, np.zeros(2, np.uint64))
brake.Brake().apply(deployment, judged, np.array([1, 2]))
kernels = (brake._count, lists_table._find, lists_table._beyond, screen._passing, screen._passing_brief)
print(*(len(kernel.signatures) for kernel in kernels))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["1"] * 5, run.stdout + run.stderr


def test_an_analysts_token_looks_indicators_up_and_their_name_is_on_what_they_do(bank: Bank) -> None:
    token = bank.call("POST", "staff", {"name": "ann", "role": "analyst"}).json()["token"]
    # The coordinator is out of reach here; the door must not be what refuses.
    assert bank.call("POST", "sync", {}, token).json()["status"] == 503
    bank.send(90, 100)
    opened = bank.desk.stream.opened()
    opened.flush()
    assert opened.alerts is not None
    assert opened.alerts.flush(30)
    case = bank.call("GET", "cases").json()["cases"][0]
    noted = bank.call("POST", f"cases/{case['case_id']}/note", {"text": "seen"}, token).json()
    assert [each["author"] for each in noted["notes"]] == ["ann"]
    assert bank.call("POST", "stream/flush", {}, token).status_code == 403


def test_shards_on_the_command_line(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr("member_node.__main__.serve", lambda settings: given.append(settings.shards))
    home = ["serve", "--directory", str(bank.node.directory)]
    for more in ([], ["--shards", "2"]):
        run = CliRunner().invoke(member_commands, [*home, *more])
        assert run.exit_code == 0, run.output
    assert given == [1, 2]
    assert CliRunner().invoke(member_commands, [*home, "--shards", "65"]).exit_code == 2


def test_shards_write_below_the_data_directory(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class Engine:
        def __init__(self, cluster: RayCluster, spec: Any, shards: int, *, directory: Path) -> None:
            made.update(shards=shards, directory=directory)

    monkeypatch.setattr("member_node.app.ShardedEngine", Engine)
    home = make_home(tmp_path, migrated)
    app = create_app(dataclasses.replace(load_settings(home), shards=2))
    ShardedEngines(RayCluster(), 2, home)(None)  # type: ignore[arg-type]
    assert made == {"shards": 2, "directory": home}
    app.state.node.close()


def test_the_doctor_reads_a_data_directory(bank: Bank) -> None:
    home = bank.node.directory

    def examine() -> dict[str, dict[str, Any]]:
        run = CliRunner().invoke(doctor_command, ["--directory", str(home), "--json"])
        return {each["part"]: each for each in json.loads(run.stdout)["findings"]}

    bank.send(0, 100)
    found = examine()  # while the stream is open
    assert found["snapshots"]["seen"].startswith("none yet")
    assert found["journal"]["seen"].startswith("frames 1 to 2 in 1 segments")
    bank.node.close()
    found = examine()
    assert all(each["works"] for each in found.values())
    assert found["history"]["seen"] == "100 events in 1 files"
    for folder, pattern in (("journal", "*.journal"), ("snapshots", "*.snapshot"), ("history", "*.parquet")):
        (path,) = (home / folder).glob(pattern)
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
        assert not examine()[folder]["works"], folder
        path.write_bytes(whole)
    (home / "history").joinpath("manifest.json").rename(home / "aside")
    assert CliRunner().invoke(doctor_command, ["--directory", str(home)]).exit_code == 0
    assert CliRunner().invoke(doctor_command, ["--directory", str(home / "none")]).exit_code == 2


@pytest.mark.parametrize("name", ["list", "case", "indicator", "model", "rules"])
def test_every_act_at_the_desk_can_be_somebodys_own(name: str) -> None:
    commands = typer.main.get_command(import_module(COMMANDS[name][0]).app).commands  # type: ignore[attr-defined]
    without = [
        command
        for command, each in commands.items()
        if not any("--token-file" in parameter.opts for parameter in each.params)
    ]
    # These two work on files alone.
    assert set(without) <= {"check", "test"}
    assert len(commands) > len(without)


def test_a_note_from_the_command_line_carries_its_authors_token(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "ann.token"
    token.write_text("ann's own")
    token.chmod(0o600)
    seen: list[str] = []

    def answer(self: Any, request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        raise httpx.ConnectError("nobody listens")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", answer)
    home = ["--directory", str(bank.node.directory)]
    for command, arguments in (
        (cases_commands, ["note", "1", "seen", *home, "--token-file", str(token)]),
        (indicator_commands, ["lookup", "iban", "DE89370400440532013000", *home, "--token-file", str(token)]),
        (cases_commands, ["approve", "1", "--why", "seen", *home, "--token-file", str(token)]),
        (cases_commands, ["exemptions", *home]),
        (cases_commands, ["list", *home]),
    ):
        assert CliRunner().invoke(command, arguments).exit_code == 1
    own = (bank.node.directory / "operator.token").read_text().strip()
    assert seen == ["Bearer ann's own"] * 3 + [f"Bearer {own}"] * 2
    token.chmod(0o644)
    run = CliRunner().invoke(cases_commands, ["list", *home, "--token-file", str(token)])
    assert "open to other users" in run.output
