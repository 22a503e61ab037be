"""From verdicts to alerts, off the scoring path: a bounded queue, one transaction a batch of alerts, a durable cursor.

The journal holds every verdict, so an alert that is not stored yet is never lost: a snapshot of the engine is taken
only when the alerts of all frames before it are stored, and the replay after a restart offers the others again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from member_node.storage.cases import BRAKE, DRIFT, Alert, CaseStore
from scoring.verdicts import Verdict

LOGGER = logging.getLogger(__name__)
MAX_WAITING = 50_000
MAX_BATCH = 5_000
RETRY_SECONDS = 1.0
# How long alerts wait for others, and a cursor without any for the first: a transaction takes a millisecond of the
# interpreter, which the events being scored would feel, and a cursor that lags costs a restart some frames again.
LINGER_SECONDS, CURSOR_SECONDS = 0.5, 5.0
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class AlertPolicy:
    """Which verdicts open alerts, and how far apart alerts of one customer may lie in one case."""

    least: Verdict = Verdict.CHALLENGE
    window_us: int = DAY_US


@dataclass(frozen=True)
class _Entry:
    frame: int
    alerts: Sequence[Alert]


class AlertFeed:
    """Takes alerts in the order of their frames and stores them in a thread of its own."""

    def __init__(
        self,
        store: CaseStore,
        policy: AlertPolicy,
        clock: Callable[[], int],
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """``clock``: unix seconds."""
        self.policy = policy
        self._store = store
        self._clock = clock
        self._max = max_waiting
        self._queue: deque[_Entry] = deque()
        self._waiting = self._alerts = self._hurried = 0
        self._changed = threading.Condition()
        self._stored = store.alerted_through()
        self._behind = False
        self._failure = ""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="alert-feed", daemon=True)
        self._thread.start()

    @property
    def stored_through(self) -> int:
        """The newest frame whose alerts are all stored."""
        return self._stored

    @property
    def failure(self) -> str:
        """Why alerts cannot be stored at present; empty if they can."""
        return self._failure

    def offer(self, frame: int, alerts: Sequence[Alert]) -> None:
        """Hand over all alerts up to a frame (frames in ascending order); one that is stored already is left out.

        Waits while the queue is full. If the store fails meanwhile, this and all later frames are left out here: the
        cursor stays before them, no snapshot passes it, and a restart offers them again.
        """
        with self._changed:
            if frame <= self._stored or self._behind:
                return
            self._changed.wait_for(lambda: self._waiting < self._max or bool(self._failure) or self._closing)
            if self._waiting >= self._max:
                self._behind = True
                LOGGER.error("alerts from frame %d on wait for a restart: %s", frame, self._failure)
                return
            self._queue.append(_Entry(frame, tuple(alerts)))
            self._waiting += len(alerts) + 1
            self._alerts += len(alerts)
            self._changed.notify_all()

    def alarm(self, kind: str, subject: str, text: str, time_us: int) -> None:
        """Open a case for an alarm of the brake or of a drift measurement; the same again is left out."""
        if kind not in (BRAKE, DRIFT):
            raise ValueError(f"{kind!r} is no kind of alarm")
        alert = Alert(
            source=f"{kind}:{subject}:{time_us}",
            kind=kind,
            customer=f"{kind} {subject}",
            event_id="",
            time_us=time_us,
            verdict=Verdict.REVIEW,
            rule=subject,
            amount=0.0,
            score=None,
            reasons=text,
        )
        self._store.open_alerts([alert], window_us=self.policy.window_us, now=self._clock())

    def flush(self, timeout: float) -> bool:
        """Wait until everything offered is stored; whether it is."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._queue or bool(self._failure), timeout)
            finally:
                self._hurried -= 1
            return not self._queue and not self._behind

    def close(self) -> None:
        """Store what waits, unless the store fails, and end the thread."""
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
                self._linger()
                batch: list[_Entry] = []
                rows = 0
                for entry in self._queue:
                    if batch and rows + len(entry.alerts) > MAX_BATCH:
                        break
                    batch.append(entry)
                    rows += len(entry.alerts)
            if self._keep(batch):
                with self._changed:
                    for entry in batch:
                        self._queue.popleft()
                        self._waiting -= len(entry.alerts) + 1
                        self._alerts -= len(entry.alerts)
                    self._stored, self._failure = batch[-1].frame, ""
                    self._changed.notify_all()
            elif self._closing:
                return

    def _linger(self) -> None:
        """Wait for more, unless somebody waits for what there is."""

        def due() -> bool:
            return bool(self._hurried) or self._closing or self._waiting >= min(MAX_BATCH, self._max)

        self._changed.wait_for(lambda: self._alerts > 0 or due(), CURSOR_SECONDS)
        self._changed.wait_for(due, LINGER_SECONDS)

    def _keep(self, batch: Sequence[_Entry]) -> bool:
        alerts = [alert for entry in batch for alert in entry.alerts]
        try:
            self._store.open_alerts(
                alerts, window_us=self.policy.window_us, now=self._clock(), through=batch[-1].frame
            )
        except Exception as error:  # noqa: BLE001 - whatever the database says: it is tried again and shown
            with self._changed:
                if not self._failure:
                    LOGGER.warning("%d alerts cannot be stored yet: %s", len(alerts), error)
                self._failure = f"{type(error).__name__}: {error}"
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            return False
        return True
