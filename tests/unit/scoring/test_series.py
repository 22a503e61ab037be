"""Daily counts: windows of completely matured days against a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.series import DAY_US, DailyCounts, SeriesError

KEYS = np.array([70, 10, 50], dtype=np.uint64)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), max_size=30),
    days=st.integers(1, 12),
    delay=st.integers(0, 8),
    events=st.lists(
        st.tuples(st.sampled_from([70, 10, 50, 99]), st.integers(95, 140), st.integers(0, DAY_US - 1)),
        min_size=1,
    ),
)
def test_windows_equal_a_plain_sum(counts, days, delay, events):
    series = DailyCounts(KEYS, first_day=100)
    for offset, row in enumerate(counts):
        series.add_day(100 + offset, np.array(row))
    keys = np.array([event[0] for event in events], dtype=np.uint64)
    times = np.array([event[1] * DAY_US + event[2] for event in events], dtype=np.int64)
    found = series.window(keys, times, days, delay)
    for (key, day, _), value in zip(events, found, strict=True):
        cell = {70: 0, 10: 1, 50: 2}.get(key)
        wanted = 0
        for past in range(day - delay - days, day - delay):
            if cell is not None and 0 <= past - 100 < len(counts):
                wanted += counts[past - 100][cell]
        assert value == wanted


def test_a_day_is_visible_only_when_all_its_labels_are_known():
    series = DailyCounts(KEYS, first_day=10)
    series.add_day(10, np.array([1, 0, 0]))
    key = KEYS[:1]
    # With a delay of 7 days, fraud of day 10 is known to the end on day 18 at midnight.
    assert series.window(key, np.array([18 * DAY_US - 1]), 1, 7)[0] == 0
    assert series.window(key, np.array([18 * DAY_US]), 1, 7)[0] == 1
    assert series.window(key, np.array([19 * DAY_US]), 1, 7)[0] == 0


def test_the_zone_decides_what_a_day_is():
    series = DailyCounts(KEYS, first_day=10, day_of=lambda time_us: (time_us + 3_600_000_000) // DAY_US)
    series.add_day(10, np.array([4, 0, 0]))
    assert series.window(KEYS[:1], np.array([11 * DAY_US - 3_600_000_000]), 1, 0)[0] == 4


def test_days_come_in_order_and_repeat_only_unchanged():
    series = DailyCounts(KEYS, first_day=5)
    series.add_day(5, np.array([1, 2, 3]))
    series.add_day(5, np.array([1, 2, 3]))
    assert series.next_day == 6
    with pytest.raises(SeriesError, match="other counts"):
        series.add_day(5, np.array([1, 2, 4]))
    with pytest.raises(SeriesError, match="day 6 comes next"):
        series.add_day(7, np.array([1, 2, 3]))
    with pytest.raises(SeriesError, match="day 6 comes next"):
        series.add_day(4, np.array([1, 2, 3]))
    with pytest.raises(SeriesError, match="negative"):
        series.add_day(6, np.array([1, -2, 3]))
    with pytest.raises(SeriesError, match="3 integers"):
        series.add_day(6, np.array([1, 2]))
    with pytest.raises(SeriesError, match="3 integers"):
        series.add_day(6, np.array([1.0, 2.0, 3.0]))
    with pytest.raises(SeriesError, match="twice"):
        DailyCounts(np.array([1, 1], dtype=np.uint64), 0)


def test_old_days_fall_out_and_asking_for_them_is_refused():
    series = DailyCounts(KEYS, first_day=0, retain_days=10)
    for day in range(200):
        series.add_day(day, np.array([day, 1, 0]))
    now = np.array([200 * DAY_US])
    assert series.window(KEYS[:1], now, 10, 0)[0] == sum(range(190, 200))
    assert series.day(199).tolist() == [199, 1, 0]
    with pytest.raises(SeriesError, match="oldest"):
        series.window(KEYS[:1], now, 150, 0)
    with pytest.raises(SeriesError, match="not held"):
        series.day(3)


def test_an_empty_directory_gives_zeros():
    series = DailyCounts(np.array([], dtype=np.uint64), first_day=0)
    assert series.window(KEYS, np.zeros(3, dtype=np.int64), 1, 0).tolist() == [0, 0, 0]
