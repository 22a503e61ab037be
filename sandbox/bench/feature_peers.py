"""The same windows elsewhere: DuckDB in one query, river event by event, PyFlink as an OVER aggregation."""

from __future__ import annotations

import datetime as dt
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sandbox.bench.result import Timing, repeat

SECONDS_PER_DAY = 86_400
_WARM_UP_ROWS = 1_000
_RIVER_ROWS = 50_000
_FLINK_ROWS = 500_000  # a job takes seconds to begin, whatever its size


def alternate(
    one: Callable[[], object], other: Callable[[], object], items: int, times: int
) -> tuple[Timing, Timing]:
    """Time two operations in turn, ``times`` each after one untimed run of both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(times + 1):
        for place, operation in enumerate((one, other)):
            began = time.perf_counter()
            operation()
            if turn:
                seconds[place].append(time.perf_counter() - began)
    return Timing(items, tuple(seconds[0])), Timing(items, tuple(seconds[1]))


def duckdb_query(events: pa.Table, days: Sequence[int]) -> Callable[[], pa.Table]:
    """Count, mean and sample standard deviation of ``amount`` per customer and window, for every row at once."""
    import duckdb

    columns = ", ".join(
        f"{what} OVER (PARTITION BY customer ORDER BY seconds RANGE BETWEEN {day * SECONDS_PER_DAY - 1} PRECEDING"
        f" AND CURRENT ROW) AS {name}_{day}d"
        for day in days
        for name, what in (("count", "count(*)"), ("mean", "avg(amount)"), ("std", "stddev_samp(amount)"))
    )

    def run() -> pa.Table:
        with duckdb.connect(config={"threads": 2}) as database:
            database.register("events", events)
            query = f"SELECT customer, seconds, amount, {columns} FROM events"  # noqa: S608 (numbers of ours)
            return database.sql(query).to_arrow_table()

    return run


def slow_peers(events: pa.Table, days: Sequence[int]) -> dict[str, float | str]:
    """Per peer its events a second over the first rows of ``events``, warmed up, or why there are none."""
    peers: dict[str, float | str] = {}
    for name, package, make, rows in (
        ("river", "river", _river, _RIVER_ROWS),
        ("pyflink", "apache-flink", _flink, _FLINK_ROWS),
    ):
        if importlib.util.find_spec(name) is None:
            peers[name] = f"{name} is not installed: pip install {package}"
            continue
        make(events.slice(0, _WARM_UP_ROWS), days)()
        part = events.slice(0, rows)
        peers[name] = repeat(make(part, days), items=part.num_rows, times=1, warm_up=0).per_second
    return peers


def _river(events: pa.Table, days: Sequence[int]) -> Callable[[], object]:
    rows = list(
        zip(
            [dt.datetime(1970, 1, 1) + dt.timedelta(seconds=s) for s in events["seconds"].to_pylist()],
            events["customer"].to_pylist(),
            events["amount"].to_pylist(),
            strict=True,
        )
    )

    def run() -> list[Any]:
        from river import stats, utils  # type: ignore[import-not-found]

        customers: dict[int, list[Any]] = {}
        results = []
        for at, customer, amount in rows:
            windows = customers.get(customer)
            if windows is None:
                windows = [utils.TimeRolling(stats.Var, period=dt.timedelta(days=day)) for day in days]
                customers[customer] = windows
            row = []
            for window in windows:
                window.update(amount, t=at)
                row += [window.mean.n, window.mean.get(), window.get() ** 0.5]
            results.append(row)
        return results

    return run


def _flink(events: pa.Table, days: Sequence[int]) -> Callable[[], object]:
    """One OVER window is one query in Flink's SQL: the three run one after the other in one job."""

    def run() -> int:
        from pyflink.table import (  # type: ignore[import-not-found]
            EnvironmentSettings,
            TableEnvironment,
        )

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "events.csv"
            _write_csv(events, source)
            environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
            environment.get_config().set("parallelism.default", "2")
            environment.execute_sql(
                "CREATE TABLE events (customer BIGINT, seconds BIGINT, amount DOUBLE,"
                " happened AS TO_TIMESTAMP_LTZ(seconds, 0), WATERMARK FOR happened AS happened)"
                f" WITH ('connector' = 'filesystem', 'path' = '{source}', 'format' = 'csv')"
            )
            statements = environment.create_statement_set()
            for day in days:
                environment.execute_sql(
                    f"CREATE TABLE out_{day} (customer BIGINT, n BIGINT, mean DOUBLE, spread DOUBLE)"
                    " WITH ('connector' = 'blackhole')"
                )
                over = f"RANGE BETWEEN INTERVAL '{day}' DAY(3) PRECEDING AND CURRENT ROW"
                statements.add_insert_sql(
                    f"INSERT INTO out_{day} SELECT customer, COUNT(*) OVER w, AVG(amount) OVER w,"  # noqa: S608
                    " STDDEV_SAMP(amount) OVER w FROM events"
                    f" WINDOW w AS (PARTITION BY customer ORDER BY happened {over})"
                )
            statements.execute().wait()
        return len(days)

    return run


def _write_csv(events: pa.Table, path: Path) -> None:
    from pyarrow import csv

    csv.write_csv(
        events.select(["customer", "seconds", "amount"]), path, csv.WriteOptions(include_header=False)
    )
