"""A bank's stream as its own staff drive it: open a file (or score live rows), then confirm, share and score.

All verbs are idempotent and their cursors durable: after a crash the journal rebuilds the engine, and repeating the
verb that was under way finishes it without scoring, counting or contributing anything twice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from member_node.service.decisions import NOT_KEPT
from member_node.service.opened import Opened, open_stream
from member_node.service.outcomes import (
    MATURED_DAY,
    ConfirmReport,
    OutcomeService,
    OutcomeStatistic,
)
from member_node.service.policy import NotJoinedError
from member_node.service.scoring import Batch
from member_node.service.sharing import share_day, statistic_of
from member_node.service.stream_parts import (
    OpenReport,
    ScoreReport,
    ShareReport,
    StreamError,
    StreamParts,
    StreamSource,
)
from member_node.service.verdict_rows import answers_of, tally
from member_node.streams.events import EventBatch, check_events
from member_node.streams.journal import Journal
from member_node.streams.mapping import StreamMapping
from scoring.rules.columns import ColumnSchema
from scoring.schema import OutcomeBatch

if TYPE_CHECKING:
    from member_node.streams.files import Reject

SOURCE = "stream"
CONFIRMED_ROWS = "confirmed_rows"
REPLAYED, FED = "replayed_rows", "fed_outcomes"
MAX_FRAME_ROWS = 50_000
CLOSED, OPENING, OPEN = "closed", "opening", "open"


@dataclass
class _Progress:
    """How far a replay has come: rows scored, and rows whose outcomes were fed to the engine."""

    scored: int = 0
    fed: int = 0


class StreamService:
    """The stream of one bank. Thread safe; verbs run one at a time."""

    def __init__(self, parts: StreamParts) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._opened: Opened | None = None
        self._stopping = threading.Event()
        self._progress = _Progress()
        self._doing = ""
        self._service = OutcomeService(parts.outcomes, parts.stream, parts.contributor)

    @property
    def state(self) -> str:
        """``closed``, ``open``, ``halted: why``, or what is being done to open it."""
        opened = self._opened
        if opened is not None:
            return f"halted: {opened.scoring.halted}" if opened.scoring.halted else OPEN
        return self._doing or CLOSED

    @property
    def statistic(self) -> OutcomeStatistic:
        """The bank's own part of joint statistics over its public directory."""
        return statistic_of(self._parts)

    def open(self, mapping: Path, features: Path, rules: Path, events: Path | None = None) -> OpenReport:
        """Open a stream: a file to replay, or (without ``events``) a live one.

        Opening the same again is harmless; another one is refused once events were accepted, since the journal and
        the features belong to the first. Raises :class:`StreamError` and what the readers of the files raise.
        """
        source = StreamSource(
            events="" if events is None else str(events.resolve()),
            events_digest="" if events is None else _digest(events),
            mapping_name=mapping.stem,
            mapping=mapping.read_text(encoding="utf-8"),
            features=features.read_text(encoding="utf-8"),
            rules=rules.read_text(encoding="utf-8"),
        )
        with self._lock:
            known = self._stored_source()
            if known is not None and known != source:
                if self._accepted_events():
                    changed = [
                        name
                        for name in StreamSource.__struct_fields__
                        if getattr(known, name) != getattr(source, name)
                    ]
                    raise StreamError(
                        f"{self._parts.party} has accepted events of another stream already ({', '.join(changed)} "
                        "differ); use a fresh data directory"
                    )
                self.close()
            if self._opened is None:
                self._open(source)
                self._parts.stream.save_source(SOURCE, msgspec.json.encode(source).decode())
            return self._open_report()

    def confirm(self, until_ms: int) -> ConfirmReport:
        """Record what is known by ``until_ms``, apply the evidence rule and contribute what it finds."""
        until_us = until_ms * 1000
        with self._lock:
            opened = self._require()
            first = self._parts.stream.cursor(CONFIRMED_ROWS) or 0
            known_at = opened.file.times + opened.mapping.label_delay_us
            due = int(np.searchsorted(known_at, until_us, side="right"))
            last = max(first, min(due, self._progress.scored))
            outcomes = frauds = 0
            if last > first:
                labels = opened.file.fraud[first:last]
                rows = first + np.flatnonzero(labels >= 0)
                outcomes = self._service.record(
                    opened.file.events.take(pa.array(rows)),
                    opened.file.fraud[rows] == 1,
                    known_at[rows],
                    opened.mapping,
                    opened.directory,
                    {CONFIRMED_ROWS: last},
                )
                frauds = int(np.count_nonzero(labels == 1))
            self._service.mature(self._matured_day(opened, until_us, last))
            try:
                findings = self._service.evaluate(until_us, self._parts.policy())
            except NotJoinedError as error:
                return ConfirmReport(outcomes, frauds, 0, 0, 0, str(error))
            contributed, waiting, reason = self._service.contribute()
            return ConfirmReport(outcomes, frauds, findings, contributed, waiting, reason)

    def share(self, day: int) -> ShareReport:
        """Mirror the index and ask for the counts of the days that have matured by the start of ``day``."""
        with self._lock:
            opened = self._require()
            return share_day(self._parts, opened.mapping, opened.scoring.surveyor.counts, day)

    def score(self, until_ms: int) -> ScoreReport:
        """Score the replayed file's events before ``until_ms`` that were not scored yet, in time order."""
        with self._lock:
            opened = self._require()
            last = int(np.searchsorted(opened.file.times, until_ms * 1000, side="left"))
            errors_before = opened.scoring.rule_errors
            verdicts, alone = [], []
            scored = degraded = 0
            reason = ""
            for batch in opened.scoring.score_each(self._batches(opened, last)):
                verdicts.append(batch.live.verdict)
                alone.append(batch.alone.verdict)
                scored += len(batch)
                degraded += len(batch) if batch.degraded else 0
                reason = batch.failure or reason
            if self._stopping.is_set() and self._progress.scored < last:
                raise StreamError("the node is closing: repeat the call when it serves again")
            return ScoreReport(
                scored=scored,
                total=self._progress.scored,
                remaining=len(opened.file.times) - self._progress.scored,
                verdicts=tally(verdicts),
                verdicts_alone=tally(alone),
                degraded=degraded,
                reason=reason,
                rule_errors=opened.scoring.rule_errors - errors_before,
            )

    def score_rows(
        self, rows: Sequence[Mapping[str, object]]
    ) -> tuple[list[dict[str, Any]], tuple[Reject, ...]]:
        """Score live rows (keyed by schema field); an answer for each acceptable row, and what was refused.

        An answer: event_id, disposition and, where it was judged, verdict, verdict_alone, degraded and reasons.
        """
        with self._lock:
            # Rows as texts need the reader of files, and it Polars; events as such come by another way.
            from member_node.streams.files import read_rows

            opened = self._require()
            read = read_rows(rows, _typed(opened.mapping, opened.schema), self._parts.latest_us())
            if not read.events.num_rows:
                return [], read.rejects
            events = read.events.select(opened.schema.names).cast(opened.schema)
            return answers_of(opened.scoring.score(events), events, opened.find), read.rejects

    def learn(self, outcomes: Sequence[tuple[str, bool, int]]) -> int:
        """Take outcomes of scored events (event id as text, fraud, known at in ms); how many were new.

        Raises :class:`StreamError` naming ids that were never scored here.
        """
        with self._lock:
            opened = self._require()
            known = self._parts.outcomes.known([event_id for event_id, _, _ in outcomes])
            fresh = {
                event_id: (fraud, at * 1000) for event_id, fraud, at in outcomes if event_id not in known
            }
            if not fresh:
                return 0
            schema = opened.schema
            found = opened.find(list(fresh), [name for name in schema.names if name not in NOT_KEPT])
            unknown = set(fresh) - {str(value) for value in found.column("event_id").to_pylist()}
            if unknown:
                raise StreamError(f"{len(unknown)} outcomes are of events this bank has not scored")
            found = _latest(found)
            ids = [str(value) for value in found.column("event_id").to_pylist()]
            kept = pa.schema([field for field in schema if field.name in found.schema.names])
            events = found.select(kept.names).cast(kept).combine_chunks().to_batches()[0]
            check_events(events)
            fraud = np.array([fresh[event_id][0] for event_id in ids], dtype=np.bool_)
            at = np.array([fresh[event_id][1] for event_id in ids], dtype=np.int64)
            event_ids = np.asarray(events.column("event_id").to_numpy(zero_copy_only=False))
            opened.scoring.learn(OutcomeBatch(event_id=event_ids, fraud=fraud, known_at_us=at))
            return self._service.record(events, fraud, at, opened.mapping, opened.directory)

    def report(self) -> dict[str, Any]:
        """State for the status page."""
        with self._lock:
            stored = self._stored_source()
            if stored is None:
                return {"open": False}
            opened = self._require()
            return {
                "open": True,
                **asdict(self._open_report()),
                "state": self.state,
                "ruleset": _ruleset(opened),
                "matured_day": self._parts.stream.cursor(MATURED_DAY),
                **self._parts.outcomes.totals(),
            }

    def columns(self) -> ColumnSchema:
        """The columns that rules of the open stream may read."""
        with self._lock:
            return self._require().columns()

    def stop(self, seconds: float) -> None:
        """Let a replay end after the batch it is at, and wait up to ``seconds`` for what is under way."""
        self._stopping.set()
        if self._lock.acquire(timeout=seconds):
            self._lock.release()

    def close(self) -> None:
        """Release the journal; the next verb opens the stream again."""
        with self._lock:
            if self._opened is not None:
                opened, self._opened = self._opened, None
                opened.close()

    def flush(self) -> None:
        """Have everything that was scored so far in the history's files, for whoever reads those."""
        with self._lock:
            if self._opened is not None:
                self._opened.flush()

    def resume(self) -> bool:
        """Open what was open before a restart, if anything was; whether something is open now."""
        with self._lock:
            if self._opened is None and self._stored_source() is not None:
                self._require()
            return self._opened is not None

    def opened(self) -> Opened:
        """The open stream, opened again if need be; raises :class:`StreamError` where there is none."""
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            return self._require()

    def _stored_source(self) -> StreamSource | None:
        stored = self._parts.stream.source(SOURCE)
        return None if stored is None else msgspec.json.decode(stored, type=StreamSource)

    def _accepted_events(self) -> bool:
        if self._opened is not None:
            return self._opened.journal.last_sequence > 0
        with Journal(self._parts.directory / "journal") as journal:
            return journal.last_sequence > 0

    def _require(self) -> Opened:
        if self._opened is None:
            source = self._stored_source()
            if source is None:
                raise StreamError(f"{self._parts.party} has no stream open: call replay/open first")
            if source.events and _digest(Path(source.events)) != source.events_digest:
                raise StreamError(
                    f"{source.events} has changed since it was opened; put the first version back"
                )
            self._open(source)
        assert self._opened is not None
        return self._opened

    def _open(self, source: StreamSource) -> None:
        try:
            opened = open_stream(self._parts, source, self._tell)
        finally:
            self._doing = ""
        facts = opened.restored.facts
        self._progress = _Progress(int(facts.get(REPLAYED, "0")), int(facts.get(FED, "0")))
        self._opened = opened
        self._parts.on_opened()

    def _tell(self, doing: str) -> None:
        self._doing = doing

    def _open_report(self) -> OpenReport:
        opened = self._require()
        times = opened.file.times
        days = opened.mapping.day_of(times[[0, -1]]) if len(times) else np.array([-1, -1])
        return OpenReport(
            rows=opened.file.rows,
            rejected=opened.file.rejected,
            rejects=str(opened.file.rejects or ""),
            first_day=int(days[0]),
            last_day=int(days[1]),
            scored=self._progress.scored,
        )

    def _matured_day(self, opened: Opened, until_us: int, confirmed: int) -> int:
        """The newest day whose transactions all have their outcome recorded."""
        delay = opened.mapping.label_delay_us
        day = int(opened.mapping.day_of(np.array([until_us - delay], dtype=np.int64))[0]) - 1
        if confirmed < len(opened.file.times):
            day = min(day, int(opened.mapping.day_of(opened.file.times[confirmed : confirmed + 1])[0]) - 1)
        return day

    def _batches(self, opened: Opened, until: int) -> Iterator[Batch]:
        """The file's next rows up to row ``until``: a day at most in one batch, at most one frame of rows."""
        times, fraud = opened.file.times, opened.file.fraud
        while self._progress.scored < until and not self._stopping.is_set():
            first = self._progress.scored
            last = min(until, first + MAX_FRAME_ROWS)
            days = opened.mapping.day_of(times[first:last])
            last = first + int(np.searchsorted(days, days[0], side="right"))
            known_at = times[:last] + opened.mapping.label_delay_us
            fed = max(self._progress.fed, int(np.searchsorted(known_at, times[last - 1], side="right")))
            rows = self._progress.fed + np.flatnonzero(fraud[self._progress.fed : fed] >= 0)
            outcomes = None
            if len(rows):
                ids = (
                    opened.file.events.column("event_id").take(pa.array(rows)).to_numpy(zero_copy_only=False)
                )
                outcomes = OutcomeBatch(np.asarray(ids), fraud[rows] == 1, known_at[rows])
            yield Batch(
                _slice(opened.file.events, first, last), outcomes, {REPLAYED: str(last), FED: str(fed)}
            )
            # Not before the batch was accepted: the generator goes on only when it was.
            self._progress = _Progress(last, fed)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ruleset(opened: Opened) -> dict[str, Any]:
    active = opened.scoring.in_force().deployment.active
    return {"name": active.name, "version": active.version}


def _latest(found: pa.Table) -> pa.Table:
    """One row an event: of one that was corrected, the one that was judged last."""
    last = {event_id: row for row, event_id in enumerate(found.column("event_id").to_pylist())}
    return found if len(last) == found.num_rows else found.take(pa.array(sorted(last.values())))


def _slice(events: EventBatch, first: int, last: int) -> EventBatch:
    return events.slice(first, last - first)


def _typed(mapping: StreamMapping, schema: pa.Schema) -> StreamMapping:
    """The mapping with the types the stream was opened with, so that live rows get the same keys."""
    named = ("event_id", *mapping.entities)
    return replace(
        mapping, types={n: "integer" if schema.field(n).type == pa.int64() else "text" for n in named}
    )
