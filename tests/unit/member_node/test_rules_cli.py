"""``subrosa rules`` and ``subrosa member staff`` before a served rulebook and a real history."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from typer.testing import CliRunner

from crypto.signing import SigningKey
from governance.messages.codec import encode
from governance.messages.problems import PROBLEM_MEDIA_TYPE, RequestError, problem_for
from governance.messages.signed import sign_message
from governance.policy.default import default_bundle
from member_node import rules_cli, setup, staff_cli
from member_node.api.operator import OperatorDoor
from member_node.api.rules import rules_router
from member_node.api.staff import staff_router
from member_node.command_line import now_ms
from member_node.secret_files import TOKEN_FILE, read_secret
from member_node.service.history import HistoryStore
from member_node.service.layout import rule_columns, transaction_columns
from member_node.service.replay import SOURCE
from member_node.service.rulebook import Rulebook
from member_node.service.staff import Role, Staff, StaffBook
from member_node.service.stream_parts import StreamSource
from member_node.storage.database import Database
from member_node.storage.outcomes import OutcomeStore, StreamStore
from member_node.storage.rulebook import RulebookStore
from member_node.storage.staff import StaffStore
from member_node.storage.trust import TrustStore
from member_node.streams.mapping import parse_mapping
from scoring.brake import Brake
from scoring.rules.columns import Column, ColumnType
from scoring.rules.versions import Action
from scoring.verdicts import VERDICT_LABELS

MAPPING = (Path(__file__).parents[3] / "sandbox" / "mappings" / "handbook.toml").read_text()
FIRST_US = 1_522_576_800_000_000  # 2018-04-01 10:00
ROWS = 600


def rules(limit):
    return f"""
name = "cards"
[brake]
min_events = 10
[[rule]]
id = "large"
when = "amount > {limit} and hour >= 8"
verdict = "review"
max_share = 0.5
reason = "{{amount}}"
"""


class Bank:
    """A data directory, its rulebook served over HTTP on loopback, and a scored history."""

    def __init__(self, path):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.path = path / "bank"
        setup.init_member(
            self.path, party="bank-a", name="A", host="127.0.0.1", port=port, coordinator_url="http://x"
        )
        token = read_secret(self.path / TOKEN_FILE).strip()
        self.database = Database.in_directory(self.path)
        self.mapping = parse_mapping(MAPPING, name="handbook")
        source = StreamSource("", "", "handbook", MAPPING, "", rules(100))
        policy = sign_message(default_bundle(), "coordinator", SigningKey(secrets.token_bytes(32)))
        TrustStore(self.database).save("policy", 1, encode(policy))
        StreamStore(self.database).save_source(SOURCE, msgspec.json.encode(source).decode())
        self.book = Rulebook(RulebookStore(self.database), lambda: rule_columns(self.mapping, [], []), now_ms)
        self.book.bootstrap(rules(100))
        self.brake = Brake()
        self.history = HistoryStore(self.path / "history")
        self.score()
        staff = StaffBook(StaffStore(self.database), token, now_ms, secrets.token_bytes)
        bank = FastAPI()
        bank.include_router(
            rules_router(lambda: self.book, self.brake.counts, "bank-a", flush=self.history.flush)
        )
        bank.include_router(staff_router(staff, "bank-a"))

        @bank.exception_handler(RequestError)
        async def problem(_request: Request, error: RequestError) -> Response:
            found = problem_for(error, "bank-a")
            return Response(found.encode(), found.status, media_type=PROBLEM_MEDIA_TYPE)

        app = FastAPI()
        app.mount("/bank/v1", OperatorDoor(bank, token, staff=staff))
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def score(self):
        rng = np.random.default_rng(4)
        amount = rng.exponential(30, ROWS).round(2)
        time_us = FIRST_US + np.arange(ROWS, dtype=np.int64) * 10_000_000
        columns = transaction_columns(self.mapping, amount, np.full(ROWS, 5, np.uint8), time_us)
        deployment = self.book.deployment()
        judged = deployment.evaluate(columns, ROWS, None, np.zeros(ROWS, np.uint64))
        stands, alarms = self.brake.apply(deployment, judged, time_us)
        assert not alarms
        assert 0 < (stands.live.verdict > 0).sum() < 60
        self.amount, self.fraud = amount, rng.random(ROWS) < 0.1
        table = pa.table(
            {
                "event_id": np.arange(ROWS),
                "time_us": time_us,
                "channel": ["card"] * ROWS,
                "amount": amount,
                "verdict": [VERDICT_LABELS[v] for v in stands.live.verdict],
                "rule": ["large" if v else None for v in stands.live.verdict],
                "rule_version": stands.version,
            }
        )
        self.history.write(1, table)
        outcomes = [(str(i), bool(self.fraud[i]), FIRST_US) for i in range(ROWS)]
        OutcomeStore(self.database).record(outcomes, [])

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.history.close()
        self.database.close()

    def run(self, app, *arguments, token=None):
        extra = ["--token-file", str(token)] if token else []
        return CliRunner().invoke(
            app, [*map(str, arguments), "--directory", str(self.path), *extra], catch_exceptions=False
        )


@pytest.fixture
def bank(tmp_path):
    made = Bank(tmp_path)
    yield made
    made.close()


def test_two_persons_bring_a_version_to_life_and_back(bank, tmp_path):
    tokens = {}
    for name, role in (("ann", "analyst"), ("bob", "approver")):
        tokens[name] = tmp_path / f"{name}.token"
        made = bank.run(staff_cli.app, "add", name, "--role", role, "--out", tokens[name])
        assert made.exit_code == 0, made.output
        assert tokens[name].stat().st_mode & 0o077 == 0
    file = tmp_path / "rules.toml"
    file.write_text(rules("amuont"))
    wrong = bank.run(rules_cli.app, "check", file)
    assert (wrong.exit_code, wrong.stderr.split(": ")[1]) == (1, "line 7, column 18 of the file")
    file.write_text(rules(50))
    assert bank.run(rules_cli.app, "check", file).stdout == "1 rules over 2 columns\n"
    proposed = bank.run(rules_cli.app, "propose", file, "--why", "too lax", token=tokens["ann"])
    assert proposed.stdout == "version 2 is proposed\n"
    refused = bank.run(rules_cli.app, "approve", 2, "--why", "mine", token=tokens["ann"])
    assert refused.exit_code == 1
    assert "role approver" in refused.stderr
    assert bank.run(rules_cli.app, "approve", 2, "--why", "fine", token=tokens["bob"]).exit_code == 0
    steps = [
        ("shadow", 2), ("rollout", 2, 10), ("rollout", 2, 50), ("hold", 2), ("activate", 2), ("rollback",),
    ]  # fmt: skip
    for step in steps:
        done = bank.run(rules_cli.app, *step, "--why", "step by step", token=tokens["bob"])
        assert done.exit_code == 0, done.output
    assert "version 1 is active" in done.stdout
    listed = bank.run(rules_cli.app, "list").stdout
    assert "2  replaced" in listed
    assert "by ann, decided by bob: too lax" in listed
    assert bank.run(rules_cli.app, "show", 2).stdout == rules(50)
    trail = json.loads(bank.run(rules_cli.app, "audit", "--json").stdout)
    assert trail["whole"]
    assert [each["action"] for each in trail["entries"]][-6:] == [step[0] for step in steps]
    assert bank.run(staff_cli.app, "revoke", "ann").exit_code == 0
    gone = bank.run(rules_cli.app, "list", token=tokens["ann"])
    assert "revoked" in gone.stderr
    assert "ann" in bank.run(staff_cli.app, "list").stdout


def test_a_token_that_others_may_read_is_not_used(bank, tmp_path):
    token = tmp_path / "eve.token"
    bank.run(staff_cli.app, "add", "eve", "--role", "admin", "--out", token)
    # An admin acts under their own name, not as the operator.
    assert bank.run(staff_cli.app, "add", "ann", "--role", "analyst", token=token).exit_code == 0
    listed = json.loads(bank.run(staff_cli.app, "list", "--json", token=token).stdout)["staff"]
    assert {each["name"]: each["added_by"] for each in listed} == {"ann": "eve", "eve": "operator"}
    token.chmod(0o640)
    refused = bank.run(staff_cli.app, "revoke", "ann", token=token)
    assert (refused.exit_code, "chmod 600" in refused.stderr) == (1, True)
    missing = bank.run(staff_cli.app, "list", token=tmp_path / "none.token")
    assert "ask an admin for a new token" in " ".join(missing.stderr.split())


def test_a_stopped_rule_is_shown_and_released(bank):
    times = FIRST_US + 10**10 + np.arange(50, dtype=np.int64)
    columns = transaction_columns(bank.mapping, np.full(50, 500.0), np.full(50, 5, np.uint8), times)
    deployment = bank.book.deployment()
    judged = deployment.evaluate(columns, 50, None, np.zeros(50, np.uint64))
    bank.brake.apply(deployment, judged, times)
    assert "STOPPED" in bank.run(rules_cli.app, "brake").stdout
    assert bank.run(rules_cli.app, "release", "large", "--why", "a campaign").exit_code == 0
    bank.brake.apply(bank.book.deployment(), judged, times[:0])
    shown = json.loads(bank.run(rules_cli.app, "brake", "--json").stdout)
    assert shown["stopped"] == []
    again = bank.run(rules_cli.app, "release", "large", "--why", "a campaign")
    assert "no live rule 'large' is stopped" in again.stderr


def test_a_backtest_of_a_file(bank, tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(rules(100))
    same = json.loads(bank.run(rules_cli.app, "backtest", file, "--json").stdout)
    assert (same["rows"], same["compared"], same["unexplained"]) == (ROWS, ROWS, 0)
    file.write_text(rules(50))
    report = json.loads(bank.run(rules_cli.app, "backtest", file, "--json").stdout)
    rows = bank.amount > 50
    told = report["in_all"]["tested"]
    assert (told["hits"], told["frauds"]) == (rows.sum(), (rows & bank.fraud).sum())
    assert told["money_caught"] == pytest.approx(bank.amount[rows & bank.fraud].sum())
    assert report["changes"][0][2] == (rows & (bank.amount <= 100)).sum()
    text = bank.run(rules_cli.app, "backtest", file).stdout
    assert "large (review)" in text
    assert "WARNING" not in text
    half = bank.run(
        rules_cli.app, "backtest", file, "--from", "2018-04-01T10:50", "--to", "2018-04-02", "--json"
    )
    assert json.loads(half.stdout)["rows"] == ROWS - 300
    later = bank.run(rules_cli.app, "backtest", file, "--from", "2019-01-01", "--json")
    assert json.loads(later.stdout)["rows"] == 0
    assert bank.run(rules_cli.app, "backtest", tmp_path / "none.toml").exit_code == 1


def test_a_list_that_is_gone_does_not_break_the_backtest(bank, tmp_path):
    """The active version reads it; rows hold what was known of it, where it was there."""
    listed = Column("listed_mules", ColumnType.BOOLEAN)
    lists = [listed]
    bank.book = Rulebook(
        RulebookStore(bank.database), lambda: rule_columns(bank.mapping, [], [], lists=lists), now_ms
    )
    text = rules(100).replace('when = "', 'when = "not listed_mules and ')
    number = bank.book.save(text, Staff("ann", frozenset({Role.ANALYST})), "mules have rules of their own")
    bank.book.act(Action.PROPOSE, number, Staff("ann", frozenset({Role.ANALYST})), "go")
    for action in (Action.APPROVE, Action.ACTIVATE):
        seen = bank.book.deployed.number
        bank.book.act(action, number, Staff("bob", frozenset({Role.APPROVER})), "go", seen=seen)
    lists.clear()
    file = tmp_path / "rules.toml"
    file.write_text(rules(100))
    report = json.loads(bank.run(rules_cli.app, "backtest", file, "--json").stdout)
    assert (report["rows"], report["gone"]) == (ROWS, ["listed_mules"])
    # The history never held it: the rule of the active version is in error, as it is in the stream by now.
    assert report["in_all"]["active"]["hits"] == 0
    assert report["in_all"]["tested"]["hits"] == (bank.amount > 100).sum()
    assert "NOTE  listed_mules" in bank.run(rules_cli.app, "backtest", file).stdout
    file.write_text(text)
    report = json.loads(bank.run(rules_cli.app, "backtest", file, "--json").stdout)
    assert report["rules"][0]["errors"] == ROWS
    file.write_text(rules(100).replace("hour", "honour"))
    assert "line 7, column" in bank.run(rules_cli.app, "backtest", file).stderr
