"""Drift of the active model, measured again and again over the newest history, and an alarm when it is large.

What was measured last is kept in the bank's database, so that a restart neither forgets it nor measures again at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from member_node.service.models import ModelBook
from member_node.service.training import ScoredHistory, history_drift
from member_node.storage.outcomes import StreamStore
from scoring.drift import DriftReport
from scoring.models.dataset import DatasetError

LOGGER = logging.getLogger(__name__)
SOURCE = "drift"
HOUR_SECONDS = 3600
DAY_US = 86_400_000_000
LOOK_SECONDS = 60.0
# Below so many events the index of two samples of one population is easily as large as that of a moderate drift.
LEAST_ROWS = 1_000
TOLD_COLUMNS = 3


class DriftState(msgspec.Struct, frozen=True):
    """What was measured last. ``measured_at``: unix seconds; ``since_us`` and ``until_us``: of the events' times;
    ``columns``: name and index (PSI) of the score and the features that moved most; ``note``: why nothing is told."""

    version: int
    measured_at: int
    since_us: int = 0
    until_us: int = 0
    rows: int = 0
    level: str = ""
    score_psi: float | None = None
    worst_psi: float | None = None
    columns: tuple[tuple[str, float], ...] = ()
    note: str = ""


class DriftWatch:
    """Measures when it is time to; :meth:`step` is for one thread (see ``BackgroundLoop``)."""

    def __init__(
        self,
        models: ModelBook,
        history: ScoredHistory,
        store: StreamStore,
        *,
        every_hours: int,
        window_days: int,
        threshold: float,
        alarm: Callable[[str, str, int], None],
        clock: Callable[[], int],
    ) -> None:
        """``threshold``: the index above which ``alarm`` (subject, text, event time in us) is raised; ``clock``: unix
        seconds."""
        self._models = models
        self._history = history
        self._store = store
        self._every = every_hours * HOUR_SECONDS
        self._window_us = window_days * DAY_US
        self._threshold = threshold
        self._alarm = alarm
        self._clock = clock
        stored = store.source(SOURCE)
        self._state = None if stored is None else msgspec.json.decode(stored, type=DriftState)

    @property
    def state(self) -> DriftState | None:
        """What was measured last, None before the first time."""
        return self._state

    def step(self) -> float:
        """Measure if it is due, for the first time or for another model; the seconds until the next look."""
        model = self._models.serving().active
        if model is None:
            return LOOK_SECONDS
        held, now = self._state, self._clock()
        if held is not None and held.version == model.version and now - held.measured_at < self._every:
            return LOOK_SECONDS
        try:
            until = self._history.span_us()[1] + 1
            since = until - self._window_us
            report = history_drift(self._history, model, since, until)
        except DatasetError as error:
            self._keep(DriftState(model.version, now, note=str(error)))
            return LOOK_SECONDS
        state = _state(model.version, now, since, until, report)
        if state.worst_psi is not None and state.worst_psi > self._threshold:
            moved = ", ".join(f"{name} {psi:.2f}" for name, psi in state.columns)
            text = (
                f"model {model.name} has drifted on the {report.rows_now} events measured: stability index {moved} "
                f"(alarm above {self._threshold:g})"
            )
            LOGGER.warning("%s", text)
            self._alarm(f"model:{model.version}", text, until - 1)
        # Last: an alarm that could not be stored is raised again at the next try.
        self._keep(state)
        return LOOK_SECONDS

    def _keep(self, state: DriftState) -> None:
        self._state = state
        self._store.save_source(SOURCE, msgspec.json.encode(state).decode())


def _state(version: int, now: int, since: int, until: int, report: DriftReport) -> DriftState:
    if report.rows_now < LEAST_ROWS:
        note = f"{report.rows_now} events are too few to tell drift from chance: at least {LEAST_ROWS}"
        return DriftState(version, now, since, until, report.rows_now, note=note)
    measured = [each for each in (report.score, *report.features) if each.psi == each.psi]
    measured.sort(key=lambda each: -each.psi)
    return DriftState(
        version,
        now,
        since,
        until,
        report.rows_now,
        report.level,
        score_psi=report.score.psi if report.score.psi == report.score.psi else None,
        worst_psi=measured[0].psi if measured else None,
        columns=tuple((each.name, each.psi) for each in measured[:TOLD_COLUMNS]),
    )
