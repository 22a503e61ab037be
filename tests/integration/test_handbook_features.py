"""The handbook's features on its whole real stream: the streaming engine against a vectorised reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from scoring.features import FeatureEngine, parse_spec
from scoring.schema import OutcomeBatch, transaction_batch

ROOT = Path(__file__).resolve().parents[2]
EVENTS = ROOT.parent / "shared" / "data" / "handbook" / "transactions.parquet"
DAY = 86_400_000_000
BATCH = 8192

pytestmark = pytest.mark.skipif(not EVENTS.exists(), reason="../shared/data/handbook is not here")


def reference(
    keys: NDArray[np.int64], time: NDArray[np.int64], value: NDArray[np.int64], width: int, delay: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts and exact integer sums over (t - delay - width, t - delay] per row, by sorting and searching."""
    order = np.lexsort((np.arange(len(time)), time, keys))
    shift = int(time.max()) + 1
    line = keys[order] * shift + time[order]
    sums = np.concatenate([[0], np.cumsum(value[order])])
    floor = keys[order] * shift
    if delay == 0:
        high = np.arange(1, len(time) + 1)
    else:
        high = np.searchsorted(line, floor + np.maximum(time[order] - delay, -1), side="right")
    low = np.searchsorted(line, floor + np.maximum(time[order] - delay - width, -1), side="right")
    count, total = np.empty(len(time), np.int64), np.empty(len(time), np.int64)
    count[order] = high - low
    total[order] = sums[high] - sums[low]
    return count, total


def test_the_whole_file_through_the_streaming_engine() -> None:
    rows = pl.read_parquet(EVENTS)
    time = rows["TX_DATETIME"].dt.epoch("us").to_numpy().astype(np.int64)
    ids = rows["TRANSACTION_ID"].to_numpy().astype(np.int64)
    customer = rows["CUSTOMER_ID"].to_numpy().astype(np.int64)
    terminal = rows["TERMINAL_ID"].to_numpy().astype(np.int64)
    amount = rows["TX_AMOUNT"].to_numpy()
    fraud = rows["TX_FRAUD"].to_numpy().astype(bool)
    spec = parse_spec((ROOT / "sandbox" / "features" / "handbook.toml").read_text())
    engine = FeatureEngine(spec)
    batch = transaction_batch(
        event_id=ids,
        time_us=time,
        amount=amount,
        channel="card",
        entities={"customer": customer, "terminal": terminal},
    )
    parts = []
    for begin in range(0, len(batch), BATCH):
        part = slice(begin, begin + BATCH)
        outcomes = OutcomeBatch(ids[part], fraud[part], time[part] + 7 * DAY)
        matrix = engine.update(batch.take(part), outcomes)
        assert (matrix.disposition == 0).all()
        parts.append(matrix.values)
    values = dict(zip(spec.names, np.concatenate(parts).T, strict=True))
    stamp = rows["TX_DATETIME"]
    assert np.array_equal(values["TRANSACTION_ID"], ids)
    assert np.array_equal(values["TX_DURING_WEEKEND"], (stamp.dt.weekday() >= 6).cast(pl.Float64).to_numpy())
    assert np.array_equal(values["TX_DURING_NIGHT"], (stamp.dt.hour() <= 6).cast(pl.Float64).to_numpy())
    base = time - time.min() + DAY
    cents = np.round(amount * 100).astype(np.int64)
    assert (
        np.abs(cents / 100 - amount).max() < 1e-10
    )  # the file holds cents up to rounding: whole cents sum exactly
    for days in (1, 7, 30):
        count, total = reference(customer, base, cents, days * DAY, 0)
        assert np.array_equal(values[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"], count)
        mean = values[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"]
        assert np.abs(mean - total / count / 100).max() <= 1e-9
        count, total = reference(terminal, base, fraud.astype(np.int64), days * DAY, 7 * DAY)
        assert np.array_equal(values[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"], count)
        assert np.array_equal(values[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"], total / np.maximum(count, 1))
    # what is held is what may still matter (30 d, and 37 d for terminals, of 135), not the whole stream
    size = engine.size()
    assert size.events["customer"] < 0.5 * len(batch)
    assert size.events["terminal"] < 0.7 * len(batch)
    assert size.unmatched_outcomes == 0
