"""The same windows elsewhere: DuckDB in one query; river and PyFlink in interpreters of their own (peer_child)."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from sandbox.bench import peer_child
from sandbox.bench.peer_environment import Interpreter, Peer, PeerError
from sandbox.bench.result import Timing

SECONDS_PER_DAY = 86_400
# What is measured in an interpreter of its own, and on how many rows.
RIVER = Peer("river", "river", 50_000)
PYFLINK = Peer(
    "pyflink", "apache-flink", 500_000, java=True
)  # a job takes seconds to begin, whatever its size


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


def slow_peers(
    events: pa.Table, days: Sequence[int], interpreters: Sequence[tuple[Peer, Interpreter | str]]
) -> dict[str, float | str]:
    """Per peer its events a second over the first rows of ``events``, warmed up, or why there are none."""
    peers: dict[str, float | str] = {}
    for peer, interpreter in interpreters:
        if isinstance(interpreter, str):
            peers[peer.name] = interpreter
            continue
        part = events.slice(0, peer.rows)
        try:
            peers[peer.name] = part.num_rows / _seconds(peer, interpreter, part, days)
        except PeerError as error:
            peers[peer.name] = str(error)
    return peers


def _seconds(peer: Peer, interpreter: Interpreter, events: pa.Table, days: Sequence[int]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv"
        _write_csv(events, path)
        command = [interpreter.python, peer_child.__file__, peer.name, str(path), ",".join(map(str, days))]
        child = subprocess.run(
            command, env=interpreter.environment, cwd=folder, capture_output=True, text=True, check=False
        )
    answer = child.stdout.strip().splitlines()
    if child.returncode or not answer:
        said = child.stderr.strip().splitlines() or ["nothing on stderr"]
        raise PeerError(f"{peer.name} failed: {said[-1]}")
    return float(json.loads(answer[-1])["seconds"])


def _write_csv(events: pa.Table, path: Path) -> None:
    from pyarrow import csv

    csv.write_csv(
        events.select(["customer", "seconds", "amount"]), path, csv.WriteOptions(include_header=False)
    )
