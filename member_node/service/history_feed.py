"""Scored batches on their way into the history: built and written by a thread of their own, in order, bounded.

The journal holds what a crash would take from here: frames that the history lacks are put into it again by the replay.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.metrics import HISTORY
from member_node.service.alerts import AlertFeed
from member_node.service.decisions import alerts_of, history_table
from member_node.service.history import HistoryStore
from member_node.streams.events import EventBatch

LOGGER = logging.getLogger(__name__)
MAX_ROWS = 131_072
# Frames of single events are put together up to about as many rows before they become a table.
TABLE_ROWS = 4096
# How long they wait for others: whoever scores single events shares the interpreter with this thread. For the same
# reason it works on so many frames at a time (some tenths of a millisecond with the lock) and pauses before the next.
LINGER_SECONDS = 0.25
TABLE_FRAMES = 256
PAUSE_SECONDS = 0.001
RETRY_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """One frame's judged rows; ``features`` float64 [f, n] under ``names``."""

    sequence: int
    events: EventBatch
    decisions: pa.RecordBatch
    names: tuple[str, ...]
    features: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FrameRows:
    """The rows of successive frames together; ``sequence`` int64 [n] is each row's frame."""

    sequence: NDArray[np.int64]
    events: EventBatch
    decisions: pa.RecordBatch
    names: tuple[str, ...]
    features: NDArray[np.float64]

    def table(self) -> pa.Table:
        """The rows as the history keeps them."""
        return history_table(self.events, self.decisions, self.names, self.features, self.sequence)


def rows_of(frames: Sequence[ScoredFrame]) -> FrameRows:
    """The rows of successive frames with the same features."""
    counts = [each.events.num_rows for each in frames]
    return FrameRows(
        sequence=np.repeat(np.array([each.sequence for each in frames], dtype=np.int64), counts),
        events=_together([each.events for each in frames]),
        decisions=_together([each.decisions for each in frames]),
        names=frames[0].names,
        features=frames[0].features
        if len(frames) == 1
        else np.concatenate([each.features for each in frames], axis=1),
    )


def frames_table(frames: Sequence[ScoredFrame]) -> pa.Table:
    """The rows of successive frames with the same features as the history keeps them."""
    return rows_of(frames).table()


def _together(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all. They differ where an attribute was not sent, or lists and models came or went."""
    if len(batches) == 1:
        return batches[0]
    alike = [list(each) for _, each in groupby(batches, key=lambda batch: batch.schema)]
    runs = [pa.concat_batches(each) for each in alike]
    if len(runs) == 1:
        return runs[0]
    tables = [pa.Table.from_batches([each]) for each in runs]
    (batch,) = pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()
    return batch


def _same(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return names is others or names == others


class HistoryFeed:
    """Hands frames to the history and, where there is one, their alerts to the alert feed."""

    def __init__(
        self,
        history: HistoryStore,
        alerts: AlertFeed | None,
        *,
        max_rows: int = MAX_ROWS,
        on_stage: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """``on_stage`` hears how many seconds each handing over took."""
        self._history = history
        self._alerts = alerts
        self._max = max_rows
        self._on_stage = on_stage
        self._queue: deque[ScoredFrame] = deque()
        self._rows = 0
        self._failure = ""
        self._changed = threading.Condition()
        self._closing = False
        self._wanted = 0
        self._thread = threading.Thread(target=self._run, name="history-feed", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str:
        """Why the history cannot be written at present; empty if it can."""
        return self._failure

    @property
    def waiting_rows(self) -> int:
        """Rows that are not in the history yet."""
        return self._rows

    def put(self, frame: ScoredFrame) -> None:
        """Queue a frame; waits while too many rows wait already."""
        with self._changed:
            if self._rows >= self._max:
                self._changed.wait_for(lambda: self._rows < self._max or self._closing)
            self._queue.append(frame)
            self._rows += frame.events.num_rows
            if self._rows >= TABLE_ROWS or len(self._queue) == 1:
                self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until the history has been given everything that was put; whether it has."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._queue, timeout)
            finally:
                self._wanted -= 1

    def close(self) -> None:
        """Hand over what waits (unless that fails) and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closing)
                if not self._queue:
                    return
                self._changed.wait_for(
                    lambda: self._rows >= TABLE_ROWS or self._wanted or self._closing, LINGER_SECONDS
                )
                due = len(self._queue)
            while due > 0:
                frames = self._next()
                if not self._hand_over(frames):
                    if self._closing:
                        return
                    break
                due -= len(frames)
                with self._changed:
                    for frame in frames:
                        self._queue.popleft()
                        self._rows -= frame.events.num_rows
                    self._failure = ""
                    self._changed.notify_all()
                if due > 0 and len(frames) > 1:
                    time.sleep(PAUSE_SECONDS)

    def _next(self) -> list[ScoredFrame]:
        """The oldest frames, as many small ones as make a table worth building."""
        chosen: list[ScoredFrame] = []
        rows = 0
        with self._changed:
            for frame in islice(self._queue, TABLE_FRAMES):
                rows += frame.events.num_rows
                if chosen and (rows > TABLE_ROWS or not _same(frame.names, chosen[0].names)):
                    break
                chosen.append(frame)
        return chosen

    def _hand_over(self, frames: Sequence[ScoredFrame]) -> bool:
        last = frames[-1].sequence
        began = time.perf_counter()
        try:
            self._write(frames)
        except Exception as error:  # noqa: BLE001 - a full disk most likely: said, and tried again
            with self._changed:
                if not self._failure:
                    LOGGER.warning("the history cannot be written, frame %d waits: %s", last, error)
                self._failure = f"{type(error).__name__}: {error}"
                self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            return False
        self._on_stage(HISTORY, time.perf_counter() - began)
        return True

    def _write(self, frames: Sequence[ScoredFrame]) -> None:
        """Give the history and the alerts what each of them lacks: after a restart or a failure not the same."""
        last = frames[-1].sequence
        rows: FrameRows | None = None
        new = [frame for frame in frames if not self._history.has(frame.sequence)]
        if new:
            rows = rows_of(new)
            self._history.write(last, rows.table())
        if self._alerts is None:
            return
        stored = self._alerts.stored_through
        missing = [frame for frame in frames if frame.sequence > stored]
        if not missing:
            return
        if rows is None or len(missing) != len(new):  # both are the newest of the frames
            rows = rows_of(missing)
        found = alerts_of(rows.sequence, rows.events, rows.decisions, self._alerts.policy.least)
        self._alerts.offer(last, found)
