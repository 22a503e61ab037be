"""Pairs, z-scores and shares in the engine, and one spec everywhere: live, in batches, sharded, restored, as a file."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest
from datasketches import hll_sketch, tgt_hll_type

from scoring.features import FeatureEngine, FeatureMatrix, join_shards, parse_spec
from scoring.features import pane_kernel as kernel
from scoring.features.panes import _distinct
from scoring.schema import OutcomeBatch, TransactionBatch, pair_keys, transaction_batch

SPECS = Path(__file__).resolve().parents[3] / "sandbox" / "features"
REFERENCE = parse_spec((SPECS / "reference.toml").read_text())
DAY = 86_400_000_000
START = 1_700_000_000_000_000


def stream(n: int, *, days: float = 120.0, seed: int = 3) -> TransactionBatch:
    """A seeded stream with all the reference spec needs; an eighth of the entities is missing."""
    random = np.random.default_rng(seed)
    missing = np.iinfo(np.int64).min

    def entity(count: int) -> np.ndarray:
        keys = np.minimum(random.geometric(4 / count, n), count)
        return np.where(random.random(n) < 0.125, missing, keys)

    return transaction_batch(
        event_id=np.arange(n),
        time_us=START + np.sort(random.integers(0, int(days * DAY), n)),
        amount=random.gamma(1.5, 60.0, n).round(2),
        channel=random.integers(1, 7, n),
        entities={
            "customer": entity(40),
            "card": entity(50),
            "payee": entity(30),
            "device": entity(45),
            "terminal": entity(20),
        },
    )


def outcomes(batch: TransactionBatch) -> OutcomeBatch:
    random = np.random.default_rng(5)
    rows = np.flatnonzero(random.random(len(batch)) < 0.2)
    return OutcomeBatch(batch.event_id[rows], random.random(len(rows)) < 0.5, batch.time_us[rows] + 3 * DAY)


def run(engine: FeatureEngine, batch: TransactionBatch, size: int) -> FeatureMatrix:
    parts = []
    for start in range(0, len(batch), size):
        known = outcomes(batch) if start == 0 else None
        parts.append(engine.update(batch.take(slice(start, start + size)), known))
    first = parts[0]
    return FeatureMatrix(
        first.names,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.disposition for part in parts]),
        np.concatenate([part.refusal for part in parts]),
    )


def test_the_reference_spec_is_the_same_however_it_is_run() -> None:
    batch = stream(1000)
    live = run(FeatureEngine(REFERENCE), batch, 1)
    assert np.isfinite(live.values).mean() > 0.7
    assert run(FeatureEngine(REFERENCE), batch, 1000).values.tobytes() == live.values.tobytes()
    shards = [run(FeatureEngine(REFERENCE, shard=s, shards=4), batch, 300) for s in range(4)]
    assert join_shards(shards, REFERENCE, batch).values.tobytes() == live.values.tobytes()


def test_a_snapshot_of_the_reference_spec_continues_bit_identically() -> None:
    batch = stream(3000)
    straight, stopped = FeatureEngine(REFERENCE), FeatureEngine(REFERENCE)
    run(straight, batch.take(slice(0, 2000)), 700)
    run(stopped, batch.take(slice(0, 2000)), 700)
    resumed = FeatureEngine(REFERENCE)
    resumed.restore(stopped.state())
    rest = batch.take(slice(2000, 3000))
    assert resumed.update(rest).values.tobytes() == straight.update(rest).values.tobytes()
    mine, its = straight.state(), resumed.state()
    assert mine.keys() == its.keys()
    for name, array in mine.items():
        assert array.tobytes() == its[name].tobytes(), name


def test_a_pair_of_entities_is_counted_together() -> None:
    spec = parse_spec(
        '[[feature]]\nname = "n"\nentity = "card+terminal"\naggregation = "count"\nwindow = "30d"\n'
    )
    batch = stream(500, days=20)
    counts = FeatureEngine(spec).update(batch).column("n")
    seen: dict[tuple[int, int], int] = {}
    for row in range(len(batch)):
        pair = (int(batch.entities["card"][row]), int(batch.entities["terminal"][row]))
        seen[pair] = seen.get(pair, 0) + 1
        assert counts[row] == (0 if 0 in pair else seen[pair])


def test_pair_keys_tell_pairs_apart() -> None:
    one, other = (part.ravel().astype(np.uint64) for part in np.meshgrid(np.arange(300), np.arange(300)))
    keys = pair_keys(one, other)
    missing = (one == 0) | (other == 0)
    assert np.array_equal(keys == 0, missing)
    assert len(np.unique(keys[~missing])) == 299 * 299
    assert not np.intersect1d(pair_keys(other, one)[one != other], keys[(one != other) & ~missing]).size <= 1
    large = np.array([1 << 63, 1, (1 << 64) - 1], np.uint64)
    assert pair_keys(large, large[::-1]).tolist() != pair_keys(large[::-1], large).tolist()
    assert len(pair_keys(one[:0], other[:0])) == 0


def test_a_zscore_is_against_the_others() -> None:
    spec = parse_spec(
        "".join(
            f'[[feature]]\nname = "{kind}"\nentity = "card"\naggregation = "{kind}"\nvalue = "amount"\n'
            'window = "30d"\nexclude_current = true\n'
            for kind in ("mean", "std")
        )
        + '[[feature]]\nname = "z"\nzscore = ["mean", "std"]\nempty = -1.0\n'
    )
    batch = transaction_batch(
        event_id=[1, 2, 3, 4, 4],
        time_us=START + np.arange(5),
        amount=[10.0, 20.0, 30.0, 60.0, 1.0],
        channel="card",
        entities={"card": [7, 7, 7, 7, 7]},
    )
    z = FeatureEngine(spec).update(batch).column("z")
    assert z[:4] == pytest.approx([-1.0, -1.0, (30 - 15) / np.sqrt(50), 4.0])
    assert np.isnan(z[4])  # a duplicate has no features
    # three times 0.1 adds up to a mean that is not 0.1: its spread is rounding and not a measure of anything
    same = transaction_batch(
        event_id=np.arange(4),
        time_us=START + np.arange(4),
        amount=[0.1, 0.1, 0.1, 0.2],
        channel="card",
        entities={"card": [7, 7, 7, 7]},
    )
    assert FeatureEngine(spec).update(same).column("z")[3] == -1.0


@numba.njit
def _register_all(registers: int, keys: np.ndarray) -> None:
    for key in keys:
        kernel._register(registers, key)


@pytest.mark.parametrize("n", [1, 3, 50, 700, 20_000])
def test_registers_are_those_of_the_library(n: int) -> None:
    """The same bytes as the sketch that DataSketches makes of the same keys, and so the same estimate."""
    keys = np.random.default_rng(n).integers(1, 1 << 62, n)
    registers = np.zeros(kernel.REGISTERS, np.uint8)
    _register_all(registers.ctypes.data, keys.astype(np.uint64))
    sketch = hll_sketch(12, tgt_hll_type.HLL_8)
    for key in keys.tolist():
        sketch.update(key)
    image = sketch.serialize_updatable()
    if len(image) == 40 + kernel.REGISTERS:  # it keeps few keys as a list
        assert image[40:] == registers.tobytes()
    assert _distinct(registers) == pytest.approx(n, rel=0.07)
    assert n > 3 or _distinct(registers) == n


def test_distinct_counts_beyond_the_cap_are_estimates_within_their_error() -> None:
    spec = parse_spec(
        '[[feature]]\nname = "d"\nentity = "device"\naggregation = "distinct"\nvalue = "customer"\n'
        'window = "10d"\npanes = 10\n'
        '[[feature]]\nname = "e"\nentity = "device"\naggregation = "distinct"\nvalue = "customer"\n'
        'window = "2d"\npanes = 2\n'
    )
    n = 9000
    random = np.random.default_rng(2)
    customers = random.integers(1, 6000, n)
    times = START // DAY * DAY + np.arange(1, n + 1, dtype=np.int64) * (DAY // 1500)
    batch = transaction_batch(
        event_id=np.arange(n),
        time_us=times,
        amount=np.ones(n),
        channel="login",
        entities={"device": np.ones(n, int), "customer": customers},
    )
    engine = FeatureEngine(spec)
    matrix = engine.update(batch)
    for row in (0, 5, 500, 1000, 3000, 8999):
        day = (times - 1) // DAY
        for name, days in (("d", 10), ("e", 2)):
            inside = (day >= (times[row] - days * DAY) // DAY) & (np.arange(n) <= row)
            true = len(np.unique(customers[inside]))
            estimate = matrix.column(name)[row]
            assert estimate == true if row <= 1000 else abs(estimate - true) < 0.06 * true, (row, name)
    again = FeatureEngine(spec)
    pieces = [again.update(batch.take(slice(start, start + 77))).values for start in range(0, n, 77)]
    assert np.concatenate(pieces).tobytes() == matrix.values.tobytes()
    # a correction takes its key out of the sketch too: the whole of a day is given to one customer
    last = np.flatnonzero((times - 1) // DAY == (times[-1] - 1) // DAY)
    engine.update(
        transaction_batch(
            event_id=last,
            time_us=times[last],
            amount=np.ones(len(last)),
            channel="login",
            entities={"device": np.ones(len(last), int), "customer": np.full(len(last), 77)},
            correction=np.ones(len(last), bool),
        )
    )
    probe = transaction_batch(
        event_id=[n],
        time_us=[times[-1] + 2 * DAY],
        amount=[1.0],
        channel="login",
        entities={"device": [1], "customer": [77]},
    )
    assert engine.update(probe).column("e")[0] == 1.0


def test_idle_panes_are_freed() -> None:
    spec = parse_spec(
        '[[feature]]\nname = "s"\nentity = "card"\naggregation = "sum"\nvalue = "amount"\nwindow = "30d"\npanes = 30\n'
    )
    engine = FeatureEngine(spec)
    batch = stream(5000, days=25)
    engine.update(batch)
    (table,) = engine._tables.values()
    held = engine.size()
    assert table.rows > 50
    assert sum(held.entities.values()) > 10
    engine.sweep(int(batch.time_us[-1]) + 15 * DAY)  # everything has settled: no busy pane keeps its events
    assert table.rows > 0
    assert 0 < table.events < 4 * 30 * table.entities
    engine.sweep(int(batch.time_us[-1]) + 40 * DAY)
    assert (table.events, table.rows) == (0, 0)
    assert sum(engine.size().entities.values()) == 0
