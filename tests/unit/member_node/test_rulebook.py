"""The rulebook: versions on disk, two persons, what judges the next batch, the trail, and the API over it."""

from __future__ import annotations

import asyncio
import itertools
import json

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from sqlalchemy import text as sql

from governance.messages.problems import RequestError, problem_for
from member_node.api.operator import OperatorDoor
from member_node.api.rules import rules_router
from member_node.api.staff import staff_router
from member_node.service.rulebook import NotPermittedError, Rulebook, RulebookError
from member_node.service.staff import Role, Staff, StaffBook, StaffError
from member_node.storage.database import Database
from member_node.storage.rulebook import RulebookStore
from member_node.storage.staff import StaffStore
from scoring.brake import Brake, BrakeAlarm
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.ruleset import RuleSetError
from scoring.rules.versions import Action, Code, LifecycleError
from scoring.verdicts import Verdict

ANN = Staff("ann", frozenset({Role.ANALYST}))
BOB = Staff("bob", frozenset({Role.APPROVER}))
EVE = Staff("eve", frozenset({Role.ADMIN}))
AMOUNT = Column("amount", ColumnType.NUMBER)
LISTED = Column("listed_mules", ColumnType.BOOLEAN)


def rules(limit, extra=""):
    return f"""
name = "cards"

[[rule]]
id = "large"
when = "amount > {limit}{extra}"
verdict = "block"
max_share = 0.5
reason = "{{amount}}"
"""


class Clock:
    def __init__(self):
        self.ticks = itertools.count(1_700_000_000_000, 1000)

    def __call__(self):
        return next(self.ticks)


@pytest.fixture
def database(tmp_path):
    held = Database.in_directory(tmp_path)
    yield held
    held.close()


@pytest.fixture
def columns():
    return [AMOUNT]


@pytest.fixture
def book(database, columns):
    return Rulebook(RulebookStore(database), lambda: ColumnSchema(columns), Clock())


def again(database, columns):
    return Rulebook(RulebookStore(database), lambda: ColumnSchema(columns), Clock())


def approved(book, limit, extra=""):
    number = book.save(rules(limit, extra), ANN, "tighter")
    book.act(Action.PROPOSE, number, ANN, "please look")
    book.act(Action.APPROVE, number, BOB, "looks right")
    return number


def verdicts(book, amounts=(50.0, 150.0, 250.0)):
    rows = len(amounts)
    columns = {"amount": np.array(amounts)}
    judged = book.deployment().evaluate(columns, rows, None, np.arange(rows, dtype=np.uint64))
    return judged.live.verdict.tolist()


def test_from_the_first_file_to_a_rollback_and_back_after_a_restart(book, database, columns):
    with pytest.raises(RulebookError, match="no version"):
        book.deployment()
    assert book.bootstrap(rules(200))
    assert not book.bootstrap(rules(1))
    assert verdicts(book) == [0, 0, 3]
    first = book.deployment()
    assert book.deployment() is first
    number = approved(book, 100)
    assert book.deployment() is first
    book.act(Action.ACTIVATE, number, BOB, "go", seen=1)
    assert verdicts(book) == [0, 3, 3]
    assert first.active.version == 1
    later = again(database, columns)
    assert verdicts(later) == [0, 3, 3]
    assert [(row.number, row.state, row.decided_by) for row in later.versions()] == [
        (1, "replaced", ""),
        (2, "active", "bob"),
    ]
    later.act(Action.ROLLBACK, 2, BOB, "too many", seen=2)
    assert verdicts(later) == [0, 0, 3]
    assert verdicts(again(database, columns)) == [0, 0, 3]
    # Every deployment there was can be had again, to judge what it judged.
    assert [later.deployment_at(n).active.version for n in (1, 2, 3)] == [1, 2, 1]
    with pytest.raises(RulebookError, match="no deployment 9"):
        later.deployment_at(9)
    trail = [(row.actor, row.action, row.version, row.deployment) for row in later.audit()]
    assert trail == [
        ("operator", "bootstrap", 1, 1),
        ("ann", "save", 2, 1),
        ("ann", "propose", 2, 1),
        ("bob", "approve", 2, 1),
        ("bob", "activate", 2, 2),
        ("bob", "rollback", 2, 3),
    ]
    assert all(row.detail for row in later.audit())


def test_shadows_and_rollouts_are_part_of_the_deployment(book):
    book.bootstrap(rules(200))
    two, three = approved(book, 100), approved(book, 0)
    book.act(Action.SHADOW, two, ANN, "watch", seen=1)
    book.act(Action.ROLLOUT, three, BOB, "some", seen=2, percent=50.0)
    deployment = book.deployment()
    assert [each.version for each in deployment.shadows] == [two]
    assert (deployment.rollout[0].version, deployment.rollout[1]) == (three, 50.0)
    assert book.audit()[-1].detail == "50 percent: some"
    book.act(Action.HOLD, three, BOB, "stop", seen=3)
    assert book.deployment().rollout is None
    assert book.version(three).state == "approved"


@pytest.mark.parametrize(
    ("verb", "kind", "words"),
    [
        (lambda b: b.act(Action.APPROVE, 2, EVE, "mine"), LifecycleError, "another person"),
        (lambda b: b.act(Action.APPROVE, 2, ANN, "mine"), NotPermittedError, "role approver"),
        (lambda b: b.act(Action.ACTIVATE, 2, BOB, "x", seen=1), LifecycleError, "does not apply"),
        (lambda b: b.act(Action.SHADOW, 9, BOB, "x", seen=1), LifecycleError, "no version 9"),
        (lambda b: b.act(Action.ROLLBACK, 1, BOB, "x", seen=0), LifecycleError, "decided upon 0"),
        (lambda b: b.act(Action.ROLLBACK, 1, BOB, "x"), LifecycleError, "decided upon None"),
        (lambda b: b.act(Action.ROLLBACK, 1, BOB, "x", seen=1), LifecycleError, "no earlier"),
        (lambda b: b.act(Action.APPROVE, 2, BOB, "  "), ValueError, "say why"),
        (lambda b: b.act(Action.DISPLACE, 1, BOB, "x"), LifecycleError, "nobody's own act"),
        (lambda b: b.save(rules("amuont"), ANN, "x"), RuleSetError, "line 6, column 18"),
        (lambda b: b.save(rules(1), Staff("zoe", frozenset()), "x"), NotPermittedError, "analyst"),
        (lambda b: b.release("large", ANN, "x", seen=1), NotPermittedError, "approver"),
        (lambda b: b.release("small", BOB, "x", seen=1), LifecycleError, "no live version"),
        (lambda b: b.release("large", BOB, "x", seen=7), LifecycleError, "decided upon 7"),
    ],
)
def test_refusals_change_nothing(book, database, verb, kind, words):
    book.bootstrap(rules(200))
    number = book.save(rules(100), EVE, "mine")
    book.act(Action.PROPOSE, number, EVE, "please")
    before = (book.versions(), book.deployed, book.audit())
    with pytest.raises(kind, match=words):
        verb(book)
    assert (book.versions(), book.deployed, book.audit()) == before
    assert again(database, [AMOUNT]).versions() == before[0]


OPERATOR = Staff("operator", frozenset({Role.ADMIN}))


@pytest.mark.parametrize(("maker", "checker"), [(OPERATOR, BOB), (ANN, OPERATOR)])
def test_the_operator_token_is_no_person_where_two_are_asked_for(book, maker, checker):
    # Whoever has a shell on the node can read it, a person with a token of their own included.
    number = book.save(rules(100), maker, "x")
    book.act(Action.PROPOSE, number, maker, "x")
    with pytest.raises(LifecycleError, match="operator token names nobody") as refused:
        book.act(Action.APPROVE, number, checker, "x")
    assert refused.value.code == "same-person"
    assert book.version(number).state == "proposed"


def test_an_analyst_does_not_touch_what_decides_for_some_customers(book):
    book.bootstrap(rules(200))
    two = approved(book, 100)
    book.act(Action.ROLLOUT, two, BOB, "some", seen=1, percent=50.0)
    for action in (Action.HOLD, Action.SHADOW):
        with pytest.raises(NotPermittedError, match="rolled out takes the role approver"):
            book.act(action, two, ANN, "it finds me", seen=2)
    assert book.deployed.rollout == two
    book.act(Action.SHADOW, two, BOB, "look longer", seen=2)
    book.act(Action.HOLD, two, ANN, "seen enough", seen=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "UPDATE rule_versions SET text = replace(text, '100', '999') WHERE number = 2",
            "not the one that was saved",
        ),
        (
            "UPDATE rule_deployments SET content = replace(content, '\"active\": 2', '\"active\": 3') WHERE number = 2",
            "version 3 is deployed, proposed",
        ),
        ("UPDATE rule_versions SET decided_by = '' WHERE number = 2", "approved by nobody"),
        ("UPDATE rule_versions SET decided_by = 'ann' WHERE number = 2", "approved by ann"),
        ("DELETE FROM rule_versions WHERE number = 2", "text is missing"),
    ],
)
def test_what_nobody_approved_does_not_judge_after_the_database_was_changed(
    book, database, columns, change, words
):
    book.bootstrap(rules(200))
    book.act(Action.ACTIVATE, approved(book, 100), BOB, "go", seen=1)
    book.act(Action.PROPOSE, book.save(rules(9), ANN, "x"), ANN, "x")
    with database.write() as connection:
        assert connection.execute(sql(change)).rowcount == 1
    with pytest.raises(RulebookError, match=words):
        again(database, columns).deployment()


def test_an_author_may_withdraw(book):
    number = book.save(rules(100), ANN, "x")
    book.act(Action.REJECT, number, ANN, "a mistake")
    assert book.version(number).state == "rejected"
    other = book.save(rules(100), BOB, "x")
    with pytest.raises(NotPermittedError):
        book.act(Action.REJECT, other, ANN, "not hers")


def test_a_version_outlives_the_columns_it_reads(book, database, columns):
    columns.append(LISTED)
    book.bootstrap(rules(100, " or listed_mules"))
    columns.remove(LISTED)
    later = again(database, columns)
    deployment = later.deployment()
    judged = deployment.evaluate({"amount": np.array([50.0, 150.0])}, 2, None, np.zeros(2, np.uint64))
    # The list is gone: its rule is in error, visibly, and no event is lost.
    assert judged.live.verdict.tolist() == [0, 0]
    assert judged.live.errors.tolist() == [2]
    with pytest.raises(RuleSetError, match="listed_mules"):
        later.save(rules(100, " or listed_mules"), ANN, "x")


def test_alarms_are_recorded_once_and_a_release_lets_the_rule_decide_again(book, database, columns):
    book.bootstrap(rules(100).replace("[[rule]]", "[brake]\nmin_events = 4\n[[rule]]"))
    brake = Brake()

    def judge(b):
        amounts = {"amount": np.full(20, 500.0)}
        judged = b.deployment().evaluate(amounts, 20, None, np.zeros(20, np.uint64))
        stands, alarms = brake.apply(b.deployment(), judged, np.arange(20, dtype=np.int64))
        return stands.live.verdict, alarms

    verdict, alarms = judge(book)
    assert verdict.tolist() == [3, 3, 3] + [0] * 17
    assert [book.record_alarm(alarm) for alarm in alarms] == [True]
    assert not again(database, columns).record_alarm(alarms[0])
    told = json.loads(book.audit()[-1].detail)
    assert (told["rule"], told["verdict"], told["declines"], told["events"]) == ("large", "block", 4, 4)
    before = book.deployed.number
    book.release("large", BOB, "a campaign, looked at", seen=before)
    assert book.deployed.number == before + 1
    later = again(database, columns)
    assert later.deployment().releases == book.deployment().releases
    verdict, alarms = judge(later)
    assert verdict[:3].tolist() == [3, 3, 3]
    assert [later.record_alarm(alarm) for alarm in alarms] == [True]


def test_a_trail_changed_behind_the_programs_back_is_noticed(book, database):
    book.bootstrap(rules(200))
    approved(book, 100)
    assert book.trail_is_whole()
    for change in (
        "UPDATE rule_versions SET text = replace(text, '100', '999') WHERE number = 2",
        "UPDATE rule_audit SET actor = 'zoe' WHERE sequence = 4",
        "DELETE FROM rule_audit WHERE sequence = 2",
    ):
        with database.write() as connection:
            connection.execute(sql(change))
        assert not book.trail_is_whole()
        if "text = " in change:
            with database.write() as connection:
                connection.execute(sql("UPDATE rule_versions SET text = replace(text, '999', '100')"))
            assert book.trail_is_whole()


def test_staff_tokens(database):
    store = StaffStore(database)
    staff = StaffBook(store, b"operator-token", Clock(), lambda n: b"r" * (n - 1) + bytes([n]))
    assert staff.identify(b"operator-token") == Staff("operator", frozenset({Role.ADMIN}))
    assert staff.identify(b"") is None
    token = staff.add("ann", "analyst", EVE)
    assert token.encode() not in repr(store.all()).encode()
    assert staff.identify(token.encode()) == ANN
    # What is stored is no token.
    assert staff.identify(store.all()[0].token_digest) is None
    later = StaffBook(store, b"operator-token", Clock(), bytes)
    assert later.identify(token.encode()) == ANN
    for name, role, words in (
        ("ann", "analyst", "is or was"),
        ("Ann!", "analyst", "lower-case"),
        ("operator", "admin", "none of"),
        ("bob", "boss", "no role"),
    ):
        with pytest.raises(StaffError, match=words):
            staff.add(name, role, EVE)
    staff.revoke("ann", EVE)
    assert staff.identify(token.encode()) is None
    with pytest.raises(StaffError, match="nobody named ann"):
        staff.revoke("ann", EVE)
    with pytest.raises(StaffError, match="is or was"):
        staff.add("ann", "analyst", EVE)


class Api:
    """The bank-internal API with the door, called by different people."""

    def __init__(self, database, book, counts):
        self.staff = StaffBook(StaffStore(database), b"op", Clock(), lambda n: np.random.bytes(n))
        bank = FastAPI()
        bank.include_router(rules_router(lambda: book, lambda: counts, "bank-a"))
        bank.include_router(staff_router(self.staff, "bank-a"))

        @bank.exception_handler(RequestError)
        async def problem(_request: Request, error: RequestError) -> Response:
            found = problem_for(error, "bank-a")
            return Response(json.dumps({"name": found.name, "detail": found.detail}), found.status)

        self.app = FastAPI()
        self.app.mount("/bank/v1", OperatorDoor(bank, b"op", staff=self.staff))
        self.tokens = {"operator": "op"}

    def __call__(self, who, method, path, **body):
        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://bank-a") as http:
                headers = {"Authorization": f"Bearer {self.tokens.get(who, who)}"}
                return await http.request(method, f"/bank/v1/{path}", json=body or None, headers=headers)

        answer = asyncio.run(send())
        return answer.status_code, answer.json()


@pytest.fixture
def api(database, book):
    made = Api(database, book, [])
    for name, role in (("ann", "analyst"), ("bob", "approver"), ("cem", "approver")):
        status, answer = made("operator", "POST", "staff", name=name, role=role)
        assert status == 200
        made.tokens[name] = answer["token"]
    book.bootstrap(rules(200))
    return made


def test_maker_and_checker_over_the_api(api, book):
    status, saved = api("cem", "POST", "rules/versions", text=rules(100), why="tighter")
    assert (status, saved["number"], saved["state"], saved["author"]) == (200, 2, "proposed", "cem")
    status, answer = api("cem", "POST", "rules/versions/2/act", action="approve", why="I like it")
    assert (status, answer["name"]) == (409, "conflict")
    assert answer["detail"].startswith("same-person: ")
    status, answer = api("ann", "POST", "rules/versions/2/act", action="approve", why="nice")
    assert (status, answer["name"]) == (403, "not-permitted")
    status, answer = api("bob", "POST", "rules/versions/2/act", action="approve", why="seen")
    assert (status, answer["version"]["state"], answer["version"]["decided_by"]) == (200, "approved", "bob")
    status, answer = api("cem", "POST", "rules/versions/2/act", action="activate", why="go", deployment=0)
    assert (status, answer["detail"].split(":")[0]) == (409, "stale")
    status, answer = api("cem", "POST", "rules/versions/2/act", action="activate", why="go", deployment=1)
    assert (status, answer["deployed"]["active"]) == (200, 2)
    assert verdicts(book) == [0, 3, 3]
    status, answer = api("ann", "GET", "rules")
    assert [(each["number"], each["state"]) for each in answer["versions"]] == [
        (1, "replaced"),
        (2, "active"),
    ]
    assert "text" not in answer["versions"][0]
    assert api("ann", "GET", "rules/versions/2")[1]["text"] == rules(100)
    status, trail = api("ann", "GET", "rules/audit?after=1")
    assert ([each["actor"] for each in trail["entries"]], trail["whole"]) == (
        ["cem", "cem", "bob", "cem"],
        True,
    )


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status", "words"),
    [
        ("nobody", "GET", "rules", {}, 401, "token"),
        ("ann", "GET", "staff", {}, 403, "admin"),
        ("ann", "POST", "staff", {"name": "zoe", "role": "admin"}, 403, "admin"),
        ("bob", "DELETE", "staff/ann", {}, 403, "admin"),
        ("bob", "POST", "replay/open", {"mapping": "x"}, 403, "operator token"),
        ("bob", "POST", "rulesx", {"mapping": "x"}, 403, "operator token"),
        ("ann", "GET", "rules/versions/7", {}, 404, "unknown-version: "),
        ("bob", "POST", "rules/versions/7/act", {"action": "approve", "why": "x"}, 404, "unknown-version: "),
        ("bob", "POST", "rules/versions/1/act", {"action": "approve", "why": "x"}, 409, "wrong-state: "),
        ("bob", "POST", "rules/versions/1/act", {"action": "approve", "why": ""}, 422, "say why"),
        ("ann", "POST", "rules/versions", {"text": rules("amuont"), "why": "x"}, 422, "line 6, column 18"),
        (
            "bob",
            "POST",
            "rules/brake/release",
            {"rule": "large", "why": "x", "deployment": 1},
            409,
            "stopped",
        ),
    ],
)
def test_what_is_refused_is_told_by_code(api, who, method, path, body, status, words):
    got, answer = api(who, method, path, **body)
    assert got == status, answer
    assert words in answer["detail"]


def test_a_senders_token_opens_nothing_but_the_lane_of_events(api):
    # The machine that sends payments must not be able to add staff or approve rules.
    status, answer = api("operator", "POST", "staff", name="core-banking", role="sender")
    api.tokens["core-banking"] = answer["token"]
    for method, path, body in (
        ("GET", "rules", {}),
        ("GET", "cases", {}),
        ("POST", "rules/versions", {"text": rules(100), "why": "x"}),
        ("POST", "staff", {"name": "zoe", "role": "admin"}),
    ):
        status, answer = api("core-banking", method, path, **body)
        assert (status, "sends events and does nothing else" in answer["detail"]) == (403, True)
    sender = api.staff.identify(api.tokens["core-banking"].encode())
    assert sender.has(Role.SENDER)
    assert not any(person.has(Role.SENDER) for person in (ANN, BOB))


def test_a_text_can_be_checked_without_saving_it(api):
    _, answer = api("ann", "POST", "rules/check", text=rules("amuont"))
    assert (answer["ok"], answer["rule"], answer["line"], answer["column"]) == (False, "large", 6, 18)
    assert (answer["expression_line"], answer["expression_column"]) == (1, 10)
    assert api("ann", "POST", "rules/check", text=rules(5))[1]["ok"]
    assert api("ann", "GET", "rules/columns")[1]["columns"][0]["name"] == "amount"
    assert len(api("ann", "GET", "rules")[1]["versions"]) == 1


def test_a_revoked_token_opens_nothing(api):
    assert api("ann", "GET", "rules")[0] == 200
    assert api("operator", "DELETE", "staff/ann")[0] == 200
    assert api("ann", "GET", "rules")[0] == 401
    rows = api("operator", "GET", "staff")[1]["staff"]
    assert {row["name"]: row["revoked_by"] for row in rows} == {"ann": "operator", "bob": None, "cem": None}


def test_the_alarm_is_the_brakes_own_word(book):
    book.bootstrap(rules(200))
    alarm = BrakeAlarm(1, "large", "large@0", 0, Verdict.BLOCK, 3, 5, 4, 4, 0.5)
    assert book.record_alarm(alarm)
    assert (book.audit()[-1].actor, book.audit()[-1].action) == ("brake", "brake")


def test_who_gave_out_a_token_is_no_second_person(database, columns):
    """Carl was added by bob, dan by carl; ann and fay by eve, who is neither."""
    added_by = {
        "ann": "eve",
        "bob": "operator",
        "carl": "bob",
        "dan": "carl",
        "eve": "operator",
        "fay": "eve",
    }
    book = Rulebook(RulebookStore(database), lambda: ColumnSchema(columns), Clock(), lambda: added_by)
    book.bootstrap(rules(100))
    approver = frozenset({Role.APPROVER})
    carl, dan, fay = (Staff(name, approver) for name in ("carl", "dan", "fay"))
    eve = Staff("eve", frozenset({Role.ADMIN}))

    def approve(maker, checker):
        number = book.save(rules(90), maker, "x")
        book.act(Action.PROPOSE, number, maker, "x")
        return book.act(Action.APPROVE, number, checker, "x")

    for maker, checker, holder, giver in (
        (carl, BOB, "carl", "bob"), (BOB, carl, "carl", "bob"), (dan, BOB, "dan", "bob"), (ANN, eve, "ann", "eve"),
    ):  # fmt: skip
        with pytest.raises(LifecycleError, match=f"the token of {holder} comes from {giver}") as caught:
            approve(maker, checker)
        assert caught.value.code is Code.SAME_PERSON
    # What tokens cannot tell: two that one admin gave out.
    assert approve(ANN, fay).active == 1
    assert approve(ANN, BOB).active == 1
    with pytest.raises(LifecycleError, match="operator token names nobody"):
        approve(Staff("operator", frozenset({Role.ADMIN})), BOB)
