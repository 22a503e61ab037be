"""The bank's lists: on disk before in force, refusals by code, restarts, the record of changes, the API."""

import asyncio
import threading

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from governance.messages.problems import RequestError, problem_for
from member_node.api.lists import list_router
from member_node.service.lists import CLEARED, MAX_CLEARED_US, EntryDraft, ListBook
from member_node.service.staff import Role, Staff
from member_node.storage.database import Database
from member_node.storage.lists import ListStore
from scoring.lists_values import ListError
from scoring.schema import entity_keys

NOW = 1_800_000_000_000_000
HOUR = 3_600_000_000
WHO = {"reason": "report 7", "author": "ann"}


@pytest.fixture
def database(tmp_path):
    opened = Database.in_directory(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def book(database):
    made = ListBook(ListStore(database), lambda: NOW)
    made.create("mules", "block", "payee", **WHO, may_loosen=True)
    return made


def listed(book, *values, name="mules", at=NOW):
    keys = entity_keys(list(values))
    return book.snapshot().table(name).hits(keys, np.full(len(keys), at)).tolist()


def test_entries_count_from_the_next_snapshot_on_and_survive_a_restart(book, database):
    before = book.snapshot()
    report = book.add("mules", [EntryDraft("a"), EntryDraft(7, NOW + HOUR), EntryDraft(" b ")], **WHO)
    assert (report.added, report.renewed, report.known, report.refused) == (3, 0, 0, ())
    assert not before.table("mules").hits(entity_keys(["a"]), np.array([NOW])).any()
    for each in (book, ListBook(ListStore(database), lambda: NOW)):
        assert listed(each, "a", "b", "c") == [True, True, False]
        assert listed(each, 7) == listed(each, "7") == [True]
        assert listed(each, 7, at=NOW + HOUR) == [False]
        assert [(record.name, count) for record, count in each.records()] == [("mules", 3)]


def test_what_is_known_is_counted_and_a_new_end_replaces_the_old_one(book, database):
    book.add("mules", [EntryDraft("a", NOW + HOUR)], **WHO)
    report = book.add(
        "mules", [EntryDraft("a", NOW + HOUR), EntryDraft("a"), EntryDraft("b"), EntryDraft("b")], **WHO
    )
    assert (report.added, report.known, report.duplicates) == (1, 1, 2)
    report = book.add("mules", [EntryDraft("a", NOW + 2 * HOUR, "longer")], reason="r", author="bob")
    assert (report.added, report.renewed) == (0, 1)
    (entry,) = book.find("mules", "a")
    assert (entry.expires_us, entry.reason, entry.author) == (NOW + 2 * HOUR, "longer", "bob")
    assert listed(ListBook(ListStore(database), lambda: NOW), "a", at=NOW + HOUR) == [True]
    assert book.records()[0][1] == 2


@pytest.mark.parametrize(
    ("draft", "code", "field"),
    [
        (EntryDraft(""), "invalid-value", "value"),
        (EntryDraft("secret\x00"), "invalid-value", "value"),
        (EntryDraft("s" * 300), "invalid-value", "value"),
        (EntryDraft(1.5), "invalid-value", "value"),
        (EntryDraft("secret", NOW), "expired", "expires"),
        (EntryDraft("secret", NOW - 1), "expired", "expires"),
        (EntryDraft("secret", 2**62), "bad-time", "expires"),
        (EntryDraft("secret", rule="r1"), "rule-not-allowed", "rule"),
        (EntryDraft("secret", reason="x" * 501), "bad-reason", "reason"),
    ],
)
def test_a_bad_entry_is_refused_and_the_rest_is_listed(book, caplog, draft, code, field):
    report = book.add("mules", [EntryDraft("a"), draft, EntryDraft("b")], **WHO)
    assert report.added == 2
    (refusal,) = report.refused
    assert (refusal.row, refusal.code, refusal.field) == (1, code, field)
    assert "secret" not in repr(report) + repr(draft) + caplog.text
    assert listed(book, "a", "b") == [True, True]


def test_business_time_decides_about_expiry_in_replays(book):
    past = EntryDraft("a", NOW - 100 * HOUR)
    assert book.add("mules", [past], **WHO, now_us=NOW - 200 * HOUR).added == 1
    assert listed(book, "a", at=NOW - 150 * HOUR) == [True]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda book: book.add("other", [], **WHO), "unknown-list"),
        (lambda book: book.add("mules", [], entity="card", **WHO), "wrong-entity"),
        (lambda book: book.add("mules", [], reason=" ", author="ann"), "bad-reason"),
        (lambda book: book.add("mules", [], reason="a\nb", author="ann"), "bad-reason"),
        (lambda book: book.add("mules", [], reason="r", author=""), "bad-author"),
        (lambda book: book.remove("other", ["a"], **WHO), "unknown-list"),
        (lambda book: book.find("other", "a"), "unknown-list"),
        (lambda book: book.find("mules", ""), "invalid-value"),
        (lambda book: book.create("mules", "block", "payee", **WHO, may_loosen=True), "list-exists"),
        (lambda book: book.create("x", "grey", "payee", **WHO), "unknown-kind"),
        (lambda book: book.create("x", "block", "colour", **WHO), "wrong-entity"),
        (lambda book: book.create("X!", "block", "payee", **WHO), "bad-name"),
    ],
)
def test_refusals(book, call, code):
    with pytest.raises(ListError) as refusal:
        call(book)
    assert refusal.value.code == code


def test_removing_and_the_record_of_changes(book, database):
    book.add("mules", [EntryDraft("a"), EntryDraft("b", NOW + HOUR)], **WHO)
    report = book.remove("mules", ["a", "zz"], reason="mistaken", author="bob", may_loosen=True)
    assert (report.removed, [(each.row, each.code) for each in report.refused]) == (1, [(1, "not-listed")])
    assert listed(book, "a", "b") == [False, True]
    assert listed(ListBook(ListStore(database), lambda: NOW), "a", "b") == [False, True]
    changes = book.changes("mules")
    assert [(each.action, each.entries, each.author, each.reason) for each in changes] == [
        ("remove", 1, "bob", "mistaken"),
        ("add", 2, "ann", "report 7"),
        ("create", 0, "ann", "report 7"),
    ]
    store = ListStore(database)
    assert store.changed(changes[0].number, 10, 0) == [("a", "", None, "report 7")]
    assert store.changed(changes[1].number, 10, 0) == [
        ("a", "", None, "report 7"),
        ("b", "", NOW + HOUR, "report 7"),
    ]


def test_expired_entries_can_be_dropped(book, database):
    book.add("mules", [EntryDraft("a", NOW + HOUR), EntryDraft("b", NOW + 2 * HOUR), EntryDraft("c")], **WHO)
    late = ListBook(ListStore(database), lambda: NOW + HOUR)
    assert late.drop_expired("mules", NOW + HOUR, reason="month's end", author="ann").removed == 1
    assert [late.find("mules", each) != [] for each in "abc"] == [False, True, True]
    assert listed(late, "a", at=0) == [False]
    # Whatever ends some day would go: the clock says what has expired, not the caller.
    with pytest.raises(ListError, match="bad-time"):
        late.drop_expired("mules", NOW + 2 * HOUR, reason="early", author="ann")
    assert listed(late, "b") == [True]


def test_a_case_clears_its_customer_from_a_rule_until_a_date(book, database):
    book.exempt("1001", "night", NOW + HOUR, reason="case 5", author="ann")
    book.exempt("1001", "velocity", NOW + HOUR, reason="case 5", author="ann")
    for each in (book, ListBook(ListStore(database), lambda: NOW)):
        exempt = each.snapshot().exempt(
            {"customer": entity_keys([1001, 1002])}, np.array([NOW, NOW]), ["velocity", "other", "night"]
        )
        assert exempt.tolist() == [[True, False, True], [False] * 3]
    assert book.remove(CLEARED, ["1001"], rule="night", **WHO).removed == 1
    assert [entry.rule for entry in book.find(CLEARED, 1001)] == ["velocity"]
    with pytest.raises(ListError, match="expired"):
        book.exempt("1001", "night", NOW, reason="case 5", author="ann")
    for until in (NOW + MAX_CLEARED_US + 1, 2**62):
        with pytest.raises(ListError, match="90 days at most"):
            book.exempt("1001", "night", until, reason="case 5", author="ann")


def test_what_lets_more_through_takes_an_approver(book, database):
    book.create("friends", "allow", "payee", **WHO, may_loosen=True)
    book.create("cleared", "exemption", "payee", **WHO, may_loosen=True)
    book.create("seen", "watch", "payee", **WHO, may_loosen=True)
    for name in ("mules", "seen"):
        assert book.add(name, [EntryDraft("me", NOW + 2 * HOUR), EntryDraft("old")], **WHO).added == 2
    before = book.snapshot()
    for act in (
        lambda: book.create("more", "block", "payee", **WHO),
        lambda: book.add("friends", [EntryDraft("me")], **WHO),
        lambda: book.add("cleared", [EntryDraft("me", rule="large")], **WHO),
        lambda: book.remove("mules", ["me"], **WHO),
        lambda: book.remove("seen", ["me"], **WHO),
    ):
        with pytest.raises(ListError, match="needs-approver"):
            act()
    assert book.snapshot() is before
    # An entry that ends in a moment is as good as none: ends only move later, whatever the business time is said to be.
    drafts = [
        EntryDraft("new"),
        EntryDraft("me", NOW + 1),
        EntryDraft("old", NOW + HOUR),
        EntryDraft("", NOW + 1),
    ]
    report = book.add("mules", drafts, **WHO)
    assert [(each.row, each.code) for each in report.refused] == [
        (1, "needs-approver"),
        (2, "needs-approver"),
        (3, "invalid-value"),
    ]
    assert (report.added, report.renewed) == (1, 0)
    assert book.add("mules", [EntryDraft("me", 2)], **WHO, now_us=1).refused[0].code == "needs-approver"
    for each in (book, ListBook(ListStore(database), lambda: NOW)):
        assert listed(each, "me", "old", "new", at=NOW + HOUR) == [True, True, True]
    assert book.add("mules", [EntryDraft("me")], **WHO).renewed == 1
    assert book.add("mules", [EntryDraft("me", NOW + 1)], **WHO, may_loosen=True).renewed == 1
    # Taking a favour back is anybody's.
    assert book.add("friends", [EntryDraft("me")], **WHO, may_loosen=True).added == 1
    assert book.remove("friends", ["me"], **WHO).removed == 1


def test_writers_in_many_threads_lose_nothing(book, database):
    def write(start):
        for i in range(20):
            book.add("mules", [EntryDraft(f"v{start}-{i}")], **WHO)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = [f"v{start}-{i}" for start in range(4) for i in range(20)]
    assert all(listed(book, *values))
    assert all(listed(ListBook(ListStore(database), lambda: NOW), *values))
    assert book.records()[0][1] == 80


def test_nothing_is_in_force_that_is_not_on_disk(book, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(book._store, "put", full)
    with pytest.raises(OSError, match="space"):
        book.add("mules", [EntryDraft("a")], **WHO)
    assert listed(book, "a") == [False]


@pytest.fixture
def call(book):
    app = FastAPI()
    app.include_router(list_router(book, "bank-a"))

    @app.exception_handler(RequestError)
    async def refuse(_request: Request, error: RequestError) -> Response:
        problem = problem_for(error, "")
        return Response(problem.encode(), problem.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, _error: RequestValidationError) -> Response:
        return Response(status_code=400)

    staff = Staff("operator", frozenset({Role.ADMIN}))

    @app.middleware("http")
    async def door(request: Request, call_next):
        request.state.staff = staff
        return await call_next(request)

    def send(method, path, by=None, **body):
        nonlocal staff
        staff = by or Staff("operator", frozenset({Role.ADMIN}))

        async def exchange():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://bank-a") as http:
                return await http.request(method, path, json=body or None)

        return asyncio.run(exchange())

    return send


def test_the_api(call):
    made = call("POST", "/lists", name="clear", kind="exemption", entity="customer", reason="r")
    assert (made.status_code, made.json()["author"]) == (200, "operator")
    added = call(
        "POST",
        "/lists/clear/entries",
        values=["a", 7, ""],
        expires_ms=[NOW // 1000 + 5],
        rules=["r1", "r2", "r3"],
        reason="case 9",
    ).json()
    assert (added["added"], [each["row"] for each in added["refused"]]) == (2, [2])
    found = call("POST", "/lists/clear/find", value=7).json()["entries"]
    assert [(each["value"], each["rule"], each["expires_ms"]) for each in found] == [
        ("7", "r2", NOW // 1000 + 5)
    ]
    assert call("POST", "/lists/clear/removals", values=["7"], reason="r").json()["removed"] == 1
    shown = call("GET", "/lists/clear?limit=5").json()
    assert (shown["entries"], [each["value"] for each in shown["newest"]]) == (1, ["a"])
    assert [each["name"] for each in call("GET", "/lists").json()["lists"]] == ["clear", "mules"]
    changes = call("GET", "/lists/clear/changes").json()["changes"]
    assert [each["action"] for each in changes] == ["remove", "add", "create"]
    dropped = call("POST", "/lists/clear/expired", before_ms=NOW // 1000, reason="r").json()
    assert dropped["removed"] == 0


def test_the_api_asks_for_the_role(call):
    analyst, approver = Staff("ann", frozenset({Role.ANALYST})), Staff("bob", frozenset({Role.APPROVER}))
    friends = {"name": "friends", "kind": "allow", "entity": "payee", "reason": "r"}
    entry = {"values": ["me"], "reason": "r"}
    assert call("POST", "/lists", by=analyst, **friends).status_code == 403
    assert call("POST", "/lists", by=approver, **friends).json()["author"] == "bob"
    refused = call("POST", "/lists/friends/entries", by=analyst, **entry)
    assert (refused.status_code, "needs-approver" in refused.text) == (403, True)
    assert call("POST", "/lists/friends/entries", by=approver, **entry).json()["added"] == 1
    assert call("POST", "/lists/mules/entries", by=analyst, **entry).json()["added"] == 1
    assert call("POST", "/lists/mules/removals", by=analyst, **entry).status_code == 403
    assert call("POST", "/lists/mules/removals", by=approver, **entry).json()["removed"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/lists/none/entries", {"values": ["secret"], "reason": "r"}, 404, "unknown-list"),
        ("/lists/none/find", {"value": "secret"}, 404, "unknown-list"),
        (
            "/lists/mules/entries",
            {"values": ["secret"], "reason": "r", "entity": "card"},
            422,
            "wrong-entity",
        ),
        ("/lists/mules/entries", {"values": ["secret"], "reason": ""}, 422, "bad-reason"),
        ("/lists/mules/entries", {"values": ["secret"] * 3, "rules": ["", ""], "reason": "r"}, 400, "rules"),
        ("/lists/mules/find", {"value": "secret\n\x00"}, 422, "invalid-value"),
        ("/lists", {"name": "x", "kind": "grey", "entity": "card", "reason": "r"}, 422, "unknown-kind"),
        ("/lists/mules/entries", {"values": [True], "reason": "r"}, 400, ""),
        ("/lists/mules/entries", {"values": ["a"] * 50_001, "reason": "r"}, 400, ""),
    ],
)
def test_the_api_refuses_with_code_and_without_the_value(call, caplog, path, body, status, text):
    answer = call("POST", path, **body)
    assert answer.status_code == status
    assert text in answer.text
    assert "secret" not in answer.text + caplog.text
