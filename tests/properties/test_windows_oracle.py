"""The window contract against an oracle that keeps every event and computes each window from scratch in fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.features import (
    Aggregation,
    Disposition,
    FeatureEngine,
    FeatureSpec,
    Filter,
    WindowFeature,
    join_shards,
)
from scoring.schema import Channel, OutcomeBatch, TransactionBatch, transaction_batch

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
LATENESS = 20 * SECOND
HORIZON = 60 * SECOND
CARD = Filter("card", channels=(Channel.CARD,))
LARGE = "large"  # given as a boolean column: amount >= 50


def _features() -> tuple[WindowFeature, ...]:
    features = []
    for entity in ("customer", "terminal"):
        told = "terminal" if entity == "customer" else "customer"
        for aggregation in Aggregation:
            for window in (5, 40):
                for delay in (0, 15):
                    for condition, exclude in ((None, False), ("card", True), (LARGE, False)):
                        if aggregation is Aggregation.TIME_SINCE_LAST and delay:
                            continue
                        value = None
                        if aggregation is Aggregation.DISTINCT:
                            value = told
                        elif aggregation in (Aggregation.SUM, Aggregation.VARIANCE):
                            value = "score"  # sometimes missing
                        elif aggregation in (Aggregation.MEAN, Aggregation.STD):
                            value = "amount"
                        features.append(
                            WindowFeature(
                                name=f"{entity}.{aggregation}.{window}.{delay}.{condition}.{exclude}",
                                entity=entity,
                                aggregation=aggregation,
                                window_us=window * SECOND,
                                value=value,
                                delay_us=delay * SECOND,
                                filter=condition,
                                exclude_current=exclude,
                                empty=math.nan if aggregation in NAN_WHEN_EMPTY else 0.0,
                            )
                        )
    return tuple(features)


NAN_WHEN_EMPTY = (
    Aggregation.MEAN,
    Aggregation.VARIANCE,
    Aggregation.STD,
    Aggregation.TIME_SINCE_LAST,
)
SPEC = FeatureSpec(_features(), (CARD,), LATENESS, HORIZON)
RETENTION = 55 * SECOND + LATENESS


@dataclass(frozen=True)
class Event:
    id: int
    time: int
    customer: int  # 0: missing
    terminal: int
    amount: float
    score: float
    card: bool
    correction: bool


@dataclass(frozen=True)
class Known:
    id: int
    fraud: bool
    at: int


@dataclass
class Kept:
    event: Event
    place: int
    fraud: bool = False


class Oracle:
    """Says what the contract says, with lists."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.by_id: dict[int, Kept] = {}
        self.watermark: int | None = None
        self.place = 0
        self.pending: list[Known] = []

    def row(self, event: Event) -> tuple[Disposition, list[float]]:
        nothing = [math.nan] * len(SPEC.features)
        before = self.by_id.get(event.id)
        if self.watermark is not None:
            age = self.watermark - event.time
            if age > HORIZON:
                return Disposition.REFUSED_BEYOND_HORIZON, nothing
            if before is not None and self.watermark - before.event.time > HORIZON:
                before = None  # no longer remembered
        if event.correction and before is None:
            return Disposition.REFUSED_NOTHING_TO_CORRECT, nothing
        if before is not None and not event.correction:
            return Disposition.DUPLICATE, nothing
        if before is None and self.watermark is not None and age > LATENESS:
            return Disposition.REFUSED_LATE, nothing
        self.watermark = event.time if self.watermark is None else max(self.watermark, event.time)
        due = [known for known in self.pending if known.at <= self.watermark]
        self.pending = [known for known in self.pending if known.at > self.watermark]
        for known in due:
            if known.id in self.by_id:
                self.by_id[known.id].fraud = known.fraud
        if before is not None:
            before.event = event
            return Disposition.CORRECTED, self.features(before)
        kept = Kept(event, self.place)
        self.place += 1
        self.kept.append(kept)
        self.by_id[event.id] = kept
        return Disposition.APPLIED, self.features(kept)

    def features(self, current: Kept) -> list[float]:
        return [self.feature(current, f) for f in SPEC.features if isinstance(f, WindowFeature)]

    def feature(self, current: Kept, f: WindowFeature) -> float:
        end = current.event.time - f.delay_us
        begin = end - f.window_us
        assert self.watermark is not None
        if begin < self.watermark - RETENTION:
            return math.nan
        entity = getattr(current.event, f.entity)
        if entity == 0:
            return f.empty
        inside = []
        for kept in self.kept:
            e = kept.event
            if getattr(e, f.entity) != entity or not begin < e.time <= end:
                continue
            if e.time == current.event.time and kept.place > current.place:
                continue
            if kept is current and (f.exclude_current or f.aggregation is Aggregation.TIME_SINCE_LAST):
                continue
            if (f.filter == "card" and not e.card) or (f.filter == LARGE and not e.amount >= 50):
                continue
            inside.append(kept)
        return aggregate(f, inside, current)


def aggregate(f: WindowFeature, inside: list[Kept], current: Kept) -> float:
    kind = f.aggregation
    if kind is Aggregation.DISTINCT:
        return float(len({getattr(k.event, str(f.value)) for k in inside} - {0})) or f.empty
    if kind is Aggregation.COUNT:
        return float(len(inside)) if inside else f.empty
    if kind is Aggregation.RATE:
        return float(Fraction(sum(k.fraud for k in inside), len(inside))) if inside else f.empty
    if kind is Aggregation.TIME_SINCE_LAST:
        times = [current.event.time - k.event.time for k in inside]
        return min(times) / SECOND if times else f.empty
    values = [Fraction(x) for x in (getattr(k.event, str(f.value)) for k in inside) if x == x]
    if kind is Aggregation.SUM:
        return float(sum(values)) if values else f.empty
    if kind is Aggregation.MEAN:
        return float(sum(values) / len(values)) if values else f.empty
    if len(values) < 2:
        return f.empty
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return float(variance) if kind is Aggregation.VARIANCE else math.sqrt(variance)


amounts = st.one_of(
    st.integers(0, 100).map(float),
    st.floats(0, 1e9, allow_nan=False),
    st.sampled_from([1e9, 1e9 + 1, 1e9 - 1]),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[tuple[int, Known]]]:
    """Events in arrival order, with late ones, equal times, repeats and corrections; outcomes with their arrival."""
    count = draw(st.integers(1, 60))
    clock = START
    events: list[Event] = []
    known: list[tuple[int, Known]] = []
    for number in range(count):
        clock += draw(st.sampled_from([0, 0, 1, 1, 2, 5, 30])) * SECOND
        late = draw(st.sampled_from([0, 0, 0, 1, 5, 19, 20, 21, 50, 60, 61])) * SECOND
        again = draw(st.sampled_from(["new", "new", "new", "repeat", "correct"])) if events else "new"
        identity = number if again == "new" else draw(st.sampled_from(events)).id
        time = clock - late
        if again == "correct" and draw(st.booleans()):
            time = next(e.time for e in reversed(events) if e.id == identity)
        events.append(
            Event(
                identity,
                time,
                draw(st.integers(0, 2)),
                draw(st.integers(0, 3)),
                draw(amounts),
                draw(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6))),
                draw(st.booleans()),
                again == "correct",
            )
        )
        if draw(st.booleans()):
            target = draw(st.sampled_from(events))
            at = target.time + draw(st.sampled_from([0, 10, 15, 40])) * SECOND
            known.append((number, Known(target.id, draw(st.booleans()), at)))
    return events, known


def batch_of(events: list[Event]) -> TransactionBatch:
    return transaction_batch(
        event_id=np.array([e.id for e in events], np.int64),
        time_us=np.array([e.time for e in events], np.int64),
        amount=[e.amount for e in events],
        channel=["card" if e.card else "transfer" for e in events],
        entities={
            name: np.array([getattr(e, name) or np.iinfo(np.int64).min for e in events], np.int64)
            for name in ("customer", "terminal")
        },
        numbers={"score": [e.score for e in events]},
        correction=[e.correction for e in events],
    )


def outcomes_of(known: list[Known]) -> OutcomeBatch:
    return OutcomeBatch(
        np.array([k.id for k in known], np.int64),
        np.array([k.fraud for k in known], np.bool_),
        np.array([k.at for k in known], np.int64),
    )


def feed(
    engine: FeatureEngine, events: list[Event], known: list[tuple[int, Known]], cuts: list[int]
) -> list[tuple[TransactionBatch, object]]:
    """Run a stream cut at ``cuts``; an outcome is given with the batch that holds the row it arrived after."""
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        if begin == end:
            continue
        part = events[begin:end]
        batch = batch_of(part)
        large = np.array([e.amount >= 50 for e in part], np.bool_)
        given_now = [k for place, k in known if begin <= place < end]
        parts.append((batch, engine.update(batch, outcomes_of(given_now), filters={LARGE: large})))
    return parts


def close(actual: float, expected: float, scale: float) -> bool:
    if math.isnan(expected) or math.isnan(actual):
        return math.isnan(expected) and math.isnan(actual)
    return abs(actual - expected) <= 1e-9 * max(1.0, scale)


@settings(max_examples=80, deadline=None)
@given(streams())
def test_every_feature_is_what_the_oracle_says(stream: tuple[list[Event], list[tuple[int, Known]]]) -> None:
    events, known = stream
    oracle = Oracle()
    engine = FeatureEngine(SPEC)
    rows = []
    for place in range(len(events)):
        given_now = [k for at, k in known if at == place]
        oracle.pending = sorted([*oracle.pending, *given_now], key=lambda k: k.at)
        rows.append(oracle.row(events[place]))
    everything = [matrix for _, matrix in feed(engine, events, known, list(range(1, len(events))))]
    biggest = max(
        (max(abs(e.amount), abs(e.score) if e.score == e.score else 0) for e in events), default=1.0
    )
    for matrix, (disposition, expected) in zip(everything, rows, strict=True):
        assert matrix.disposition[0] == disposition
        for name, actual, wanted in zip(SPEC.names, matrix.values[0], expected, strict=True):
            # the condition of a mean is the size of its data, of a variance its square
            squared = ".variance." in name
            scale = 0.0 if ".count." in name or ".distinct." in name else biggest
            if ".std." in name:  # near zero the root magnifies: compare the variances
                assert close(actual**2, wanted**2, biggest**2), name
            else:
                assert close(actual, wanted, scale**2 if squared else scale), name
            if ".count." in name or ".distinct." in name or ".rate." in name or ".time_since" in name:
                assert actual == wanted or (math.isnan(actual) and math.isnan(wanted)), name


@settings(max_examples=30, deadline=None)
@given(streams(), st.data())
def test_batches_and_shards_change_no_bit(
    stream: tuple[list[Event], list[tuple[int, Known]]], data: st.DataObject
) -> None:
    events, known = stream
    known = [(0, k) for _, k in known]  # all outcomes are given at the start, so that cuts cannot move them
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=5)))
    whole = feed(FeatureEngine(SPEC), events, known, [])
    pieces = feed(FeatureEngine(SPEC), events, known, cuts)
    values = np.concatenate([matrix.values for _, matrix in pieces])
    assert values.tobytes() == whole[0][1].values.tobytes()
    sharded = [feed(FeatureEngine(SPEC, shard=s, shards=3), events, known, cuts) for s in range(3)]
    for place, (batch, matrix) in enumerate(pieces):
        joined = join_shards([shard[place][1] for shard in sharded], SPEC, batch)
        assert joined.values.tobytes() == matrix.values.tobytes()
        assert np.array_equal(joined.disposition, matrix.disposition)


@settings(max_examples=25, deadline=None)
@given(streams(), st.data())
def test_a_restored_state_continues_bit_identically(
    stream: tuple[list[Event], list[tuple[int, Known]]], data: st.DataObject
) -> None:
    events, known = stream
    cut = data.draw(st.integers(0, len(events) - 1))
    first = FeatureEngine(SPEC)
    feed(first, events[:cut], [(p, k) for p, k in known if p < cut], [])
    second = FeatureEngine(SPEC)
    second.restore(first.state())
    rest = [(p - cut, k) for p, k in known if p >= cut]
    one = feed(first, events[cut:], rest, [])
    other = feed(second, events[cut:], rest, [])
    assert one[0][1].values.tobytes() == other[0][1].values.tobytes()
    assert first.size().events == second.size().events


def test_an_outlier_that_left_the_window_leaves_no_trace() -> None:
    spec = FeatureSpec(
        (WindowFeature("V", "customer", Aggregation.VARIANCE, 1000 * SECOND, "amount"),),
        (),
        LATENESS,
        HORIZON,
    )
    random = np.random.default_rng(1)
    n = 3000
    amounts = random.normal(100, 1, n)
    amounts[500] = 1e9
    times = START + np.arange(n, dtype=np.int64) * SECOND
    batch = transaction_batch(
        event_id=np.arange(n),
        time_us=times,
        amount=amounts,
        channel="card",
        entities={"customer": np.ones(n, int)},
    )
    values = FeatureEngine(spec).update(batch).column("V")
    for i in range(1500, n, 97):
        assert values[i] == pytest.approx(np.var(amounts[i - 999 : i + 1], ddof=1), rel=1e-9)


def test_a_spread_of_one_on_a_thousand_million_is_seen() -> None:
    spec = FeatureSpec(
        (WindowFeature("V", "customer", Aggregation.VARIANCE, 1000 * SECOND, "amount"),),
        (),
        LATENESS,
        HORIZON,
    )
    n = 2000
    amounts = 1e9 + np.where(np.arange(n) % 2, 1.0, -1.0)
    batch = transaction_batch(
        event_id=np.arange(n),
        time_us=START + np.arange(n, dtype=np.int64) * SECOND,
        amount=amounts,
        channel="card",
        entities={"customer": np.ones(n, int)},
    )
    values = FeatureEngine(spec).update(batch).column("V")
    assert values[-1] == pytest.approx(1000 / 999, rel=1e-6)
