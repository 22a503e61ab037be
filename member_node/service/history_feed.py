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
# How long they wait for others: whoever scores single events shares the interpreter with this thread.
LINGER_SECONDS = 0.25
RETRY_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """One frame's judged rows; ``features`` float64 [f, n] under ``names``."""

    sequence: int
    events: EventBatch
    decisions: pa.RecordBatch
    names: tuple[str, ...]
    features: NDArray[np.float64]


def frames_table(frames: Sequence[ScoredFrame]) -> pa.Table:
    """The rows of successive frames of one stream as the history keeps them."""
    first = frames[0]
    sequence = np.repeat([each.sequence for each in frames], [each.events.num_rows for each in frames])
    if len(frames) == 1:
        features = dict(zip(first.names, first.features, strict=True))
        return history_table(first.events, first.decisions, features, sequence)
    # Frames differ in what was not sent, and in lists and models that came or went.
    decisions, events = (
        pa.concat_tables([pa.Table.from_batches([each]) for each in parts], promote_options="permissive")
        for parts in ([each.decisions for each in frames], [each.events for each in frames])
    )
    joined = np.concatenate([each.features for each in frames], axis=1)
    return history_table(events, decisions, dict(zip(first.names, joined, strict=True)), sequence)


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
                frames = self._next()
            if not self._hand_over(frames):
                if self._closing:
                    return
                continue
            with self._changed:
                for frame in frames:
                    self._queue.popleft()
                    self._rows -= frame.events.num_rows
                self._failure = ""
                self._changed.notify_all()

    def _next(self) -> list[ScoredFrame]:
        """The oldest frames, as many small ones as make a table worth building."""
        chosen: list[ScoredFrame] = []
        rows = 0
        for frame in self._queue:
            if chosen and (rows + frame.events.num_rows > TABLE_ROWS or frame.names != chosen[0].names):
                break
            chosen.append(frame)
            rows += frame.events.num_rows
        return chosen

    def _hand_over(self, frames: Sequence[ScoredFrame]) -> bool:
        last = frames[-1].sequence
        new = [frame for frame in frames if not self._history.has(frame.sequence)]
        began = time.perf_counter()
        try:
            if new:
                self._history.write(last, frames_table(new))
            if self._alerts is not None:
                least = self._alerts.policy.least
                for frame in frames:
                    found = alerts_of(frame.sequence, frame.events, frame.decisions, least)
                    self._alerts.offer(frame.sequence, found)
        except Exception as error:  # noqa: BLE001 - a full disk most likely: said, and tried again
            with self._changed:
                if not self._failure:
                    LOGGER.warning("the history cannot be written, frame %d waits: %s", last, error)
                self._failure = f"{type(error).__name__}: {error}"
                self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            return False
        self._on_stage(HISTORY, time.perf_counter() - began)
        return True
