"""One peer of ``subrosa bench features``, timed: ``python peer_child.py PEER EVENTS.csv DAYS,DAYS,...``; prints JSON.

It runs in an interpreter of its own, whose packages need not agree with ours, and so imports the standard library and
the peer alone. ``EVENTS.csv`` has a line ``customer,seconds,amount`` for each event, in order of time. What is timed
is the second run, the first one is shorter and warms up.
"""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WARM_UP_ROWS = 1_000


def river(events: Path, days: Sequence[int]) -> float:
    """Seconds for count, mean and standard deviation of every window after every event; reading is not timed."""
    from river import stats, utils  # type: ignore[import-not-found]

    with events.open(newline="", encoding="ascii") as file:
        rows = [
            (dt.datetime(1970, 1, 1) + dt.timedelta(seconds=int(seconds)), int(customer), float(amount))
            for customer, seconds, amount in csv.reader(file)
        ]
    began = time.perf_counter()
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
    return time.perf_counter() - began


def pyflink(events: Path, days: Sequence[int]) -> float:
    """Seconds of one job. An OVER window is one query in Flink's SQL: one for each width reads the events in it."""
    from pyflink.table import (  # type: ignore[import-not-found]
        EnvironmentSettings,
        TableEnvironment,
    )

    began = time.perf_counter()
    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    environment.get_config().set("parallelism.default", "2")
    environment.execute_sql(
        "CREATE TABLE events (customer BIGINT, seconds BIGINT, amount DOUBLE,"
        " happened AS TO_TIMESTAMP_LTZ(seconds, 0), WATERMARK FOR happened AS happened)"
        f" WITH ('connector' = 'filesystem', 'path' = '{events}', 'format' = 'csv')"
    )
    statements = environment.create_statement_set()
    for day in days:
        environment.execute_sql(
            f"CREATE TABLE out_{day} (customer BIGINT, n BIGINT, mean DOUBLE, spread DOUBLE)"
            " WITH ('connector' = 'blackhole')"
        )
        over = f"RANGE BETWEEN INTERVAL '{day}' DAY(3) PRECEDING AND CURRENT ROW"
        statements.add_insert_sql(
            f"INSERT INTO out_{day} SELECT customer, COUNT(*) OVER w, AVG(amount) OVER w,"  # noqa: S608 (ours)
            " STDDEV_SAMP(amount) OVER w FROM events"
            f" WINDOW w AS (PARTITION BY customer ORDER BY happened {over})"
        )
    statements.execute().wait()
    return time.perf_counter() - began


PEERS = {"river": river, "pyflink": pyflink}


def main(name: str, events: str, days: str) -> None:
    """Time a peer on the events of a file, after a warm-up on its first lines."""
    peer, widths = PEERS[name], [int(day) for day in days.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.csv"
        with Path(events).open(encoding="ascii") as file:
            few.write_text("".join(itertools.islice(file, WARM_UP_ROWS)), encoding="ascii")
        peer(few, widths)
    print(json.dumps({"seconds": peer(Path(events), widths)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
