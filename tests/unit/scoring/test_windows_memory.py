"""Pools that grow in place, and what entities and events cost."""

from __future__ import annotations

import numpy as np
import pytest

from sandbox.bench.feature_state import bytes_held
from scoring.features import Aggregation, FeatureEngine, FeatureSpec, WindowFeature, pool
from scoring.features.pool import Pool
from scoring.schema import TransactionBatch, transaction_batch

HOUR = 3_600_000_000
DAY = 24 * HOUR
T = 1_700_000_000_000_000


def test_a_pool_grows_without_moving() -> None:
    rows = Pool((3,), np.int64, fill=-1)
    address = rows.address
    rows.array[:] = 7
    assert rows.grow(1_000_000)
    assert not rows.grow(10)
    assert rows.address == address
    assert len(rows) >= 1_000_000
    assert (rows.array[:64] == 7).all()
    assert (rows.array[64:] == -1).all()
    assert rows.nbytes == len(rows) * 24


def test_a_pool_without_columns_and_a_copy() -> None:
    assert Pool((0, 8), np.uint8).grow(1000)
    copied = Pool.of(np.arange(100, dtype=np.int32), fill=-1)
    assert copied.array.tolist() == list(range(100))
    copied.grow(101)
    assert copied.array[100] == -1


def test_a_pool_moves_when_address_space_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RESERVED", (1 << 16,))
    rows = Pool((), np.int64)
    rows.array[:] = np.arange(64)
    with pytest.raises(MemoryError, match="no address space"):
        rows.grow(1 << 20)
    monkeypatch.setattr(pool, "_RESERVED", (1 << 30,))
    assert rows.grow(1 << 20)
    assert rows.array[:64].tolist() == list(range(64))


def customers(first: int, count: int, time_us: int) -> TransactionBatch:
    ids = np.arange(first, first + count)
    return transaction_batch(
        event_id=ids,
        time_us=time_us + np.arange(count),
        amount=np.ones(count),
        channel="card",
        entities={"customer": ids},
    )


def test_cold_entities_are_cheap_and_their_room_is_used_again() -> None:
    spec = FeatureSpec(
        (WindowFeature("s", "customer", Aggregation.STD, 30 * DAY, "amount"),),
        lateness_us=HOUR,
        correction_us=DAY,
    )
    engine = FeatureEngine(spec)
    count = 120_000
    for begin in range(0, count, 20_000):
        engine.update(customers(begin, 20_000, T + begin))
    full = engine.size()
    assert full.entities["customer"] == full.events["customer"] == count
    assert full.nbytes / count < 320
    for begin in range(count, 2 * count, 20_000):  # two months later, as many others
        engine.update(customers(begin, 20_000, T + 60 * DAY + begin))
    again = engine.size()
    assert again.entities["customer"] <= count + 20_000
    assert again.nbytes <= 1.25 * full.nbytes
    assert engine.sweep(T + 120 * DAY) == again.entities["customer"]
    assert engine.size().events["customer"] == 0


def test_the_documented_bytes_hold() -> None:
    held = bytes_held(entities=40_000)
    assert 100 < held.entity < 320
    assert 20 < held.event < 70
    assert 30 < held.record < 70
