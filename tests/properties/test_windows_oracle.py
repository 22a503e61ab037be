"""The window contract against an oracle that keeps every event and computes each window from scratch in fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

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


CATEGORIES = (Aggregation.DISTINCT, Aggregation.ENTROPY)
WITHOUT_VALUE = (
    Aggregation.COUNT,
    Aggregation.RATE,
    Aggregation.TIME_SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST,
)
ABOUT_OTHERS = (Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST, Aggregation.VELOCITY)
ZERO_WHEN_EMPTY = (Aggregation.COUNT, Aggregation.SUM, Aggregation.RATE, Aggregation.DISTINCT)
EXACT = (
    *(Aggregation.COUNT, Aggregation.DISTINCT, Aggregation.RATE, Aggregation.FIRST, Aggregation.LAST),
    *(Aggregation.MIN, Aggregation.MAX, Aggregation.RANGE, Aggregation.RUN_UP, Aggregation.RUN_DOWN),
    *(Aggregation.LONGEST_UP, Aggregation.LONGEST_DOWN, Aggregation.TIME_SINCE_FIRST),
    Aggregation.TIME_SINCE_LAST,
)
SHAPES = (  # window, delay, filter, exclude_current
    (5, 0, None, False),
    (40, 0, "card", True),
    (40, 15, LARGE, False),
    (40, 0, LARGE, False),
    (40, 0, None, False),
)


def _features() -> tuple[WindowFeature, ...]:
    features = []
    for place, aggregation in enumerate(Aggregation):
        for shape, (window, delay, condition, exclude) in enumerate(SHAPES):
            if aggregation in ABOUT_OTHERS and (delay or exclude):
                delay, exclude = 0, False
            entity = "customer" if (place + shape) % 2 else "terminal"
            value: str | None = "score" if shape % 3 else "amount"  # the score is sometimes missing
            if aggregation in WITHOUT_VALUE:
                value = None
            elif aggregation in CATEGORIES:
                value = "channel" if shape == 4 else ("terminal" if entity == "customer" else "customer")
            elif aggregation is Aggregation.VELOCITY:
                value = "latitude"
            features.append(
                WindowFeature(
                    name=f"{aggregation}.{shape}",
                    entity=entity,
                    aggregation=aggregation,
                    window_us=window * SECOND,
                    value=value,
                    delay_us=delay * SECOND,
                    filter=condition,
                    exclude_current=exclude,
                    empty=0.0 if aggregation in ZERO_WHEN_EMPTY else math.nan,
                    moment=2 + shape if aggregation is Aggregation.MOMENT else 0,
                    quantile=(0.5, 0.0, 0.9, 1.0, 0.25)[shape]
                    if aggregation is Aggregation.QUANTILE
                    else math.nan,
                    value2="longitude" if aggregation is Aggregation.VELOCITY else None,
                )
            )
    return tuple(features)


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
    latitude: float
    longitude: float
    card: bool
    correction: bool

    @property
    def channel(self) -> int:
        return int(Channel.CARD if self.card else Channel.TRANSFER)


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

    def row(self, event: Event) -> tuple[Disposition, list[Answer]]:
        nothing = [Answer(math.nan)] * len(SPEC.features)
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

    def features(self, current: Kept) -> list[Answer]:
        return [self.feature(current, f) for f in SPEC.features if isinstance(f, WindowFeature)]

    def feature(self, current: Kept, f: WindowFeature) -> Answer:
        end = current.event.time - f.delay_us
        begin = end - f.window_us
        assert self.watermark is not None
        if begin < self.watermark - RETENTION:
            return Answer(math.nan)
        entity = getattr(current.event, f.entity)
        if entity == 0:
            return Answer(f.empty)
        inside = []
        for kept in self.kept:
            e = kept.event
            if getattr(e, f.entity) != entity or not begin < e.time <= end:
                continue
            if e.time == current.event.time and kept.place > current.place:
                continue
            if kept is current and (f.exclude_current or f.aggregation in ABOUT_OTHERS):
                continue
            if passes(f, e):
                inside.append(kept)
        inside.sort(key=lambda k: (k.event.time, k.place))
        answer = aggregate(f, inside, current)
        return Answer(f.empty) if answer is None else answer


def passes(f: WindowFeature, e: Event) -> bool:
    return not (f.filter == "card" and not e.card) and not (f.filter == LARGE and not e.amount >= 50)


@dataclass(frozen=True)
class Answer:
    """The true value, and the size of the data it comes from: the error may be 1e-9 of that."""

    value: float
    condition: float = 1.0
    ill: bool = False  # decided by the last bits of the data


def aggregate(f: WindowFeature, inside: list[Kept], current: Kept) -> Answer | None:
    """None: nothing to aggregate."""
    kind = f.aggregation
    if kind in CATEGORIES:
        return categories(kind, [getattr(k.event, str(f.value)) for k in inside])
    if not inside:
        return None
    if kind is Aggregation.COUNT:
        return Answer(float(len(inside)))
    if kind is Aggregation.RATE:
        return Answer(float(Fraction(sum(k.fraud for k in inside), len(inside))))
    if kind is Aggregation.TIME_SINCE_LAST:
        return Answer((current.event.time - inside[-1].event.time) / SECOND)
    if kind is Aggregation.TIME_SINCE_FIRST:
        return Answer((current.event.time - inside[0].event.time) / SECOND)
    if kind is Aggregation.VELOCITY:
        return velocity(f, [k.event for k in inside], current.event)
    given = [(k.event.time, float(getattr(k.event, str(f.value)))) for k in inside]
    given = [(time, x) for time, x in given if x == x]
    if not given:
        return None
    if kind is Aggregation.SLOPE:
        return slope(given)
    return numbers(f, [x for _, x in given])


def categories(kind: Aggregation, keys: list[int]) -> Answer | None:
    counts = [keys.count(key) for key in set(keys) - {0}]
    if not counts:
        return None
    if kind is Aggregation.DISTINCT:
        return Answer(float(len(counts)))
    return Answer(-sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts))


def velocity(f: WindowFeature, earlier: list[Event], now: Event) -> Answer | None:
    placed = [e for e in earlier if not math.isnan(e.latitude + e.longitude)]
    if not placed or math.isnan(now.latitude + now.longitude) or not passes(f, now):
        return None
    before = placed[-1]

    def direction(e: Event) -> np.ndarray:
        latitude, longitude = math.radians(e.latitude), math.radians(e.longitude)
        flat = math.cos(latitude)
        return np.array([flat * math.cos(longitude), flat * math.sin(longitude), math.sin(latitude)])

    a, b = direction(before), direction(now)
    angle = math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b))
    hours = max(now.time - before.time, SECOND) / SECOND / 3600
    return Answer(6371.0088 * angle / hours, 6371 / hours)


def slope(given: list[tuple[int, float]]) -> Answer | None:
    n = len(given)
    middle = Fraction(sum(t for t, _ in given), n)
    mean = sum(Fraction(x) for _, x in given) / n
    squares = sum((t - middle) ** 2 for t, _ in given)
    if squares == 0:
        return None
    products = sum((t - middle) * (Fraction(x) - mean) for t, x in given)
    size = max(abs(x) for _, x in given) * sum(abs(t - middle) for t, _ in given) / squares
    return Answer(float(products / squares * 3600 * SECOND), float(size * 3600 * SECOND))


def longest(xs: list[float]) -> int:
    """Length of the longest strictly rising run."""
    best = run = 1
    for a, b in pairwise(xs):
        run = run + 1 if b > a else 1
        best = max(best, run)
    return best


def current_run(xs: list[float]) -> int:
    run = 1
    while run < len(xs) and xs[-run - 1] < xs[-run]:
        run += 1
    return run


def numbers(f: WindowFeature, xs: list[float]) -> Answer | None:
    kind, n, size = f.aggregation, len(xs), max(abs(x) for x in xs)
    unit = max(
        x.as_integer_ratio()[1] for x in xs
    )  # doubles are whole numbers of a power of two: fast and exact
    whole = [x.as_integer_ratio()[0] * (unit // x.as_integer_ratio()[1]) for x in xs]
    simple: dict[Aggregation, float] = {
        Aggregation.FIRST: xs[0],
        Aggregation.LAST: xs[-1],
        Aggregation.MIN: min(xs),
        Aggregation.MAX: max(xs),
        Aggregation.RANGE: float(Fraction(max(whole) - min(whole), unit)),
        Aggregation.RUN_UP: current_run(xs),
        Aggregation.RUN_DOWN: current_run([-x for x in xs]),
        Aggregation.LONGEST_UP: longest(xs),
        Aggregation.LONGEST_DOWN: longest([-x for x in xs]),
    }
    if kind in simple:
        return Answer(float(simple[kind]))
    if kind is Aggregation.SUM:
        return Answer(float(Fraction(sum(whole), unit)), n * size)
    if kind is Aggregation.MEAN:
        return Answer(float(Fraction(sum(whole), unit * n)), size)
    if kind is Aggregation.QUANTILE:
        ordered = [Fraction(x) for x in sorted(xs)]
        place = (n - 1) * Fraction(f.quantile)
        low = math.floor(place)
        high = min(low + 1, n - 1)
        return Answer(float(ordered[low] + (place - low) * (ordered[high] - ordered[low])), size)

    def central(k: int) -> Fraction:
        return Fraction(sum((n * x - sum(whole)) ** k for x in whole), n * (n * unit) ** k)

    if kind is Aggregation.MOMENT:
        return Answer(float(central(f.moment)), size**f.moment)
    if kind in (Aggregation.VARIANCE, Aggregation.STD):
        if n < 2:
            return None
        variance = float(central(2) * n / (n - 1))
        # near zero the root magnifies: the variances are compared
        return Answer(variance, size**2)
    if central(2) == 0:
        return None
    deviation = math.sqrt(float(central(2)))
    if kind is Aggregation.SKEWNESS:
        return Answer(float(central(3)) / deviation**3, (size / deviation) ** 3, size > 1e5 * deviation)
    return Answer(float(central(4) / central(2) ** 2 - 3), (size / deviation) ** 4, size > 1e5 * deviation)


amounts = st.one_of(
    st.integers(0, 100).map(float),
    st.floats(0, 1e9).map(lambda x: round(x, 4)),  # squares and cubes of amounts do not underflow
    st.sampled_from([1e9, 1e9 + 1, 1e9 - 1]),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[tuple[int, Known]]]:
    """Events in arrival order, with late ones, equal times, repeats and corrections; outcomes with their arrival."""
    count = draw(st.integers(1, 40))
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
                draw(
                    st.one_of(
                        st.just(math.nan),
                        st.integers(-(10**9), 10**9).map(lambda x: x / 1000),
                        st.integers(0, 3).map(float),
                    )
                ),
                draw(st.one_of(st.just(math.nan), st.floats(-90, 90))),
                draw(st.floats(-180, 180)),
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
        numbers={name: [getattr(e, name) for e in events] for name in ("score", "latitude", "longitude")},
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


def agrees(f: WindowFeature, actual: float, wanted: Answer) -> bool:
    if math.isnan(wanted.value) or math.isnan(actual):
        return wanted.ill or (math.isnan(wanted.value) and math.isnan(actual))
    if f.aggregation in EXACT:
        return actual == wanted.value
    if f.aggregation is Aggregation.STD:
        actual = actual**2
    return wanted.ill or abs(actual - wanted.value) <= 1e-9 * max(1.0, wanted.condition)


@settings(max_examples=40, deadline=None)
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
    for matrix, (disposition, expected) in zip(everything, rows, strict=True):
        assert matrix.disposition[0] == disposition
        for feature, actual, wanted in zip(SPEC.windows, matrix.values[0], expected, strict=True):
            assert agrees(feature, actual, wanted), (feature.name, actual, wanted)


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
