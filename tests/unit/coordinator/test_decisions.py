"""What the log says of decisions: the first refusal at once, repetitions and permitted reads as totals."""

from __future__ import annotations

import threading

import pytest

from coordinator.export import export_log
from coordinator.service.permission import make_refusal
from governance.log.entries import InquiryRefusalEntry, ReadsEntry, RefusalEntry
from governance.messages.index import Deltas

FEED = "/v1/index/deltas"


def refusals(consortium):
    kinds = (RefusalEntry, InquiryRefusalEntry)
    return [entry for entry in consortium.entries() if isinstance(entry, kinds)]


def reads(consortium):
    return [entry for entry in consortium.entries() if isinstance(entry, ReadsEntry)]


def pass_time(consortium, seconds):
    consortium.clock.now += seconds
    consortium.coordinator.permission.close_due()


def test_repeated_refusals_are_one_entry_a_minute(consortium, tmp_path):
    start = int(consortium.clock.now)
    for _ in range(50):
        assert consortium.refused("regulator", "GET", FEED).name == "refused"
    [first] = refusals(consortium)
    assert (first.party, first.action, first.requests, first.since) == ("regulator", "mirror", 1, start)
    pass_time(consortium, 59)
    assert len(refusals(consortium)) == 1
    pass_time(consortium, 1)
    [_, repeated] = refusals(consortium)
    assert (repeated.requests, repeated.since, repeated.at) == (49, start, start + 60)
    assert (repeated.rule, repeated.reason, repeated.resource) == (first.rule, first.reason, first.resource)
    # who goes on gets one entry a minute; who stops and comes back is logged at once
    for minute in range(1, 4):
        for _ in range(10):
            consortium.refused("regulator", "GET", FEED)
        assert len(refusals(consortium)) == 1 + minute
        pass_time(consortium, 60)
        assert len(refusals(consortium)) == 2 + minute
    pass_time(consortium, 60)
    consortium.refused("regulator", "GET", FEED)
    assert [entry.requests for entry in refusals(consortium)] == [1, 49, 10, 10, 10, 1]
    report = export_log(consortium.directory, tmp_path / "out")
    assert report.refusals() == 81


def test_each_party_action_and_rule_is_counted_apart(consortium):
    unheard = [("bank-a", "curiosity"), ("bank-b", "curiosity"), ("regulator", "indicator-sharing")]
    for party, purpose in 3 * unheard:
        batch = consortium.batch(consortium.label(party), purpose=purpose)
        consortium.refused(party, "POST", "/v1/index/labels", batch)
    consortium.refused("regulator", "GET", FEED)
    keys = [(entry.party, entry.action, entry.rule) for entry in refusals(consortium)]
    assert len(keys) == len(set(keys)) == 4
    # other claims do not make it another refusal; what was claimed last is what the entry says
    for number in range(5):
        batch = consortium.batch(consortium.label("bank-a"), purpose=f"reason {number}")
        consortium.refused("bank-a", "POST", "/v1/index/labels", batch)
    assert len(refusals(consortium)) == 4
    pass_time(consortium, 60)
    counted = {(entry.party, entry.requests, entry.purpose) for entry in refusals(consortium)[4:]}
    assert counted == {
        ("bank-a", 7, "reason 4"),
        ("bank-b", 2, "curiosity"),
        ("regulator", 2, "indicator-sharing"),
    }


def test_refused_inquiries_are_counted_too(consortium, tmp_path):
    opened = consortium.inquiry(purpose="curiosity")
    for _ in range(3):
        consortium.refused("bank-a", "POST", "/v1/inquiries", opened)
    for _ in range(4):
        consortium.refused("bank-a", "POST", "/v1/inquiries", consortium.inquiry(purpose="curiosity"))
    consortium.refused("bank-a", "POST", "/v1/inquiries", consortium.inquiry(cells=7))
    assert [type(entry) for entry in refusals(consortium)] == 2 * [InquiryRefusalEntry]
    pass_time(consortium, 60)
    counted = refusals(consortium)[-1]
    assert isinstance(counted, RefusalEntry)
    assert (counted.action, counted.requests, counted.purpose) == ("inquire", 6, "curiosity")
    assert counted.resource == "Statistic/confirmed-frauds-per-entity/terminals"
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 8


def test_permitted_reads_are_one_entry_an_hour(consortium, tmp_path):
    start = int(consortium.clock.now)
    for _ in range(7):
        consortium.get("bank-a", FEED, Deltas)
    consortium.get("bank-b", FEED, Deltas)
    consortium.entries("bank-b")
    assert reads(consortium) == []
    pass_time(consortium, 3599)
    assert reads(consortium) == []
    pass_time(consortium, 1)
    logged = {(entry.party, entry.action, entry.rule): entry for entry in reads(consortium)}
    assert {key: entry.requests for key, entry in logged.items()} == {
        ("bank-a", "mirror", "members-mirror"): 7,
        ("bank-b", "mirror", "members-mirror"): 1,
        ("bank-b", "read-log", "parties-read-their-entries"): 1,
        ("regulator", "read-log", "regulators-read-everything"): 2,
    }
    entry = logged["bank-a", "mirror", "members-mirror"]
    assert (entry.purpose, entry.period_start, entry.period_end) == (
        "indicator-sharing",
        start,
        start + 3600,
    )
    assert entry.parties == ["bank-a"]
    # the next period begins with the next read
    consortium.clock.now += 10_000
    consortium.get("bank-a", FEED, Deltas)
    consortium.coordinator.permission.close_all()
    last = [entry for entry in reads(consortium) if entry.party == "bank-a"][-1]
    assert (last.requests, last.period_start, last.period_end) == (1, start + 13_600, start + 13_600)
    report = export_log(consortium.directory, tmp_path / "out", reader="regulator")
    rows = {(row.party, row.action): row for row in report.requests if row.decision == "permitted"}
    assert (rows["bank-a", "mirror"].requests, rows["bank-a", "mirror"].subject) == (8, "the index")
    assert rows["regulator", "read-log"].subject == "log entries"


def test_counts_survive_the_process_and_are_logged_when_it_stops(consortium, start, tmp_path):
    consortium.get("bank-a", FEED, Deltas)
    for _ in range(3):
        consortium.refused("regulator", "GET", FEED)
    start(consortium)
    consortium.get("bank-a", FEED, Deltas)
    consortium.refused("regulator", "GET", FEED)
    assert len(refusals(consortium)) == 1
    consortium.coordinator.permission.close_all()
    assert [entry.requests for entry in refusals(consortium)] == [1, 3]
    assert [(entry.party, entry.requests) for entry in reads(consortium)] == [
        ("bank-a", 2),
        ("regulator", 1),
    ]
    consortium.coordinator.permission.close_all()
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 4


def test_a_clock_that_goes_back_leaves_a_log_that_verifies(consortium, tmp_path):
    for step in (-7200, 100, -50, 7200):
        consortium.get("bank-a", FEED, Deltas)
        consortium.refused("regulator", "GET", FEED)
        consortium.refused("regulator", "GET", FEED)
        consortium.coordinator.permission.close_all()
        consortium.clock.now += step
    report = export_log(consortium.directory, tmp_path / "out")
    assert report.refusals() == 8
    assert sum(row.requests for row in report.requests if row.action == "mirror") == 12


def test_refusals_from_many_threads_are_all_counted(consortium, tmp_path):
    permission = consortium.coordinator.permission
    refusal = make_refusal("bank-a", "mirror", "Index/consortium", "p", "r", "rule", 1)
    threads = [
        threading.Thread(target=lambda: [permission.refuse(refusal) for _ in range(20)]) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 120


@pytest.mark.parametrize("text", ["\ud800", "x" * 5000, "\x1b[31m"])
def test_claimed_texts_always_fit_an_entry(consortium, text, tmp_path):
    refusal = make_refusal("bank-a", "mirror", text, text, text, "rule", 1)
    for _ in range(2):
        consortium.coordinator.permission.refuse(refusal)
    assert export_log(consortium.directory, tmp_path / "out").refusals() == 2
