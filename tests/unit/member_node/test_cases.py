"""Alerts become cases by customer; decisions become outcomes; nothing is stored twice or lost."""

import asyncio
import threading

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import Response

from governance.messages.problems import RequestError, problem_for
from member_node.api.cases import cases_router
from member_node.service.alerts import AlertFeed, AlertPolicy
from member_node.service.cases import MAX_NOTE, CaseError, CaseNotPermittedError, CaseService, Clearance
from member_node.service.lists import CLEARED, ListBook
from member_node.service.staff import Role, SamePersonError, Staff
from member_node.storage.case_exemptions import ExemptionStore
from member_node.storage.cases import Alert, CaseFilter, CaseStore
from member_node.storage.database import Database
from member_node.storage.lists import ListStore
from scoring.verdicts import Verdict

HOUR = 3_600_000_000


@pytest.fixture
def database(tmp_path):
    opened = Database.in_directory(tmp_path)
    yield opened
    opened.close()


def alert(number, customer="a", hour=0.0, verdict=Verdict.REVIEW, amount=10.0):
    return Alert(
        f"{number}:0",
        "verdict",
        customer,
        f"e{number}",
        int(hour * HOUR),
        verdict,
        "r",
        amount,
        None,
        '[{"rule":"r","verdict":"review","text":"why"}]',
    )


def test_alerts_of_a_customer_within_the_window_are_one_case(database):
    store = CaseStore(database)
    first = [alert(1), alert(2, hour=23), alert(3, "b", 1, Verdict.BLOCK), alert(4, "", 1), alert(5, "", 1)]
    assert store.open_alerts(first, window_us=24 * HOUR, now=100, through=7) == 5
    # 23 h + 24 h: joins; 72 h: does not; the same sources again: nothing.
    more = [alert(6, hour=47, verdict=Verdict.CHALLENGE), alert(7, hour=72), *first]
    assert store.open_alerts(more, window_us=24 * HOUR, now=200, through=9) == 2
    assert store.alerted_through() == 9
    cases = store.find(CaseFilter())
    assert [(c.customer, c.severity, c.alerts, c.amount, c.opened_at) for c in cases] == [
        ("b", 3, 1, 10.0, 100),
        ("a", 2, 3, 30.0, 100),
        ("", 2, 1, 10.0, 100),
        ("", 2, 1, 10.0, 100),
        ("a", 2, 1, 10.0, 200),
    ]
    assert (cases[1].first_us, cases[1].last_us) == (0, 47 * HOUR)
    assert sorted(store.events(cases[1].case_id)) == ["e1", "e2", "e6"]


class Desk:
    def __init__(self, database):
        self.now = 10_000
        self.learned, self.exempted = [], []
        self.store = CaseStore(database)
        self.exemptions = ExemptionStore(database)
        self.cases = self.service(self)

    def service(self, exempter, **more):
        return CaseService(
            self.store,
            learn=self.learn,
            exempter=exempter,
            clock=lambda: self.now,
            exemptions=self.exemptions,
            **more,
        )

    def check_exempt(self, customer, rule, until_us, *, reason, author):
        pass

    def learn(self, outcomes):
        self.learned += outcomes
        return len(outcomes)

    def exempt(self, customer, rule, until_us, *, reason, author):
        self.exempted.append((customer, rule, until_us, reason, author))


def test_decisions_become_outcomes_once_and_clear_customers(database):
    desk = Desk(database)
    desk.store.open_alerts([alert(1), alert(2), alert(3, "b")], window_us=HOUR, now=desk.now)
    mine, other = (case.case_id for case in desk.store.find(CaseFilter()))
    desk.cases.assign(mine, "ada", "eve")
    desk.cases.note(mine, "called the customer", "ada")
    assert [case["case_id"] for case in desk.cases.find(CaseFilter(assignee="ada"), limit=9, offset=0)] == [
        mine
    ]
    assert [case["case_id"] for case in desk.cases.find(CaseFilter(assignee=""), limit=9, offset=0)] == [
        other
    ]
    with pytest.raises(CaseError, match="only a customer"):
        desk.cases.decide(mine, "fraud", "ada", clearance=Clearance("r", 5))
    with pytest.raises(CaseError, match="no decision"):
        desk.cases.decide(mine, "guilty", "ada")
    assert desk.learned == []
    desk.now += 5000
    shown = desk.cases.decide(mine, "genuine", "ada", text="on holiday", clearance=Clearance("r", 5))
    assert sorted(desk.learned) == [("e1", False, 15_000_000), ("e2", False, 15_000_000)]
    assert desk.exempted == [("a", "r", 5, f"case {mine}: on holiday", "ada")]
    assert [(n["author"], n["action"]) for n in shown["notes"]] == [
        ("eve", "assign"),
        ("ada", "note"),
        ("ada", "exempt"),
        ("ada", "decide"),
    ]
    with pytest.raises(CaseError, match="was decided by ada: genuine"):
        desk.cases.decide(mine, "fraud", "eve")
    with pytest.raises(CaseError, match="is closed"):
        desk.cases.assign(mine, "eve", "eve")
    desk.cases.decide(other, "unclear", "ada")
    assert len(desk.learned) == 2
    with pytest.raises(CaseError, match="no case 77"):
        desk.cases.show(77)
    counts = desk.cases.counts()
    assert (counts["open"], counts["decisions"]) == (0, {"genuine": 1, "unclear": 1})
    # A closed case takes no further alerts.
    desk.store.open_alerts([alert(9)], window_us=HOUR, now=desk.now)
    assert desk.cases.counts()["open"] == 1
    desk.now += 4000
    assert desk.cases.counts()["older_than"] == {3600: 1, 14400: 0, 86400: 0, 604800: 0}


DAY_US = 86_400_000_000


@pytest.fixture
def longer(database):
    """A desk over real lists with two cases, ada's decisions of which exempt their customers for 30 days."""
    desk = Desk(database)
    desk.lists = ListBook(ListStore(database), lambda: desk.now * 1_000_000)
    desk.cases = desk.service(desk.lists, added_by=lambda: {"ada": "eve", "carl": "ada", "ben": "operator"})
    desk.store.open_alerts([alert(1), alert(2, "b")], window_us=HOUR, now=desk.now)
    desk.ids = sorted(case.case_id for case in desk.store.find(CaseFilter()))
    desk.until = desk.now * 1_000_000 + 30 * DAY_US
    for case_id in desk.ids:
        shown = desk.cases.decide(case_id, "genuine", "ada", clearance=Clearance("r", desk.until))
        assert (shown["decision"], shown["outcomes"]) == ("genuine", 1)
        assert (shown["exemption"]["state"], shown["exemption"]["author"]) == ("proposed", "ada")
    assert [each["case_id"] for each in desk.cases.proposed(limit=9, offset=0)] == desk.ids
    assert all(table.name != CLEARED for table in desk.lists.snapshot().tables)
    return desk


def test_a_long_exemption_takes_effect_when_another_person_approves_it(longer):
    case_id = longer.ids[0]
    with pytest.raises(CaseNotPermittedError, match="role approver"):
        longer.cases.approve_exemption(case_id, "ben", "fine", may_loosen=False)
    for author, words in (
        ("ada", "ada's own: another person must approve"),
        ("operator", "names nobody"),
        ("eve", "the token of ada comes from eve"),
        ("carl", "the token of carl comes from ada"),
    ):
        with pytest.raises(SamePersonError, match=words):
            longer.cases.approve_exemption(case_id, author, "fine", may_loosen=True)
    with pytest.raises(CaseError, match="say why"):
        longer.cases.approve_exemption(case_id, "ben", " ", may_loosen=True)
    assert len(longer.cases.proposed(limit=9, offset=0)) == 2
    shown = longer.cases.approve_exemption(case_id, "ben", "asked the branch", may_loosen=True)
    told = shown["exemption"]
    assert (told["state"], told["decided_by"], told["why"]) == ("approved", "ben", "asked the branch")
    assert [(each["author"], each["action"], each["text"]) for each in shown["notes"]] == [
        ("ada", "decide", "genuine"),
        ("ada", "propose-exemption", f"r until {longer.until}"),
        ("ben", "approve-exemption", "asked the branch"),
    ]
    (entry,) = longer.lists.find(CLEARED, "a")
    assert (entry.rule, entry.expires_us, entry.author) == ("r", longer.until, "ben")
    for verb in (longer.cases.approve_exemption, longer.cases.reject_exemption):
        with pytest.raises(CaseError, match="was approved by ben"):
            verb(case_id, "ben", "again", may_loosen=True)


def test_a_proposed_exemption_is_rejected_or_withdrawn(longer):
    first, second = longer.ids
    with pytest.raises(CaseNotPermittedError, match="role approver"):
        longer.cases.reject_exemption(first, "dora", "no", may_loosen=False)
    assert longer.cases.reject_exemption(first, "ada", "a slip", may_loosen=False)["exemption"]["state"] == (
        "rejected"
    )
    longer.cases.reject_exemption(second, "ben", "too long", may_loosen=True)
    assert longer.cases.proposed(limit=9, offset=0) == []
    with pytest.raises(CaseError, match="was rejected by ada"):
        longer.cases.approve_exemption(first, "ben", "fine", may_loosen=True)
    with pytest.raises(CaseError, match="there is no case 99"):
        longer.cases.approve_exemption(99, "ben", "fine", may_loosen=True)


def test_it_can_come_too_late_for_an_approval(longer):
    longer.now += 31 * 86_400
    with pytest.raises(CaseError, match="cannot be cleared: expires"):
        longer.cases.approve_exemption(longer.ids[0], "ben", "fine", may_loosen=True)
    assert longer.cases.show(longer.ids[0])["exemption"]["state"] == "proposed"


@pytest.mark.parametrize(
    ("days", "limit", "may_loosen", "at_once"),
    [
        (7, 7, False, True),
        (7.1, 7, False, False),
        (90, 7, True, True),
        (0.1, 0, False, False),
        (90, 90, False, True),
    ],
)
def test_how_long_an_analyst_may_exempt_alone(database, days, limit, may_loosen, at_once):
    desk = Desk(database)
    cases = desk.service(desk, clear_seconds=limit * 86_400)
    desk.store.open_alerts([alert(1)], window_us=HOUR, now=desk.now)
    (case,) = desk.store.find(CaseFilter())
    clearance = Clearance("", desk.now * 1_000_000 + int(days * DAY_US))
    shown = cases.decide(case.case_id, "genuine", "ada", clearance=clearance, may_loosen=may_loosen)
    assert (len(desk.exempted) == 1) == at_once == (shown["exemption"] is None)


def test_the_routes_take_the_role_and_the_name_from_the_token(database):
    desk = Desk(database)
    desk.store.open_alerts([alert(1)], window_us=HOUR, now=desk.now)
    (case,) = desk.store.find(CaseFilter())
    who = {"ada": Role.ANALYST, "ben": Role.APPROVER}
    app = FastAPI()
    app.include_router(cases_router(desk.cases, "bank-a"))

    @app.middleware("http")
    async def door(request, call_next):
        name = request.headers["x-name"]
        request.state.staff = Staff(name, frozenset({who[name]}))
        return await call_next(request)

    @app.exception_handler(RequestError)
    async def problem(_request, error):
        found = problem_for(error, "bank-a")
        return Response(found.encode(), found.status)

    def call(name, method, path, **body):
        async def send():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://bank-a"
            ) as http:
                return await http.request(method, path, headers={"x-name": name}, json=body or None)

        return asyncio.run(send())

    until = desk.now * 1_000_000 + 60 * DAY_US
    path = f"/cases/{case.case_id}"
    decided = call("ada", "POST", f"{path}/decide", decision="genuine", exempt_until_us=until).json()
    assert (decided["decided_by"], decided["exemption"]["state"]) == ("ada", "proposed")
    (waiting,) = call("ada", "GET", "/cases/exemptions").json()["exemptions"]
    assert (waiting["customer"], waiting["until_us"]) == ("a", until)
    refused = call("ada", "POST", f"{path}/exemption", action="approve", why="x")
    assert refused.status_code == 403
    who["ada"] = Role.APPROVER
    refused = call("ada", "POST", f"{path}/exemption", action="approve", why="x")
    assert (refused.status_code, "same-person" in refused.text) == (409, True)
    assert call("ben", "POST", f"{path}/exemption", action="grant", why="x").status_code == 422
    approved = call("ben", "POST", f"{path}/exemption", action="approve", why="fine").json()
    assert (approved["exemption"]["state"], approved["exemption"]["decided_by"]) == ("approved", "ben")
    assert len(desk.exempted) == 1


def test_a_clearance_that_the_list_refuses_decides_nothing(database):
    desk = Desk(database)
    lists = ListBook(ListStore(database), lambda: desk.now * 1_000_000)
    cases = desk.service(lists)
    desk.store.open_alerts([alert(1)], window_us=HOUR, now=desk.now)
    (mine,) = (case.case_id for case in desk.store.find(CaseFilter()))
    day = 86_400
    for until, words in ((desk.now, "in the past"), (desk.now + 91 * day, "90 days at most")):
        with pytest.raises(CaseError, match=words):
            cases.decide(mine, "genuine", "ada", clearance=Clearance("r", until * 1_000_000))
    assert (desk.learned, cases.show(mine)["decision"]) == ([], "")
    # The longest note there may be, on several lines, is no reason to fail half way.
    note = "called\n\u200b" + "x" * (MAX_NOTE - 8)
    until = Clearance("r", (desk.now + 90 * day) * 1_000_000)
    cases.decide(mine, "genuine", "ada", text=note, clearance=until, may_loosen=True)
    (entry,) = lists.find(CLEARED, "a")
    assert entry.reason.startswith(f"case {mine}: called xxx")
    assert (entry.author, entry.rule, cases.show(mine)["decision"]) == ("ada", "r", "genuine")
    assert desk.learned == [("e1", False, desk.now * 1000)]


def test_the_feed_is_bounded_waits_and_loses_nothing(database):
    gate = threading.Event()

    class Slow(CaseStore):
        def open_alerts(self, alerts, **kw):
            assert gate.wait(10)
            return super().open_alerts(alerts, **kw)

    feed = AlertFeed(Slow(database), AlertPolicy(), lambda: 0, max_waiting=20)
    done = threading.Event()

    def offer():
        for frame in range(1, 41):
            feed.offer(frame, [alert(frame, f"c{frame}")])
        done.set()

    worker = threading.Thread(target=offer)
    worker.start()
    assert not done.wait(0.2)
    gate.set()
    assert done.wait(10)
    worker.join()
    assert feed.flush(10)
    assert feed.stored_through == 40
    feed.offer(40, [alert(99)])
    feed.close()
    assert CaseStore(database).counts(0, [1])["alerts"] == 40


def test_a_failing_store_holds_the_cursor_so_that_a_restart_offers_again(database):
    class Failing(CaseStore):
        def open_alerts(self, alerts, **kw):
            raise OSError("no space left")

    feed = AlertFeed(Failing(database), AlertPolicy(), lambda: 0, max_waiting=4)
    for frame in range(1, 9):
        feed.offer(frame, [alert(frame)])
    assert "no space left" in feed.failure
    assert not feed.flush(1)
    assert feed.stored_through == 0
    feed.close()
    again = AlertFeed(CaseStore(database), AlertPolicy(), lambda: 0)
    for frame in range(1, 9):
        again.offer(frame, [alert(frame)])
    assert again.flush(10)
    again.close()
    assert CaseStore(database).counts(0, [1])["alerts"] == 8


def test_alerts_wait_for_others_and_are_stored_together_unless_somebody_waits_for_them(database, monkeypatch):
    monkeypatch.setattr("member_node.service.alerts.LINGER_SECONDS", 60.0)
    monkeypatch.setattr("member_node.service.alerts.CURSOR_SECONDS", 60.0)
    calls = []

    class Counting(CaseStore):
        def open_alerts(self, alerts, **kw):
            calls.append((len(alerts), kw["through"]))
            return super().open_alerts(alerts, **kw)

    feed = AlertFeed(Counting(database), AlertPolicy(), lambda: 0)
    for frame in range(1, 31):
        feed.offer(frame, [alert(frame)] if frame in (7, 9, 20) else [])
    assert feed.flush(10)
    assert calls == [(3, 30)]
    feed.offer(31, [])
    feed.close()
    assert calls == [(3, 30), (0, 31)]


def test_alarms_are_cases_of_their_own(database):
    store = CaseStore(database)
    feed = AlertFeed(store, AlertPolicy(), lambda: 50)
    for _ in range(2):
        feed.alarm("brake", "velocity", "declines 40 % of an hour", 3 * HOUR)
    feed.close()
    (case,) = store.find(CaseFilter(kind="brake"))
    assert (case.customer, case.alerts, case.severity) == ("brake velocity", 1, Verdict.REVIEW)
    with pytest.raises(ValueError, match="no kind of alarm"):
        feed.alarm("verdict", "x", "", 0)
