"""Local hours and weekdays, filters on them, and derived features, row by row in plain Python."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scoring.features import (
    Calendar,
    CalendarFeature,
    Clock,
    Derivation,
    DerivedFeature,
    FeatureEngine,
    FeatureSpec,
    FieldFeature,
    Filter,
    Span,
)
from scoring.features.calendar import local_times
from scoring.features.frame import Frame
from scoring.features.immediate import FilterTable, Immediate
from scoring.features.spec_model import DAY_US, HOUR_US
from scoring.schema import ENTITIES, Channel, TransactionBatch, transaction_batch

# offsets of half and three quarters of an hour, changes at odd seconds (Monrovia 1972), a day left out (Apia 2011),
# changes by half an hour (Lord Howe), a month without summer time (Casablanca), none at all
ZONES = [
    "Europe/Madrid",
    "America/New_York",
    "Asia/Kathmandu",
    "Africa/Monrovia",
    "Pacific/Apia",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "UTC",
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# microseconds around changes of these zones: 2024-03-31 and 2024-10-27, Monrovia's and Apia's
CHANGES = [1_711_846_800, 1_729_990_800, 63_593_070, 1_325_239_200, 1_712_415_600]
times = st.one_of(
    st.integers(0, 7_258_118_400_000_000),
    st.builds(
        lambda change, offset: change * 1_000_000 + offset,
        st.sampled_from(CHANGES),
        st.integers(-3_700_000_000, 3_700_000_000),
    ),
    st.builds(lambda change, side: change * 1_000_000 + side, st.sampled_from(CHANGES), st.integers(-1, 1)),
)


def wall(clock: Clock, time: int) -> datetime:
    moment = EPOCH + timedelta(microseconds=time)
    if clock.zone:
        return moment.astimezone(ZoneInfo(clock.zone))
    return moment + timedelta(microseconds=clock.utc_offset_us)


clocks = st.one_of(
    st.builds(Clock, st.sampled_from(ZONES)),
    st.builds(Clock, st.just(""), st.integers(-86_399_999_999, 86_399_999_999)),
)


def hours_of(clock: Clock, moments: NDArray[np.int64]) -> NDArray[np.int64]:
    return local_times(clock, moments) % DAY_US // HOUR_US


def timed(moments: NDArray[np.int64]) -> TransactionBatch:
    return transaction_batch(
        event_id=np.arange(len(moments)),
        time_us=moments,
        amount=np.ones(len(moments)),
        channel=Channel.CARD,
        entities={},
    )


@settings(max_examples=150, deadline=None)
@given(clocks, st.lists(times, min_size=1, max_size=30), st.integers(0, 23))
@example(Clock("Europe/Madrid"), [1_729_990_800_000_000 - 1, 1_729_990_800_000_000], 2)
def test_the_wall_clock_is_that_of_datetime(clock: Clock, moments: list[int], last_hour: int) -> None:
    column = np.array(moments, np.int64)
    walls = [wall(clock, time) for time in moments]
    expected = {
        Calendar.HOUR: [w.hour for w in walls],
        Calendar.WEEKDAY: [w.weekday() for w in walls],
        Calendar.WEEKEND: [w.weekday() >= 5 for w in walls],
        Calendar.NIGHT: [w.hour <= last_hour for w in walls],
    }
    for part, values in expected.items():
        feature = CalendarFeature("x", part, clock.utc_offset_us, last_hour, clock.zone)
        immediate, frame = Immediate(FeatureSpec((feature,)), {}), Frame((), (), 1)
        immediate.bind(frame)
        frame.read(timed(column))
        immediate.fill(timed(column), {}, frame)
        assert frame.values[:, 0].tolist() == [float(value) for value in values]


def test_an_hour_that_comes_twice_comes_twice() -> None:
    """The night of 27 October 2024 in Madrid: 2:30 summer time, 2:30 winter time."""
    moments = np.array([1_729_989_000, 1_729_992_600], np.int64) * 1_000_000
    assert hours_of(Clock("Europe/Madrid"), moments).tolist() == [2, 2]


events = st.fixed_dictionaries(
    {
        "time": times,
        "amount": st.sampled_from([0.0, 1.0, 5.0, 100.0]),
        "score": st.sampled_from([math.nan, -1.0, 0.5, 2.0]),
        "channel": st.sampled_from(list(Channel)),
        "card": st.integers(0, 2),
        "device": st.integers(0, 2),
    }
)
names = st.lists(st.sampled_from(["card", "device", "ip"]), unique=True, max_size=2).map(tuple)
filters = st.builds(
    Filter,
    name=st.just("f"),
    channels=st.none() | st.lists(st.sampled_from(list(Channel)), min_size=1).map(tuple),
    amount_min=st.sampled_from([-math.inf, 1.0]),
    amount_max=st.sampled_from([math.inf, 5.0]),
    spans=st.sampled_from([(), (Span("score", 0.5, 2.0),), (Span("score"), Span("amount", 1.0))]),
    present=names,
    absent=names,
    hours=st.none() | st.lists(st.integers(0, 23), min_size=1).map(tuple),
    weekdays=st.none() | st.lists(st.integers(0, 6), min_size=1).map(tuple),
    clock=clocks,
)


def batch_of(rows: list[dict[str, object]]) -> TransactionBatch:
    return transaction_batch(
        event_id=np.arange(len(rows)),
        time_us=np.array([row["time"] for row in rows], np.int64),
        amount=[row["amount"] for row in rows],
        channel=np.array([row["channel"] for row in rows], np.uint8),
        entities={name: [row[name] or None for row in rows] for name in ("card", "device")},
        numbers={"score": [row["score"] for row in rows]},
    )


@settings(max_examples=100, deadline=None)
@given(filters, st.lists(events, min_size=1, max_size=20))
def test_a_filter_is_all_of_its_conditions(condition: Filter, rows: list[dict[str, object]]) -> None:
    def meets(row: dict[str, object]) -> bool:
        local = wall(condition.clock, int(str(row["time"])))
        return (
            (condition.channels is None or row["channel"] in condition.channels)
            and condition.amount_min <= float(str(row["amount"])) <= condition.amount_max
            and all(span.low <= float(str(row[span.number])) <= span.high for span in condition.spans)
            and all(row.get(name) for name in condition.present)
            and not any(row.get(name) for name in condition.absent)
            and (condition.hours is None or local.hour in condition.hours)
            and (condition.weekdays is None or local.weekday() in condition.weekdays)
        )

    batch = batch_of(rows)
    local = local_times(condition.clock, batch.time_us)[None]
    table = FilterTable([condition], {"f": 3}, [condition.clock])
    frame = Frame(table.numbers, table.categories, 0)
    table.bind(frame)
    frame.read(batch)
    table.flags(frame, local)
    assert frame.flags.tolist() == [1 + 8 * meets(row) for row in rows]


numbers = st.one_of(st.sampled_from([0.0, -0.0, math.nan, math.inf, 1e308, -1e308]), st.floats(-1e6, 1e6))
NAMES = ("a", "b", "d0", "d1", "d2", "d3")
KINDS = (Derivation.RATIO, Derivation.DIFFERENCE)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=4),
    st.permutations(range(6)),
)
def test_derived_features_are_their_formulas(
    rows: list[tuple[float, float]], steps: list[tuple[Derivation, int, int]], order: list[int]
) -> None:
    """In any order of definition; each may be made of those before it in ``NAMES``."""
    derived = [
        DerivedFeature(f"d{n}", kind, NAMES[one % (n + 2)], NAMES[other % (n + 2)], -3.0)
        for n, (kind, one, other) in enumerate(steps)
    ]
    features = [FieldFeature("a", "a"), FieldFeature("b", "b"), *derived]
    spec = FeatureSpec(tuple(features[place] for place in order))
    batch = transaction_batch(
        event_id=np.arange(len(rows)),
        time_us=np.full(len(rows), 10**15),
        amount=np.ones(len(rows)),
        channel="card",
        entities=dict.fromkeys(ENTITIES[:0]),
        numbers={"a": [a for a, _ in rows], "b": [b for _, b in rows]},
    )
    matrix = FeatureEngine(spec).update(batch)
    for row, (a, b) in enumerate(rows):
        known = {"a": a, "b": b}
        for feature in derived:
            one, other = known[feature.first], known[feature.second]
            try:
                result = one - other if feature.derivation is Derivation.DIFFERENCE else one / other
            except ZeroDivisionError:
                result = math.nan
            known[feature.name] = result if math.isfinite(result) else -3.0
        for name, value in known.items():
            got = matrix.column(name)[row]
            assert got == value or (math.isnan(got) and math.isnan(value)), name


@pytest.mark.parametrize("zone", ZONES)
def test_many_times_at_once_are_fast_enough_to_be_looked_up(zone: str) -> None:
    """A day of events meets the database once per hour, not once per event."""
    day = 1_729_987_200_000_000 + np.arange(200_000, dtype=np.int64) * 432_000
    hours = hours_of(Clock(zone), day)
    picked = np.arange(0, 200_000, 9_973)
    assert hours[picked].tolist() == [wall(Clock(zone), int(day[row])).hour for row in picked]
