"""Metrics, calendar and windows against slow, obvious versions of themselves."""

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.evaluation.calendar import EPOCH, Weeks
from sandbox.evaluation.daily import BankDayCounts, admitted
from sandbox.evaluation.metrics import quality
from sandbox.evaluation.windows import SharedWindow, shared_window, trailing
from scoring.models.metrics import card_precision

DAY = 86_400_000_000


def slow_card_precision(score, fraud, customer, day, top):
    """The handbook's loop, customer by customer."""
    shares, found = [], set()
    for today in sorted(set(day)):
        best = {}
        for s, f, c, d in zip(score, fraud, customer, day, strict=True):
            if d == today and c not in found:
                old = best.get(c, (-np.inf, 0))
                best[c] = (max(old[0], s), max(old[1], f))
        ranked = sorted(best.items(), key=lambda item: -item[1][0])[:top]
        caught = [c for c, (_, is_fraud) in ranked if is_fraud]
        found |= set(caught)
        shares.append(len(caught) / top)
    return np.mean(shares)


rows = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 1), st.integers(0, 6), st.integers(100, 103)
    ),
    min_size=1,
    max_size=60,
)


@given(rows, st.integers(1, 4))
def test_card_precision_is_the_handbooks(rows, top):
    rows = sorted(rows, key=lambda row: row[3])
    score, fraud, customer, day = (np.array(column) for column in zip(*rows, strict=True))
    fast = card_precision(score.astype(float), fraud.astype(np.int8), customer, day, top)
    assert fast == pytest.approx(slow_card_precision(score, fraud, customer, day, top))


def test_quality_of_a_perfect_ranking():
    fraud = np.array([0, 1, 0, 1], np.int8)
    found = quality(fraud.astype(float), fraud, np.arange(4), np.full(4, 7))
    assert (found.roc_auc, found.average_precision, found.card_precision_100) == (1.0, 1.0, 0.02)
    assert (found.rows, found.frauds, found.why) == (4, 2, None)


@pytest.mark.parametrize(("fraud", "why"), [([], "no test rows"), ([0, 0], "no fraud"), ([1], "only fraud")])
def test_quality_says_why_it_was_not_measured(fraud, why):
    fraud = np.array(fraud, np.int8)
    found = quality(fraud.astype(float), fraud, np.arange(len(fraud)), np.zeros(len(fraud), np.int64))
    assert found.average_precision is None
    assert why in found.why


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 40), st.integers(0, 3)), max_size=40),
    st.integers(1, 12),
    st.integers(0, 12),
)
def test_trailing_windows_are_what_the_contract_says(rows, window, delay):
    rows = sorted(rows, key=lambda row: row[1])
    key, time, value = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    count, total = trailing(key, time, value.astype(float), window, delay)
    for i in range(len(rows)):
        inside = [
            j
            for j in range(len(rows))
            if key[j] == key[i]
            and key[i] >= 0
            and time[i] - delay - window < time[j] <= time[i] - delay
            and (delay > 0 or j <= i)
        ]
        assert count[i] == len(inside)
        assert total[i] == value[inside].sum()


def test_rate_of_an_empty_window_is_zero():
    window = SharedWindow("X", "terminal", "rate", 10, 5)
    one = np.array([3], np.int64)
    assert shared_window(window, one, one, np.array([1], np.int8)).tolist() == [0.0]


def test_unknown_statistic_is_refused_by_name():
    one = np.array([3], np.int64)
    with pytest.raises(ValueError, match="X: no statistic 'median'"):
        shared_window(SharedWindow("X", "terminal", "median", 10, 0), one, one, np.array([1], np.int8))


def test_streams_too_long_for_one_order_are_refused():
    with pytest.raises(OverflowError):
        trailing(np.arange(2), np.array([0, 2**61]), np.zeros(2), 10)


def test_daily_counts_hold_completely_matured_days_only():
    day = np.array([10, 10, 11, 18, 19])
    bank = np.array([0, 1, 1, 0, 0])
    cell = np.array([4, 4, 4, 4, -1])
    counts = BankDayCounts(bank, cell, day, np.array([1, 1, 1, 0, 1], np.int8), 2, 5)
    # day 18, delay 7: days up to 10 are matured; day 11's last transactions are not
    assert counts.of_banks(1, 7)[:, 3].tolist() == [1, 1]
    assert counts.of_banks(30, 6)[:, 3].tolist() == [1, 2]
    assert counts.of_banks(30, 7)[:, 4].tolist() == [0, 0]  # an event without a terminal


def test_admitted_starts_with_oneself_and_ends_with_everybody():
    assert admitted(3, 1).tolist() == np.eye(3, dtype=bool).tolist()
    assert admitted(3, 2).tolist() == [[True, True, False], [True, True, False], [True, False, True]]
    assert admitted(3, 3).all()


WEEKS = Weeks(dt.date(2018, 7, 25), 7, 7, 7)


def test_weeks_from_a_mapping():
    table = {"train_first": "2018-07-25", "train_days": 7, "delay_days": 7, "test_days": 7}
    assert Weeks.from_table(table) == WEEKS
    assert EPOCH + dt.timedelta(WEEKS.first_test_day) == dt.date(2018, 8, 8)


@pytest.mark.parametrize(
    "change", [{"train_days": 0}, {"test_days": 0}, {"delay_days": -1}, {"train_first": "July"}]
)
def test_bad_weeks_are_refused(change):
    table = {"train_first": "2018-07-25", "train_days": 7, "delay_days": 7, "test_days": 7}
    with pytest.raises(ValueError, match=r"\[evaluation\]|isoformat"):
        Weeks.from_table(table | change)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="train_first"):
        Weeks.from_table({})


def test_known_customers_leave_the_test():
    first = WEEKS.first_train_day
    day = np.array([first, first + 7, first + 14, first + 14, first + 15, first + 15])
    customer = np.array([1, 2, 1, 2, 2, 3])
    fraud = np.array([1, 1, 0, 0, 0, 0], np.int8)
    # 1 was a victim in training; 2's fraud on day 7 is confirmed before day 15 of the test, but not before day 14
    assert WEEKS.test_rows(day, customer, fraud).tolist() == [False, False, False, True, False, True]
    assert WEEKS.train_rows(day).tolist() == [True] + [False] * 5
