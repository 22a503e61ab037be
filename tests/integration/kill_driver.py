"""A scoring process to be killed: journal, engine, snapshots and history in the order in which the node uses them.

``python kill_driver.py`` reads lines ``MODE DIRECTORY BATCHES`` and forks a child for each, which scores the seeded
stream from where the directory stands to its end. Printed are the child's id and, after another line, how it ended.
Forking spares every child the start of the interpreter; a child shares nothing else with those before it.

Every verdict carries a random number, so a verdict that was made again instead of being kept shows.
"""

import os
import secrets
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from member_node.service.history import HistoryStore
from member_node.streams.events import transactions_of
from member_node.streams.images import ready
from member_node.streams.journal import Draft, Journal
from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotStore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import OutcomeBatch

SPEC = parse_spec(
    """
[[feature]]
name = "spent"
entity = "customer"
aggregation = "mean"
value = "amount"
window = "2h"
[[feature]]
name = "often"
entity = "customer"
aggregation = "count"
window = "1d"
[[feature]]
name = "risk"
entity = "terminal"
aggregation = "rate"
window = "1d"
delay = "1h"
"""
)
ROWS = 150
STEP_US = 4_000_000
START_US = 20_000 * 86_400_000_000 + 20 * 3_600_000_000
ACKS = "acknowledged"


def batch_of(number):
    """Events and outcomes of the seeded stream's batch, the same in every process."""
    random = np.random.default_rng([7, number])
    ids = np.arange(number * ROWS, (number + 1) * ROWS)
    jitter = random.integers(-STEP_US, STEP_US, ROWS)  # some events are late
    events = pa.record_batch(
        {
            "event_id": pa.array([f"e{each:08d}" for each in ids]),
            "time_us": pa.array(START_US + ids * STEP_US + jitter),
            "channel": pa.array(np.full(ROWS, 5, np.uint8)),
            "amount": pa.array(np.round(random.random(ROWS) * 500, 2)),
            "customer": pa.array(random.integers(0, 60, ROWS)),
            "terminal": pa.array([f"T{each}" for each in random.integers(0, 12, ROWS)]),
        }
    )
    rows = np.flatnonzero(random.random(ROWS) < 0.2)
    known = np.asarray(events.column("time_us"))[rows] + 1_800_000_000
    outcomes = OutcomeBatch(
        np.array([f"e{each:08d}" for each in ids[rows]], dtype=object), random.random(len(rows)) < 0.5, known
    )
    return events, outcomes


def outcome_rows(outcomes):
    return pa.record_batch(
        {
            "event_id": pa.array(outcomes.event_id, type=pa.string()),
            "fraud": pa.array(outcomes.fraud),
            "known_at_us": pa.array(outcomes.known_at_us),
        }
    )


def outcomes_of(rows):
    return OutcomeBatch(
        rows.column("event_id").to_numpy(zero_copy_only=False),
        rows.column("fraud").to_numpy(zero_copy_only=False),
        rows.column("known_at_us").to_numpy(),
    )


def checksum(table):
    """Of what was answered: ids, verdicts and their random numbers."""
    table = table.select(["event_id", "verdict", "nonce"]).sort_by("event_id")
    return zlib.crc32(str(table.to_pydict()).encode())


class Node:
    """The parts of a member node's stream that must survive."""

    def __init__(self, directory):
        self.directory = directory
        self.journal = Journal(directory / "journal", segment_bytes=60_000)
        self.history = HistoryStore(directory / "history", flush_rows=1500, small_files=4)
        self.engine = FeatureEngine(SPEC)
        self.cursor = 0
        store = SnapshotStore(directory / "snapshots", SPEC.digest)
        self.keeper = SnapshotKeeper(
            store,
            lambda: {**self.engine.state(copy=False), "cursor": np.array([self.cursor])},
            before=lambda _: self.history.flush(),
            after=self._covered,
            every_events=450,
        )
        self._restore(store.latest())

    def score(self, number):
        """One batch in the node's order; the checksum of its answers, durable when this returns."""
        events, outcomes = batch_of(number)
        first = self.journal.append(
            [Draft("outcomes", outcome_rows(outcomes)), Draft("events", events, {"batch": str(number)})],
            sync=False,
        )
        matrix = self.engine.update(transactions_of(events), outcomes)
        decided = self._judge(first + 1, events, matrix)
        self.journal.sync()
        self.cursor = max(self.cursor, number + 1)
        if self.keeper.due(len(events), 0.0):
            self.keeper.begin(self.journal.last_sequence)
        if decided.num_rows == ROWS:
            return checksum(pa.table({"event_id": events.column("event_id"), **decided.to_pydict()}))
        return checksum(self.history.find(events.column("event_id").to_pylist(), ["verdict", "nonce"]))

    def close(self):
        self.keeper.close()
        self.history.close()
        self.journal.close()

    def _covered(self, covered):
        self.journal.retire(min(covered, self.history.flushed_sequence) + 1)
        self.history.merge()  # in a node a loop of its own does it; here, so that kills fall into it

    def _restore(self, snapshot):
        after = 0
        if snapshot is not None:
            after, arrays = snapshot
            self.engine.restore({name: array for name, array in arrays.items() if name != "cursor"})
            self.cursor = int(arrays["cursor"][0])
        waiting, begun = None, None
        for frame in self.journal.frames(after + 1):
            if frame.kind == "outcomes":
                waiting = outcomes_of(frame.rows)
            elif frame.kind == "events":
                matrix = self.engine.update(transactions_of(frame.rows), waiting)
                begun = (frame.sequence, frame.rows, matrix)
                self.cursor = max(self.cursor, int(frame.facts["batch"]) + 1)
            else:
                self._keep(*begun, frame.rows)
                begun = None
        if begun is not None:  # accepted and not answered
            self._judge(*begun)
            self.journal.sync()

    def _judge(self, sequence, events, matrix):
        rows = np.flatnonzero(matrix.applied)
        high = matrix.column("spent")[rows] > 260
        decided = pa.record_batch(
            {
                "verdict": pa.array(np.where(high, "review", "allow").astype(object), type=pa.string()),
                "nonce": pa.array([secrets.randbits(60) for _ in rows], type=pa.int64()),
            }
        )
        self.journal.append([Draft("verdicts", decided)], sync=False, finishing=True)
        self._keep(sequence, events, matrix, decided)
        return decided

    def _keep(self, sequence, events, matrix, decided):
        rows = np.flatnonzero(matrix.applied)
        if len(rows) and not self.history.has(sequence):
            chosen = events.take(pa.array(rows))
            columns = {name: chosen.column(name) for name in chosen.schema.names}
            columns |= {name: decided.column(name) for name in decided.schema.names}
            columns |= {name: pa.array(matrix.column(name)[rows]) for name in SPEC.names}
            self.history.write(sequence, pa.table(columns))


def run(mode, directory, batches):
    """Score from where the directory stands; ``redeliver`` starts again at the first batch without an answer."""
    directory.mkdir(parents=True, exist_ok=True)
    node = Node(directory)
    acks = os.open(directory / ACKS, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    lines = os.pread(acks, 1 << 20, 0)
    if not lines.endswith(b"\n"):
        os.ftruncate(acks, lines.rfind(b"\n") + 1)
    first = lines.count(b"\n") if mode == "redeliver" else node.cursor
    for number in range(first, batches):
        os.write(acks, f"{number} {node.score(number)}\n".encode())
    node.close()
    np.savez(directory / "state.npz", **node.engine.state())


def serve():
    engine = FeatureEngine(SPEC)  # the kernels are compiled or read once, before any fork
    for number in range(3):
        events, outcomes = batch_of(number)
        engine.update(transactions_of(events), outcomes)
    engine.sweep()
    FeatureEngine(SPEC).restore(engine.state())
    assert ready() == ""
    print("ready", flush=True)
    while line := sys.stdin.readline():
        mode, directory, batches = line.split()
        child = os.fork()
        if child == 0:
            try:
                run(mode, Path(directory), int(batches))
            except BaseException:  # noqa: BLE001 - a child must never return into the driver's loop
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()  # until then the child's id stays its own, even if it has ended
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
