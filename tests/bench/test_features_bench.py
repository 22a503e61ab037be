"""Speed of the feature engine (``pytest tests/bench --benchmark-enable``). Streams are seeded, rates are per event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from sandbox.bench.feature_state import stalls_of_a_hot_key, stalls_of_a_told_hot_key
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


def test_a_hot_entity_stalls_nobody(benchmark: BenchmarkFixture) -> None:
    """One customer with a million events: no update of 64 takes five milliseconds of the processor."""
    stalls = stalls_of_a_hot_key(50_000 if benchmark.disabled else 1_000_000)
    told = stalls_of_a_told_hot_key(20_000 if benchmark.disabled else 1_000_000)
    for name, part in (("hot", stalls), ("told", told)):
        benchmark.extra_info[name] = part.text
        assert float(np.median(part.processor_ms)) < 5.0
    benchmark.pedantic(lambda: None, rounds=1)


def test_five_million_cold_entities(benchmark: BenchmarkFixture) -> None:
    """Bytes per entity stay what one costs, and a month later the room of all is used again."""
    count = 100_000 if benchmark.disabled else 5_000_000
    features = tuple(
        WindowFeature(f"{kind}_{days}", "customer", kind, days * DAY, None if kind == "count" else "amount")
        for kind in (Aggregation.COUNT, Aggregation.MEAN, Aggregation.STD)
        for days in (1, 7, 30)
    )
    engine = FeatureEngine(FeatureSpec(features, correction_us=DAY))

    def arrive(first: int, last: int, start_us: int) -> None:
        for begin in range(first, last, BATCH):
            ids = np.arange(begin, min(begin + BATCH, last))
            engine.update(
                transaction_batch(
                    event_id=ids,
                    time_us=start_us + ids,
                    amount=np.ones(len(ids)),
                    channel="card",
                    entities={"customer": ids},
                )
            )

    benchmark.pedantic(lambda: arrive(0, count, 1_500_000_000_000_000), rounds=1)
    full = engine.size()
    assert full.entities["customer"] == count
    assert full.nbytes / count < 320
    arrive(count, count + count // 2, 1_500_000_000_000_000 + 40 * DAY)
    assert engine.size().entities["customer"] <= count // 2 + 3 * BATCH
    assert engine.size().nbytes <= 1.1 * full.nbytes
    benchmark.extra_info["bytes_per_entity"] = round(full.nbytes / count)
