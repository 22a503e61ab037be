"""The feature engine beside DuckDB, river and PyFlink on the same windows; a hot key; bytes an entity costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sandbox.bench import feature_peers, peer_environment
from sandbox.bench.feature_state import Stalls, bytes_held, stalls_of_a_hot_key, stalls_of_a_told_hot_key
from sandbox.bench.result import Bar, BenchResult
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import Channel, TransactionBatch, transaction_batch

BATCH = 4096
CUSTOMERS = 5_000
EVENTS_PER_DAY = 9_600
SECONDS_PER_DAY = 86_400
WINDOWS_DAYS = (1, 7, 30)
HOT_EVENTS = 1_000_000
# Three windows with count, mean and standard deviation per customer, as every side computes them.
SPEC = "\n".join(
    f'[[feature]]\nname = "{what}_{days}d"\nentity = "customer"\naggregation = "{what}"\nwindow = "{days}d"\n'
    + ("" if what == "count" else 'value = "amount"\n')
    for days in WINDOWS_DAYS
    for what in ("count", "mean", "std")
)


@dataclass(frozen=True, eq=False)
class Stream:
    """Payments in order of time: seconds int64 [n], customer int64 [n], amount float64 [n]."""

    seconds: NDArray[np.int64]
    customer: NDArray[np.int64]
    amount: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.seconds)

    def table(self) -> pa.Table:
        return pa.table({"seconds": self.seconds, "customer": self.customer, "amount": self.amount})

    def batches(self) -> list[TransactionBatch]:
        parts = (slice(start, start + BATCH) for start in range(0, len(self), BATCH))
        return [
            transaction_batch(
                event_id=np.arange(part.start, min(part.stop, len(self))),
                time_us=self.seconds[part] * 1_000_000,
                amount=self.amount[part],
                channel=Channel.CARD,
                entities={"customer": self.customer[part]},
            )
            for part in parts
        ]


def seeded_stream(size: int) -> Stream:
    """A stream of the handbook's shape: 5,000 customers with 9,600 payments a day between them."""
    random = np.random.default_rng(1)
    days = max(1, size // EVENTS_PER_DAY)
    return Stream(
        np.sort(random.integers(0, days * SECONDS_PER_DAY, size)),
        random.integers(0, CUSTOMERS, size),
        random.gamma(2.0, 30.0, size),
    )


def handbook_stream(path: Path, size: int) -> Stream:
    """The first ``size`` rows of the handbook's Parquet file (TX_DATETIME, CUSTOMER_ID, TX_AMOUNT)."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["TX_DATETIME", "CUSTOMER_ID", "TX_AMOUNT"])
    table = table.sort_by("TX_DATETIME").slice(0, size)
    seconds: Any = table["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64)
    return Stream(
        seconds,
        table["CUSTOMER_ID"].to_numpy().astype(np.int64),
        table["TX_AMOUNT"].to_numpy().astype(np.float64),
    )


def bench_features(
    size: int, times: int, events: Path | None = None, peers_directory: Path | None = None
) -> BenchResult:
    """``size`` events in batches of 4,096; one thread for the engine, two for DuckDB.

    ``events``: the handbook's file instead of the seeded stream. Rounds of the engine and of DuckDB alternate, so
    that a machine that slows down slows both. river and PyFlink get the first rows, where they are installed or in
    the environments of ``peers_directory``, which are made first.
    """
    interpreters = peer_environment.interpreters(
        (feature_peers.RIVER, feature_peers.PYFLINK), peers_directory
    )
    stream = seeded_stream(size) if events is None else handbook_stream(events, size)
    batches = stream.batches()
    spec = parse_spec(SPEC)

    def engine() -> None:
        own = FeatureEngine(spec)
        for batch in batches:
            own.update(batch)

    own, duckdb = feature_peers.alternate(
        engine, feature_peers.duckdb_query(stream.table(), WINDOWS_DAYS), len(stream), times
    )
    peers = {"duckdb": duckdb.per_second}
    bars = [Bar("engine / DuckDB's batch window query", own.per_second / duckdb.per_second, 1.0)]
    notes = {}
    for name, rate in feature_peers.slow_peers(stream.table(), WINDOWS_DAYS, interpreters).items():
        if isinstance(rate, str):
            notes[name] = rate
        else:
            peers[name] = rate
            bars.append(Bar(f"engine / {name}", own.per_second / rate, 20.0))
    hot = stalls_of_a_hot_key(HOT_EVENTS)
    told = stalls_of_a_told_hot_key(HOT_EVENTS)
    bars += [
        _stall_bar("hot key: worst update ms", hot),
        _stall_bar("hot key with distinct, entropy and quantile: worst update ms", told),
    ]
    return BenchResult(
        name="features",
        size=len(stream),
        timing=own,
        peers=peers,
        bars=tuple(bars),
        notes=notes | {"hot key": hot.text, "hot key, told": told.text, "memory": bytes_held().text},
        histograms={
            "one customer, moments, extremes, runs, slope": hot.histogram,
            "one customer, distinct, entropy, quantiles": told.histogram,
        },
    )


def _stall_bar(what: str, stalls: Stalls) -> Bar:
    return Bar(what, float(stalls.processor_ms.max()), 5.0, at_most=True)
