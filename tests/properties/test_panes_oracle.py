"""Paned windows against an oracle that keeps every event and looks at the panes' definition only."""

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
    FeatureMatrix,
    FeatureSpec,
    Filter,
    WindowFeature,
    join_shards,
)
from scoring.schema import Channel, OutcomeBatch, TransactionBatch, transaction_batch

SECOND = 1_000_000
PANE = 60 * SECOND
START = 28_333_333 * PANE
LATENESS = 100 * SECOND
HORIZON = 400 * SECOND
CARD = Filter("card", channels=(Channel.CARD,))
PANED = [
    Aggregation.COUNT,
    Aggregation.SUM,
    Aggregation.MEAN,
    Aggregation.VARIANCE,
    Aggregation.STD,
    Aggregation.SKEWNESS,
    Aggregation.KURTOSIS,
    Aggregation.MOMENT,
    Aggregation.MIN,
    Aggregation.MAX,
    Aggregation.RANGE,
    Aggregation.RATE,
    Aggregation.DISTINCT,
    Aggregation.TIME_SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST,
]
SINCE = (Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST)
PLAIN = (Aggregation.COUNT, Aggregation.RATE, *SINCE)


def _features() -> tuple[WindowFeature, ...]:
    features = []
    for entity, told in (("customer", "terminal"), ("terminal", "channel"), ("customer+terminal", "channel")):
        for aggregation in PANED:
            for panes in (2, 5):
                for delay in (0, 90):
                    if "+" in entity and (delay or panes == 5):
                        continue
                    for condition, exclude in ((None, False), ("card", True)):
                        if aggregation in SINCE and delay:
                            continue
                        value: str | None = "score" if condition is None else "amount"
                        if aggregation in PLAIN:
                            value = None
                        elif aggregation is Aggregation.DISTINCT:
                            value = told
                        features.append(
                            WindowFeature(
                                name=f"{entity}.{aggregation}.{panes}.{delay}.{exclude}".replace("+", "-"),
                                entity=entity,
                                aggregation=aggregation,
                                window_us=panes * PANE,
                                value=value,
                                delay_us=delay * SECOND,
                                filter=condition,
                                exclude_current=exclude,
                                empty=-7.0,
                                moment=5 if aggregation is Aggregation.MOMENT else 0,
                                panes=panes,
                            )
                        )
    return tuple(features)


SPEC = FeatureSpec(_features(), (CARD,), LATENESS, HORIZON)


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

    def key(self, entity: str) -> object:
        parts = tuple(getattr(self, part) for part in entity.split("+"))
        return None if 0 in parts else parts


@dataclass
class Kept:
    event: Event
    fraud: bool = False


class Oracle:
    """All events that count, as they are now."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}
        self.watermark: int | None = None

    def row(self, event: Event, outcomes: dict[int, bool]) -> tuple[Disposition, list[float]]:
        nothing = [math.nan] * len(SPEC.features)
        before = self.kept.get(event.id)
        if self.watermark is not None:
            age = self.watermark - event.time
            if age > HORIZON:
                return Disposition.REFUSED_BEYOND_HORIZON, nothing
            if before is not None and self.watermark - before.event.time > HORIZON:
                before = None
        if event.correction and before is None:
            return Disposition.REFUSED_NOTHING_TO_CORRECT, nothing
        if before is not None and not event.correction:
            return Disposition.DUPLICATE, nothing
        if before is None and self.watermark is not None and age > LATENESS:
            return Disposition.REFUSED_LATE, nothing
        self.watermark = event.time if self.watermark is None else max(self.watermark, event.time)
        for identity, fraud in outcomes.items():
            if identity in self.kept:
                self.kept[identity].fraud = fraud
        outcomes.clear()
        kept = before or Kept(event)
        kept.event = event
        if before is None and event.id in self.kept:
            self.kept[-1 - len(self.kept)] = self.kept.pop(event.id)  # forgotten by id, still in windows
        self.kept[event.id] = kept
        disposition = Disposition.APPLIED if before is None else Disposition.CORRECTED
        return disposition, [self.feature(kept, f) for f in SPEC.windows]

    def feature(self, current: Kept, f: WindowFeature) -> float:
        end = current.event.time - f.delay_us
        assert self.watermark is not None
        reach = max(g.window_us + g.delay_us for g in SPEC.windows if g.entity == f.entity)
        if end - f.window_us < self.watermark - reach - LATENESS:
            return math.nan  # so far back that the window is not kept whole
        key = current.event.key(f.entity)
        if key is None:
            return f.empty
        # the panes (k p, (k + 1) p] that share a microsecond with (end - window, end]
        first, last = (end - f.window_us) // PANE, -(-end // PANE) - 1
        chosen = []
        for kept in self.kept.values():
            pane = -(-kept.event.time // PANE) - 1
            if kept.event.key(f.entity) != key or not first <= pane <= last:
                continue
            if kept is current and (f.exclude_current or f.delay_us or f.aggregation in SINCE):
                continue
            if f.filter is None or kept.event.card:
                chosen.append(kept)
        return aggregate(f, chosen, current)


def aggregate(f: WindowFeature, chosen: list[Kept], current: Kept) -> float:
    kind = f.aggregation
    if not chosen:
        return f.empty
    if kind is Aggregation.COUNT:
        return float(len(chosen))
    if kind is Aggregation.RATE:
        return sum(k.fraud for k in chosen) / len(chosen)
    if kind in SINCE:
        ages = [(current.event.time - k.event.time) / SECOND for k in chosen]
        return max(ages) if kind is Aggregation.TIME_SINCE_FIRST else min(ages)
    if kind is Aggregation.DISTINCT:
        told = "card" if f.value == "channel" else str(f.value)
        found = {getattr(k.event, told) for k in chosen}
        return float(len(found - {0} if told == "terminal" else found)) or f.empty
    values = [Fraction(x) for x in (getattr(k.event, str(f.value)) for k in chosen) if x == x]
    n = len(values)
    if not n:
        return f.empty
    mean = sum(values) / n

    def central(order: int) -> Fraction:
        return sum((x - mean) ** order for x in values) / n

    if kind in (Aggregation.VARIANCE, Aggregation.STD):
        if n < 2:
            return f.empty
        variance = float(central(2) * n / (n - 1))
        return variance if kind is Aggregation.VARIANCE else math.sqrt(variance)
    if kind in (Aggregation.SKEWNESS, Aggregation.KURTOSIS):
        if not central(2):
            return f.empty
        if kind is Aggregation.SKEWNESS:
            return float(central(3)) / float(central(2)) ** 1.5
        return float(central(4) / central(2) ** 2) - 3.0
    return {
        Aggregation.SUM: float(sum(values)),
        Aggregation.MEAN: float(mean),
        Aggregation.MOMENT: float(central(5)),
        Aggregation.MIN: float(min(values)),
        Aggregation.MAX: float(max(values)),
        Aggregation.RANGE: float(max(values) - min(values)),
    }[kind]


# far apart or equal, so that the shape of a sample is well conditioned
amounts = st.one_of(st.integers(0, 100).map(float), st.sampled_from([0.1, 1e6]))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], list[dict[int, bool]]]:
    """Events in arrival order, with late ones, equal times, repeats and corrections; outcomes before each."""
    clock = START + draw(st.sampled_from([0, 1, 59])) * SECOND
    events: list[Event] = []
    outcomes: list[dict[int, bool]] = []
    for number in range(draw(st.integers(1, 60))):
        clock += draw(st.sampled_from([0, 0, 1, 5, 20, 60, 200])) * SECOND
        jitter = draw(st.sampled_from([0, 0, 0, -1, 1]))  # microseconds beside the edge of a pane
        late = draw(st.sampled_from([0, 0, 0, 1, 60, 100, 101, 400, 401])) * SECOND
        again = draw(st.sampled_from(["new", "new", "new", "new", "repeat", "correct"])) if events else "new"
        identity = number if again == "new" else draw(st.sampled_from(events)).id
        time = clock - late + jitter
        if again == "correct" and draw(st.booleans()):
            time = next(e.time for e in reversed(events) if e.id == identity)
        known = {}
        if events and draw(st.booleans()):
            known[draw(st.sampled_from(events)).id] = draw(st.booleans())
        outcomes.append(known)
        events.append(
            Event(
                identity,
                time,
                draw(st.sampled_from([0, 1, 1, 1, 2])),
                draw(st.integers(0, 3)),
                draw(amounts),
                draw(st.one_of(st.just(math.nan), amounts.map(lambda x: -x))),
                draw(st.booleans()),
                again == "correct",
            )
        )
    return events, outcomes


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


def outcomes_of(known: dict[int, bool]) -> OutcomeBatch:
    """Outcomes that have been known for long."""
    ids = np.array(list(known), np.int64)
    return OutcomeBatch(ids, np.array(list(known.values()), np.bool_), np.zeros(len(known), np.int64))


def feed(
    engine: FeatureEngine, events: list[Event], outcomes: list[dict[int, bool]], cuts: list[int]
) -> list[tuple[TransactionBatch, FeatureMatrix]]:
    """A stream in batches; a batch ends before every event that has outcomes before it, and at ``cuts``."""
    edges = sorted({0, len(events), *cuts, *(at for at, known in enumerate(outcomes) if known)})
    parts = []
    for begin, end in pairwise(edges):
        batch = batch_of(events[begin:end])
        parts.append((batch, engine.update(batch, outcomes_of(outcomes[begin]))))
    return parts


@settings(max_examples=20, deadline=None)
@given(streams(), st.booleans())
def test_every_paned_feature_is_what_the_oracle_says(
    stream: tuple[list[Event], list[dict[int, bool]]], one_by_one: bool
) -> None:
    events, outcomes = stream
    oracle = Oracle()
    waiting: dict[int, bool] = {}
    rows = []
    for event, known in zip(events, outcomes, strict=True):
        waiting |= known
        rows.append(oracle.row(event, waiting))
    engine = FeatureEngine(SPEC)
    parts = feed(engine, events, outcomes, list(range(len(events))) if one_by_one else [])
    values = np.concatenate([matrix.values for _, matrix in parts])
    dispositions = np.concatenate([matrix.disposition for _, matrix in parts])
    biggest = max(1.0, *(abs(x) for e in events for x in (e.amount, e.score) if x == x))
    for actual, disposition, (wanted_disposition, wanted) in zip(values, dispositions, rows, strict=True):
        assert disposition == wanted_disposition
        for f, got, right in zip(SPEC.windows, actual, wanted, strict=True):
            power = {"variance": 2, "moment": 5}.get(f.aggregation, 1)
            exact = f.aggregation in (*PLAIN, Aggregation.DISTINCT, Aggregation.MIN, Aggregation.MAX)
            if f.aggregation in (Aggregation.SKEWNESS, Aggregation.KURTOSIS):
                tolerance = 1e-6 * max(1.0, abs(right))
            elif f.aggregation is Aggregation.STD:
                got, right, tolerance = got * abs(got), right * abs(right), 1e-9 * biggest**2
            else:
                tolerance = 0.0 if exact else 1e-9 * biggest**power
            same = abs(got - right) <= tolerance or (math.isnan(got) and math.isnan(right))
            assert same, (f.name, got, right)


@settings(max_examples=15, deadline=None)
@given(streams(), st.data())
def test_cuts_shards_and_snapshots_change_no_bit(
    stream: tuple[list[Event], list[dict[int, bool]]], data: st.DataObject
) -> None:
    events, outcomes = stream
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=5))
    whole = np.concatenate([m.values for _, m in feed(FeatureEngine(SPEC), events, outcomes, [])])
    pieces = feed(FeatureEngine(SPEC), events, outcomes, cuts)
    assert np.concatenate([m.values for _, m in pieces]).tobytes() == whole.tobytes()
    shards = [feed(FeatureEngine(SPEC, shard=s, shards=3), events, outcomes, cuts) for s in range(3)]
    for place, (batch, matrix) in enumerate(pieces):
        joined = join_shards([shard[place][1] for shard in shards], SPEC, batch)
        assert joined.values.tobytes() == matrix.values.tobytes()
    stop = data.draw(st.integers(0, len(events) - 1))
    first = FeatureEngine(SPEC)
    feed(first, events[:stop], outcomes[:stop], [])
    second = FeatureEngine(SPEC)
    second.restore(first.state())
    if data.draw(st.booleans()):
        first.sweep()  # what a sweep frees can matter no more
    one, other = (feed(engine, events[stop:], outcomes[stop:], []) for engine in (first, second))
    for (_, mine), (_, its) in zip(one, other, strict=True):
        assert mine.values.tobytes() == its.values.tobytes()


@pytest.mark.parametrize("corrections", [0, 40])
def test_a_busy_pane_of_many_parts(corrections: int) -> None:
    """Thousands of events in a pane, some replaced: what is left is what was never replaced."""
    random = np.random.default_rng(7)
    n = 5000
    time = START + 1 + np.sort(random.integers(0, PANE - 1, n))
    amount = random.gamma(2.0, 30.0, n)
    terminal = random.integers(1, 600, n)
    ids = np.arange(n)
    changed = random.choice(n, corrections, replace=False)
    new_amount = amount.copy()
    new_terminal = terminal.copy()
    new_amount[changed] = random.gamma(2.0, 30.0, corrections)
    new_terminal[changed] = random.integers(1, 600, corrections)

    def batch(rows: np.ndarray, amounts: np.ndarray, terminals: np.ndarray, again: bool) -> TransactionBatch:
        return transaction_batch(
            event_id=ids[rows],
            time_us=time[rows],
            amount=amounts[rows],
            channel="card",
            entities={"customer": np.ones(len(rows), int), "terminal": terminals[rows]},
            numbers={"score": amounts[rows]},
            correction=np.full(len(rows), again),
        )

    engine = FeatureEngine(SPEC)
    engine.update(batch(ids, amount, terminal, False))
    if corrections:
        engine.update(batch(changed, new_amount, new_terminal, True))
    probe = transaction_batch(
        event_id=[n + 1],
        time_us=[START + PANE],
        amount=[1.0],
        channel="card",
        entities={"customer": [1], "terminal": [999]},
        numbers={"score": [1.0]},
    )
    found = engine.update(probe)

    def got(kind: str) -> float:
        return float(found.column(f"customer.{kind}.2.0.True")[0])

    assert got("count") == n
    assert got("sum") == pytest.approx(new_amount.sum(), rel=1e-12)
    assert got("std") == pytest.approx(new_amount.std(ddof=1), rel=1e-9)
    deviation = new_amount - new_amount.mean()
    assert got("moment") == pytest.approx((deviation**5).mean(), rel=1e-8)
    assert got("skewness") == pytest.approx((deviation**3).mean() / new_amount.std() ** 3, rel=1e-9)
    assert got("kurtosis") == pytest.approx((deviation**4).mean() / new_amount.std() ** 4 - 3, rel=1e-9)
    assert got("max") == new_amount.max()
    assert got("distinct") == len(np.unique(new_terminal))
