"""Outcomes and the evidence rule: distinct victims, the window, renewal, maturity."""

import numpy as np
import pytest

from member_node.client.ports import NotMaturedError
from member_node.service.outcomes import OutcomeStatistic
from member_node.storage.database import Database
from member_node.storage.outcomes import DAY_US, ConfirmedFraud, OutcomeStore, StreamStore

WINDOWS = {"terminal": 7, "iban": 7}


@pytest.fixture
def database(tmp_path):
    opened = Database.in_directory(tmp_path)
    yield opened
    opened.close()


def fraud(number, customer, *, known_day, value="T1", kind="terminal", cell=0):
    known = known_day * DAY_US
    return ConfirmedFraud(
        f"e{number}", known - 7 * DAY_US, known_day - 7, cell, known, customer, ((kind, value),)
    )


def record(store, *frauds):
    return store.record([(each.event_id, True, each.known_at_us) for each in frauds], frauds)


def findings(store):
    return [(each.kind, each.value, each.distinct_victims) for each in store.pending()]


def test_a_finding_per_value_with_a_new_victim(database):
    store = OutcomeStore(database)
    record(
        store,
        fraud(1, "ann", known_day=20),
        fraud(2, "ann", known_day=20),
        fraud(3, "bob", known_day=20),
        fraud(4, "ann", known_day=20, value="T2"),
        fraud(5, "cy", known_day=20, value="DE1", kind="iban"),
        fraud(6, "cy", known_day=20, value="+49", kind="phone"),
    )
    assert store.weigh(20 * DAY_US, WINDOWS) == 3
    # The policy says nothing of phones, so nothing is contributed about them.
    assert findings(store) == [("iban", "DE1", 1), ("terminal", "T1", 2), ("terminal", "T2", 1)]
    assert store.weigh(20 * DAY_US, WINDOWS) == 0


def test_renewal_needs_a_new_victim_within_the_window(database):
    store = OutcomeStore(database)
    record(store, fraud(1, "ann", known_day=20))
    store.weigh(20 * DAY_US, WINDOWS)
    store.contributed(store.pending())
    record(store, fraud(2, "ann", known_day=22))
    assert store.weigh(22 * DAY_US, WINDOWS) == 0
    record(store, fraud(3, "bob", known_day=23))
    assert store.weigh(23 * DAY_US, WINDOWS) == 1
    assert findings(store) == [("terminal", "T1", 2)]
    store.contributed(store.pending())
    # On day 30 the first report of ann and the one of bob have left (23, 30]; ann of day 22 too.
    record(store, fraud(4, "cy", known_day=30))
    assert store.weigh(30 * DAY_US, WINDOWS) == 1
    assert findings(store) == [("terminal", "T1", 1)]
    record(store, fraud(5, "ann", known_day=31))
    store.weigh(31 * DAY_US, WINDOWS)
    assert findings(store) == [("terminal", "T1", 2)]
    assert store.pending()[0].found_at_ms == 31 * DAY_US // 1000


def test_frauds_known_later_than_now_wait(database):
    store = OutcomeStore(database)
    record(store, fraud(1, "ann", known_day=25))
    assert store.weigh(24 * DAY_US, WINDOWS) == 0
    assert store.weigh(25 * DAY_US, WINDOWS) == 1


def test_a_finding_that_was_replaced_meanwhile_is_kept(database):
    store = OutcomeStore(database)
    record(store, fraud(1, "ann", known_day=20))
    store.weigh(20 * DAY_US, WINDOWS)
    sent = store.pending()
    record(store, fraud(2, "bob", known_day=21))
    store.weigh(21 * DAY_US, WINDOWS)
    store.contributed(sent)
    assert findings(store) == [("terminal", "T1", 2)]


def test_outcomes_are_recorded_once(database):
    store = OutcomeStore(database)
    assert record(store, fraud(1, "ann", known_day=20)) == 1
    assert record(store, fraud(1, "bob", known_day=21), fraud(2, "cy", known_day=21)) == 1
    assert store.totals() == {"outcomes": 2, "confirmed_frauds": 2, "pending_findings": 0}
    assert store.known(["e1", "e3"]) == {"e1"}


def test_the_statistic_counts_matured_days_only(database):
    store, stream = OutcomeStore(database), StreamStore(database)
    statistic = OutcomeStatistic(store, stream, 3)
    with pytest.raises(NotMaturedError) as caught:
        statistic.counts(10, 10)
    assert caught.value.last_matured_day == -1
    record(
        store,
        fraud(1, "ann", known_day=20, cell=2),
        fraud(2, "bob", known_day=20, cell=2),
        fraud(3, "cy", known_day=21, cell=0),
        fraud(4, "di", known_day=21, cell=-1),
    )
    stream.advance({"matured_day": 14})
    assert statistic.counts(12, 14).tolist() == [[0, 0, 0], [0, 0, 2], [1, 0, 0]]
    with pytest.raises(NotMaturedError, match="up to day 14"):
        statistic.counts(12, 15)


def test_cursors_never_move_back_and_aggregates_keep_their_first_value(database):
    stream = StreamStore(database)
    assert stream.cursor("x") is None
    stream.advance({"x": 5})
    stream.advance({"x": 3})
    assert stream.cursor("x") == 5
    stream.save_aggregates("terminals", 7, np.array([[1, 2], [3, 4]]))
    stream.save_aggregates("terminals", 8, np.array([[9, 9], [5, 6]]))
    assert [(day, counts.tolist()) for day, counts in stream.aggregates("terminals")] == [
        (7, [1, 2]),
        (8, [3, 4]),
        (9, [5, 6]),
    ]
    stream.save_source("s", "one")
    stream.save_source("s", "two")
    assert stream.source("s") == "two"
    assert stream.source("t") is None
