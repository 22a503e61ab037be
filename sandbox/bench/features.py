"""The feature engine: a seeded card stream in batches, beside DuckDB's window query over the same rows at once."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa

from sandbox.bench.result import Bar, BenchResult, repeat
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import Channel, transaction_batch

BATCH = 4096
CUSTOMERS = 5_000
SECONDS_PER_DAY = 86_400
WINDOWS_DAYS = (1, 7, 30)
# Three windows with count, mean and standard deviation per customer, as both sides compute them.
SPEC = "\n".join(
    f'[[feature]]\nname = "{what}_{days}d"\nentity = "customer"\naggregation = "{what}"\nwindow = "{days}d"\n'
    + ("" if what == "count" else 'value = "amount"\n')
    for days in WINDOWS_DAYS
    for what in ("count", "mean", "std")
)
QUERY = "SELECT " + ", ".join(
    f"{what} OVER (PARTITION BY customer ORDER BY seconds RANGE BETWEEN {days * SECONDS_PER_DAY - 1} PRECEDING"
    f" AND CURRENT ROW) AS {name}_{days}d"
    for days in WINDOWS_DAYS
    for name, what in (("count", "count(*)"), ("mean", "avg(amount)"), ("std", "stddev_pop(amount)"))
)


def bench_features(size: int, times: int) -> BenchResult:
    """``size`` events over 60 days, one thread for the engine; DuckDB is given two."""
    random = np.random.default_rng(1)
    seconds = np.sort(random.integers(0, 60 * SECONDS_PER_DAY, size))
    customer = random.integers(0, CUSTOMERS, size)
    amount = random.gamma(2.0, 30.0, size)
    batches = [
        transaction_batch(
            event_id=np.arange(start, min(start + BATCH, size)),
            time_us=seconds[start : start + BATCH] * 1_000_000,
            amount=amount[start : start + BATCH],
            channel=Channel.CARD,
            entities={"customer": customer[start : start + BATCH]},
        )
        for start in range(0, size, BATCH)
    ]
    spec = parse_spec(SPEC)

    def engine() -> None:
        own = FeatureEngine(spec)
        for batch in batches:
            own.update(batch)

    whole = repeat(engine, items=size, times=times)
    if importlib.util.find_spec("duckdb") is None:
        return BenchResult(
            "features", size, whole, notes={"peers": "duckdb is not installed (it is in the extra dev)"}
        )
    rate = _duckdb(pa.table({"seconds": seconds, "customer": customer, "amount": amount}), times)
    return BenchResult(
        name="features",
        size=size,
        timing=whole,
        peers={"duckdb": rate},
        bars=(Bar("engine / DuckDB's batch window query", whole.per_second / rate, 1.0),),
        notes={
            "peers": "river and PyFlink are measured where they are installed, which this version does not do"
        },
    )


def _duckdb(events: pa.Table, times: int) -> float:
    """Rows a second of DuckDB's window query over all of ``events`` at once."""
    import duckdb

    with duckdb.connect(config={"threads": 2}) as database:
        database.register("events", events)
        query = f"{QUERY} FROM events"
        return repeat(
            lambda: database.sql(query).to_arrow_table(), items=events.num_rows, times=times
        ).per_second
