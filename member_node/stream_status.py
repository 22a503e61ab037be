"""What a node's stream tells of itself: gauges for Prometheus, and one object for `subrosa member status`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from member_node.metrics import NodeMetrics
from member_node.service.cases import CaseService
from member_node.service.drift_watch import DriftState
from member_node.service.lists import ListBook
from member_node.service.models import ModelBook
from member_node.service.opened import Opened
from member_node.service.replay import OPEN, StreamService


class StreamWatch:
    """Reads an open stream and what is kept around it; never opens it."""

    def __init__(
        self,
        stream: StreamService,
        lists: ListBook,
        models: ModelBook,
        cases: CaseService,
        drift: Callable[[], DriftState | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock``: the wall clock's seconds since 1970, which files are dated by."""
        self._stream = stream
        self._lists = lists
        self._models = models
        self._cases = cases
        self._drift = drift
        self._clock = clock

    def gauges(self, metrics: NodeMetrics) -> None:
        """Add the stream's gauges, read when somebody asks; of an open stream only, NaN or nothing without one."""

        def watch(name: str, text: str, read: Callable[[Opened], float]) -> None:
            metrics.watch(name, text, lambda: self._read(read, math.nan))

        metrics.watch("stream_open", "1 while events are scored.", lambda: float(self._stream.state == OPEN))
        watch("journal_bytes", "Bytes of the journal.", lambda each: each.journal.nbytes)
        watch("journal_segments", "Segments of the journal.", lambda each: each.journal.segments)
        watch("journal_sequence", "Newest journal frame.", lambda each: each.journal.last_sequence)
        watch("snapshot_sequence", "Frame of the newest snapshot.", lambda each: _newest(each)[0])
        watch("snapshot_age_seconds", "Age of the newest snapshot.", self._snapshot_age)
        watch("snapshot_stall_seconds", "Wait of the stream for it.", lambda each: each.keeper.stall_seconds)
        watch("snapshot_failures", "Snapshots not taken.", lambda each: each.keeper.failures)
        watch("history_rows", "Scored events that are kept.", lambda each: each.history.rows())
        watch("history_waiting_rows", "Scored rows not in files.", _waiting)
        watch("model_degraded", "1 while the active model gives no scores.", lambda each: bool(_model(each)))
        watch("consortium_degraded", "1 while evidence is behind.", lambda each: bool(_consortium(each)))
        metrics.watch(
            "rule_stopped",
            "1 while the brake keeps a live rule silent.",
            lambda: self._read(_stopped, {}),
            label="rule",
        )
        metrics.watch("list_entries", "Entries of a list.", self._list_sizes, label="list")
        metrics.watch(
            "model_rows_without_score",
            "Rows that a model in service gave no score since it was loaded.",
            self._without_score,
            label="version",
        )
        metrics.watch("model_version", "Version of the active model, 0 for none.", self._model_version)
        metrics.watch("drift_score_psi", "Drift of the score, last measured.", lambda: self._psi("score_psi"))
        metrics.watch(
            "drift_worst_psi", "Drift of what moved most, last measured.", lambda: self._psi("worst_psi")
        )
        metrics.watch(
            "open_cases", "Cases that wait for a decision.", lambda: float(self._cases.counts()["open"])
        )

    def status(self, degraded: Sequence[str]) -> dict[str, Any]:
        """State of stream, journal, snapshots, history, rules, lists, model and drift; JSON."""
        serving, drift = self._models.serving(), self._drift()
        told: dict[str, Any] = {
            "state": self._stream.state,
            "degraded": list(degraded),
            "lists": {
                table.name: {"kind": table.kind.value, "entries": len(table.expiries)}
                for table in self._lists.snapshot().tables
            },
            "model": {
                "active": None if serving.active is None else serving.active.version,
                "name": None if serving.active is None else serving.active.card.name,
                "shadows": [each.version for each in serving.shadows],
                "failure": serving.failure,
            },
            "drift": None
            if drift is None
            else {name: getattr(drift, name) for name in drift.__struct_fields__},
            "open_cases": self._cases.counts()["open"],
        }
        told |= self._read(self._opened_status, {})
        return told

    def _opened_status(self, opened: Opened) -> dict[str, Any]:
        sequence, at = _newest(opened)
        journal, deployment = opened.journal, opened.scoring.in_force().deployment
        return {
            "journal": {
                "bytes": journal.nbytes,
                "segments": journal.segments,
                "first": journal.first_sequence,
                "last": journal.last_sequence,
            },
            "snapshot": {
                "sequence": sequence,
                "age_seconds": None if math.isnan(at) else max(0, round(self._clock() - at)),
                "failure": opened.keeper.last_error,
            },
            "history": {
                "rows": opened.history.rows(),
                "waiting_rows": int(_waiting(opened)),
                "failure": opened.feed.failure,
            },
            "rules": {
                "deployment": deployment.number,
                "versions": [each.version for each in deployment.live],
                "stopped": sorted(name for name, stopped in _stopped(opened).items() if stopped),
            },
        }

    def _read(self, read: Callable[[Opened], Any], otherwise: Any) -> Any:
        return read(self._stream.opened()) if self._stream.state == OPEN else otherwise

    def _snapshot_age(self, opened: Opened) -> float:
        at = _newest(opened)[1]
        return at if math.isnan(at) else max(0.0, self._clock() - at)

    def _list_sizes(self) -> Mapping[str, float]:
        return {table.name: float(len(table.expiries)) for table in self._lists.snapshot().tables}

    def _without_score(self) -> Mapping[str, float]:
        serving = self._models.serving()
        served = (serving.active, *serving.shadows)
        return {str(each.version): float(each.failures) for each in served if each is not None}

    def _model_version(self) -> float:
        active = self._models.serving().active
        return 0.0 if active is None else float(active.version)

    def _psi(self, name: str) -> float:
        state = self._drift()
        value = None if state is None else getattr(state, name)
        return math.nan if value is None else float(value)


def _newest(opened: Opened) -> tuple[int, float]:
    """The newest snapshot's frame, and when it was written; (0, NaN) where there is none."""
    newest = opened.snapshots.newest()
    return (0, math.nan) if newest is None else newest


def _waiting(opened: Opened) -> float:
    return opened.feed.waiting_rows + opened.history.waiting_rows


def _model(opened: Opened) -> str:
    return opened.scoring.model_failure


def _consortium(opened: Opened) -> str:
    return opened.scoring.degraded_reason


def _stopped(opened: Opened) -> Mapping[str, float]:
    """By rule of the live versions; a rule of two of them is stopped in both."""
    return {each.rule: float(each.braked) for each in opened.scoring.core.brake_counts()}
