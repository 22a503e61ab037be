"""What a feature engine costs when it is large: stalls while one key is hot, and bytes per entity and event."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandbox.bench.result import Histogram
from scoring.features import (
    Aggregation,
    Calendar,
    CalendarFeature,
    FeatureEngine,
    FeatureSpec,
    WindowFeature,
)
from scoring.schema import Channel, TransactionBatch, transaction_batch

_EDGES_MS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0)
DAY_US = 86_400_000_000
_START_US = 1_700_000_000_000_000


@dataclass(frozen=True, eq=False)
class Stalls:
    """Milliseconds of each update of ``rows`` events: on the wall's clock, and of the processor."""

    rows: int
    held: int
    wall_ms: NDArray[np.float64]
    processor_ms: NDArray[np.float64]

    @property
    def histogram(self) -> Histogram:
        """Of the processor's time."""
        counts = np.histogram(self.processor_ms, (*_EDGES_MS[:-1], np.inf))[0]
        return Histogram(_EDGES_MS, tuple(int(count) for count in counts), float(self.processor_ms.max()))

    @property
    def text(self) -> str:
        counts = self.histogram.counts
        names = (*(f"< {edge:g}" for edge in _EDGES_MS[1:-1]), "more")
        spread = ", ".join(
            f"{name} ms: {count:,}" for name, count in zip(names, counts, strict=True) if count
        )
        return (
            f"{len(self.processor_ms):,} updates of {self.rows} events, {self.held:,} events held for one customer at"
            f" the end; processor time {spread}; p50 {np.median(self.processor_ms):.2f},"
            f" p99.9 {np.percentile(self.processor_ms, 99.9):.2f}, worst {self.processor_ms.max():.2f} ms; on the wall,"
            f" others on the machine included, worst {self.wall_ms.max():.2f} ms"
        )


def stalls_of_a_hot_key(events: int, rows: int = 64) -> Stalls:
    """One customer's ``events`` within the windows, a tenth of them late, in updates of ``rows``: a bound on each."""
    kinds = (
        *(Aggregation.MEAN, Aggregation.STD, Aggregation.KURTOSIS, Aggregation.RANGE, Aggregation.LAST),
        *(Aggregation.LONGEST_UP, Aggregation.SLOPE),
    )
    features = [
        WindowFeature(f"{kind}_{days}", "customer", kind, days * DAY_US, "amount")
        for kind in kinds
        for days in (1, 30)
    ]
    features.append(WindowFeature("rate", "customer", Aggregation.RATE, 20 * DAY_US, delay_us=7 * DAY_US))
    features.append(WindowFeature("since", "customer", Aggregation.TIME_SINCE_LAST, 30 * DAY_US))
    return _stalls(FeatureSpec(tuple(features)), _hot(events, 40), rows)


def stalls_of_a_told_hot_key(events: int, rows: int = 64) -> Stalls:
    """The same customer, for what must be told apart or ordered: exact while a window is short, then sampled."""
    features = (
        WindowFeature("distinct_7", "customer", Aggregation.DISTINCT, 7 * DAY_US, "terminal"),
        WindowFeature("distinct_30", "customer", Aggregation.DISTINCT, 30 * DAY_US, "terminal"),
        WindowFeature("entropy_30", "customer", Aggregation.ENTROPY, 30 * DAY_US, "terminal"),
        WindowFeature("median_7", "customer", Aggregation.QUANTILE, 7 * DAY_US, "amount", quantile=0.5),
        WindowFeature("high_30", "customer", Aggregation.QUANTILE, 30 * DAY_US, "amount", quantile=0.99),
    )
    return _stalls(FeatureSpec(features), _hot(events, 40), rows)


def _stalls(spec: FeatureSpec, batch: TransactionBatch, rows: int) -> Stalls:
    FeatureEngine(spec).update(batch.take(slice(0, rows)))  # compiles
    engine = FeatureEngine(spec)
    parts = [batch.take(slice(begin, begin + rows)) for begin in range(0, len(batch), rows)]
    wall, processor = [], []
    # As a node does when it starts: what the compiler left is not looked through while events wait.
    gc.collect()
    gc.freeze()
    try:
        for part in parts:
            began, spent = time.perf_counter(), time.thread_time()
            engine.update(part)
            processor.append(time.thread_time() - spent)
            wall.append(time.perf_counter() - began)
    finally:
        gc.unfreeze()
    held = sum(engine.size().events.values())
    return Stalls(rows, held, 1e3 * np.array(wall), 1e3 * np.array(processor))


def _hot(events: int, days: int) -> TransactionBatch:
    random = np.random.default_rng(2)
    times = _START_US + np.sort(random.integers(0, days * DAY_US, events))
    late = random.random(events) < 0.1
    times[late] -= random.integers(0, 3_500_000_000, int(late.sum()))
    return transaction_batch(
        event_id=np.arange(events),
        time_us=times,
        amount=np.round(random.lognormal(3, 1, events), 2),
        channel=Channel.CARD,
        entities={"customer": np.ones(events, np.int64), "terminal": random.integers(0, 50_000, events)},
    )


@dataclass(frozen=True)
class BytesHeld:
    """Bytes of a customer with one event, of one event more, and of an event's record while it may be corrected."""

    entity: float
    event: float
    record: float

    @property
    def text(self) -> str:
        return (
            f"count, mean and std of amount in 1, 7 and 30 days: {self.entity:.0f} bytes for a customer with one event,"
            f" {self.event:.0f} for each further event, {self.record:.0f} for the record of each event that may still"
            " be corrected"
        )


def bytes_held(entities: int = 100_000, events: int = 50) -> BytesHeld:
    """Measured on ``entities`` customers with one event each, and a fiftieth as many with ``events`` each.

    The records are what an engine without windows holds.
    """
    windows = FeatureSpec(
        tuple(
            WindowFeature(f"{kind}_{days}", "customer", kind, days * DAY_US, value)
            for kind, value in (
                (Aggregation.COUNT, None),
                (Aggregation.MEAN, "amount"),
                (Aggregation.STD, "amount"),
            )
            for days in (1, 7, 30)
        )
    )
    records = _held(FeatureSpec((CalendarFeature("hour", Calendar.HOUR),)), entities, entities)
    one = (_held(windows, entities, entities) - records) / entities
    few = entities // events
    many = (_held(windows, few * events, few) - records) / few
    return BytesHeld(entity=one, event=(many - one) / (events - 1), record=records / entities)


def _held(spec: FeatureSpec, events: int, customers: int) -> int:
    """Bytes an engine holds after ``events`` events spread over ``customers``."""
    engine = FeatureEngine(spec)
    for begin in range(0, events, 4096):
        ids = np.arange(begin, min(begin + 4096, events))
        engine.update(
            transaction_batch(
                event_id=ids,
                time_us=_START_US + ids,
                amount=np.ones(len(ids)),
                channel=Channel.CARD,
                entities={"customer": ids % customers},
            )
        )
    return engine.size().nbytes
