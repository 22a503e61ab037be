"""Speed of the feature engine (``pytest tests/bench --benchmark-enable``). Streams are seeded, rates are per event."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from scoring.features import Aggregation, FeatureEngine, FeatureSpec, WindowFeature, parse_spec
from scoring.schema import OutcomeBatch, TransactionBatch, transaction_batch

SPECS = Path(__file__).resolve().parents[2] / "sandbox" / "features"
DAY = 86_400_000_000
EVENTS = 200_000
BATCH = 4096


def stream(events: int, days: int, customers: int, terminals: int) -> tuple[TransactionBatch, OutcomeBatch]:
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, days * DAY, events)) + 1_500_000_000_000_000
    batch = transaction_batch(
        event_id=np.arange(events),
        time_us=times,
        amount=np.round(random.lognormal(3.5, 1, events), 2),
        channel="card",
        entities={
            "customer": random.integers(0, customers, events),
            "terminal": random.integers(0, terminals, events),
        },
    )
    return batch, OutcomeBatch(batch.event_id, random.random(events) < 0.01, times + 7 * DAY)


def feed(engine: FeatureEngine, batch: TransactionBatch, outcomes: OutcomeBatch) -> None:
    for begin in range(0, len(batch), BATCH):
        part = slice(begin, begin + BATCH)
        known = OutcomeBatch(outcomes.event_id[part], outcomes.fraud[part], outcomes.known_at_us[part])
        engine.update(batch.take(part), known)


def test_handbook_spec_in_batches(benchmark: BenchmarkFixture) -> None:
    spec = parse_spec((SPECS / "handbook.toml").read_text())
    batch, outcomes = stream(EVENTS, 60, 2000, 4000)
    benchmark.pedantic(lambda: feed(FeatureEngine(spec), batch, outcomes), rounds=3, warmup_rounds=1)
    benchmark.extra_info["events"] = EVENTS
    if benchmark.stats:
        benchmark.extra_info["events_per_second"] = round(EVENTS / benchmark.stats["min"])


def test_one_event_at_a_time(benchmark: BenchmarkFixture) -> None:
    spec = parse_spec((SPECS / "handbook.toml").read_text())
    batch, _ = stream(20_000, 30, 200, 400)
    engine = FeatureEngine(spec)
    engine.update(batch.take(slice(0, 10_000)))
    singles = iter([batch.take(slice(i, i + 1)) for i in range(10_000, 20_000)])
    benchmark.pedantic(lambda: engine.update(next(singles)), rounds=500, warmup_rounds=10)


@pytest.mark.parametrize("events", [1_000_000])
def test_a_hot_entity_stalls_nobody(events: int, benchmark: BenchmarkFixture) -> None:
    """One customer has every event of the window; the worst single update stays short whatever the count."""
    if benchmark.disabled:
        events = 50_000
    spec = FeatureSpec(
        (
            WindowFeature("n", "customer", Aggregation.COUNT, 30 * DAY),
            WindowFeature("v", "customer", Aggregation.VARIANCE, 30 * DAY, "amount"),
        )
    )
    batch, _ = stream(events, 29, 1, 10)
    engine = FeatureEngine(spec)
    for begin in range(0, events, BATCH):
        engine.update(batch.take(slice(begin, begin + BATCH)))
    last = int(batch.time_us[-1])
    worst = []
    for i in range(300):
        single = transaction_batch(
            event_id=np.array([events + i]),
            time_us=np.array([last + i - (i % 3) * DAY // 100]),  # two of three are late
            amount=[1.0],
            channel="card",
            entities={"customer": np.array([0])},
        )
        begun = time.perf_counter()
        matrix = engine.update(single)
        worst.append(time.perf_counter() - begun)
        assert matrix.disposition[0] == 0
        assert i % 3 or matrix.values[0, 0] == events + i + 1
    benchmark.extra_info["worst_ms"] = round(1000 * max(worst), 2)
    benchmark.extra_info["median_us"] = round(1e6 * float(np.median(worst)))
    benchmark.pedantic(lambda: None, rounds=1)
    assert float(np.median(worst)) < 0.005
