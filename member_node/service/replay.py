"""A bank's stream as its own staff drive it: open a file (or score live rows), then confirm, share and score.

All verbs are idempotent and their cursors durable: after a crash the journal rebuilds the engine, and repeating the
verb that was under way finishes it without scoring, counting or contributing anything twice.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.service.counts import ConsortiumCounts, PublicDirectory
from member_node.service.history import HistoryStore
from member_node.service.layout import tier_table
from member_node.service.outcomes import (
    MATURED_DAY,
    ConfirmReport,
    OutcomeService,
    OutcomeStatistic,
)
from member_node.service.policy import NotJoinedError
from member_node.service.scoring import ScoredBatch, ScoringService
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
from member_node.streams.files import EventFile, Reject, read_events, read_rows, write_rejects
from member_node.streams.journal import Journal
from member_node.streams.mapping import StreamMapping, parse_mapping
from scoring.features.spec import FieldFeature, parse_spec
from scoring.rules.columns import ColumnSchema
from scoring.schema import OutcomeBatch

LOGGER = logging.getLogger(__name__)
SOURCE = "stream"
CONFIRMED_ROWS = "confirmed_rows"
REPLAYED, FED = "replayed_rows", "fed_outcomes"
MAX_FRAME_ROWS = 50_000


@dataclass(frozen=True, eq=False)
class _Opened:
    source: StreamSource
    mapping: StreamMapping
    file: EventFile
    times: NDArray[np.int64]
    scoring: ScoringService
    journal: Journal
    history: HistoryStore
    directory: PublicDirectory | None


class StreamService:
    """The stream of one bank. Thread safe; verbs run one at a time."""

    def __init__(self, parts: StreamParts) -> None:
        self._parts = parts
        self._lock = threading.RLock()
        self._opened: _Opened | None = None
        self._stopping = threading.Event()
        self._replayed = 0
        self._fed = 0
        self._service = OutcomeService(parts.outcomes, parts.stream, parts.contributor)
        self._public: tuple[str, PublicDirectory] | None = None

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
            known_at = opened.times + opened.mapping.label_delay_us
            due = int(np.searchsorted(known_at, until_us, side="right"))
            last = max(first, min(due, self._replayed))
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
            return share_day(self._parts, opened.mapping, opened.scoring.counts, day)

    def score(self, until_ms: int) -> ScoreReport:
        """Score the replayed file's events before ``until_ms`` that were not scored yet, in time order."""
        with self._lock:
            opened = self._require()
            last = int(np.searchsorted(opened.times, until_ms * 1000, side="left"))
            batches: list[ScoredBatch] = []
            errors_before = opened.scoring.rule_errors
            while self._replayed < last:
                if self._stopping.is_set():
                    raise StreamError("the node is closing: repeat the call when it serves again")
                batches.append(self._score_next(opened, last))
            scored = sum(len(batch) for batch in batches)
            return ScoreReport(
                scored=scored,
                total=self._replayed,
                remaining=len(opened.times) - self._replayed,
                verdicts=tally([batch.live.verdict for batch in batches]),
                verdicts_alone=tally([batch.alone.verdict for batch in batches]),
                degraded=sum(len(batch) for batch in batches if batch.degraded),
                reason=opened.scoring.degraded_reason if any(batch.degraded for batch in batches) else "",
                rule_errors=opened.scoring.rule_errors - errors_before,
            )

    def score_rows(
        self, rows: Sequence[Mapping[str, object]]
    ) -> tuple[list[dict[str, Any]], tuple[Reject, ...]]:
        """Score live rows (keyed by schema field); an answer for each acceptable row, and what was refused.

        An answer: event_id, disposition and, where it was judged, verdict, verdict_alone, degraded and reasons.
        """
        with self._lock:
            opened = self._require()
            read = read_rows(rows, _typed(opened.mapping, opened.file.events.schema))
            if not read.events.num_rows:
                return [], read.rejects
            events = read.events.select(opened.file.events.schema.names).cast(opened.file.events.schema)
            return answers_of(opened.scoring.score(events), events), read.rejects

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
            schema = opened.file.events.schema
            found = opened.history.find(list(fresh), schema.names)
            ids = [str(value) for value in found.column("event_id").to_pylist()]
            unknown = set(fresh) - set(ids)
            if unknown:
                raise StreamError(f"{len(unknown)} outcomes are of events this bank has not scored")
            events = found.select(schema.names).cast(schema).combine_chunks().to_batches()[0]
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
                "ruleset": {"name": opened.scoring.ruleset.name, "version": opened.scoring.ruleset.version},
                "matured_day": self._parts.stream.cursor(MATURED_DAY),
                **self._parts.outcomes.totals(),
            }

    def columns(self) -> ColumnSchema:
        """The columns that rules of the open stream may read."""
        with self._lock:
            return self._require().scoring.columns

    def stop(self, seconds: float) -> None:
        """Let a replay end after the batch it is at, and wait up to ``seconds`` for what is under way."""
        self._stopping.set()
        if self._lock.acquire(timeout=seconds):
            self._lock.release()

    def close(self) -> None:
        """Release the journal; the next verb opens the stream again."""
        with self._lock:
            if self._opened is not None:
                self._opened.journal.close()
                self._opened = None

    def _stored_source(self) -> StreamSource | None:
        stored = self._parts.stream.source(SOURCE)
        return None if stored is None else msgspec.json.decode(stored, type=StreamSource)

    def _accepted_events(self) -> bool:
        if self._opened is not None:
            return self._opened.journal.last_sequence > 0
        with Journal(self._parts.directory / "journal") as journal:
            return journal.last_sequence > 0

    def _require(self) -> _Opened:
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
        mapping = parse_mapping(
            source.mapping, name=source.mapping_name, source=f"mapping {source.mapping_name}"
        )
        parts = self._parts
        file = read_events(Path(source.events), mapping) if source.events else read_rows([], mapping)
        if file.rejects:
            write_rejects(file.rejects, parts.directory / "rejects.csv")
            LOGGER.warning(
                "%s: %d of %d rows refused, see rejects.csv", source.events, file.rejected, file.rows
            )
        directory = self._load_directory(mapping)
        counts = None
        if directory is not None:
            counts = ConsortiumCounts(mapping.directory_dataset, directory, mapping, parts.stream)
        history = HistoryStore(parts.directory / "history")
        spec = parse_spec(source.features)
        engine = parts.engine(spec)
        journal = Journal(parts.directory / "journal")
        try:
            scoring = ScoringService(
                parts.party,
                mapping,
                source.rules,
                engine=engine,
                features=[each.name for each in spec.features if not isinstance(each, FieldFeature)],
                journal=journal,
                history=history,
                tags=parts.tags,
                mirror=parts.mirror,
                tiers=lambda: tier_table(parts.policy()),
                counts=counts,
                latencies=parts.latencies,
            )
            restored = scoring.restore()
        except BaseException:
            journal.close()
            raise
        self._replayed = int(restored.facts.get(REPLAYED, "0"))
        self._fed = int(restored.facts.get(FED, "0"))
        times = np.asarray(file.events.column("time_us").to_numpy(), dtype=np.int64)
        self._opened = _Opened(source, mapping, file, times, scoring, journal, history, directory)

    def _load_directory(self, mapping: StreamMapping) -> PublicDirectory | None:
        if not mapping.directory_entity or not self._parts.public_ids:
            return None
        kind = mapping.indicators.get(mapping.directory_entity, mapping.directory_entity)
        return PublicDirectory(kind, self._parts.public_ids)

    def _open_report(self) -> OpenReport:
        opened = self._require()
        days = opened.mapping.day_of(opened.times[[0, -1]]) if len(opened.times) else np.array([-1, -1])
        return OpenReport(
            rows=opened.file.rows,
            rejected=opened.file.rejected,
            rejects=str(self._parts.directory / "rejects.csv") if opened.file.rejects else "",
            first_day=int(days[0]),
            last_day=int(days[1]),
            scored=self._replayed,
        )

    def _matured_day(self, opened: _Opened, until_us: int, confirmed: int) -> int:
        """The newest day whose transactions all have their outcome recorded."""
        delay = opened.mapping.label_delay_us
        day = int(opened.mapping.day_of(np.array([until_us - delay], dtype=np.int64))[0]) - 1
        if confirmed < len(opened.times):
            day = min(day, int(opened.mapping.day_of(opened.times[confirmed : confirmed + 1])[0]) - 1)
        return day

    def _score_next(self, opened: _Opened, last: int) -> ScoredBatch:
        """Score up to the end of the next event's day, at most one frame of rows."""
        first = self._replayed
        last = min(last, first + MAX_FRAME_ROWS)
        days = opened.mapping.day_of(opened.times[first:last])
        last = first + int(np.searchsorted(days, days[0], side="right"))
        known_at = opened.times[:last] + opened.mapping.label_delay_us
        fed = max(self._fed, int(np.searchsorted(known_at, opened.times[last - 1], side="right")))
        rows = self._fed + np.flatnonzero(opened.file.fraud[self._fed : fed] >= 0)
        outcomes = None
        if len(rows):
            ids = opened.file.events.column("event_id").take(pa.array(rows)).to_numpy(zero_copy_only=False)
            outcomes = OutcomeBatch(np.asarray(ids), opened.file.fraud[rows] == 1, known_at[rows])
        facts = {REPLAYED: str(last), FED: str(fed)}
        batch = opened.scoring.score(_slice(opened.file.events, first, last), outcomes, facts)
        self._replayed, self._fed = last, fed
        return batch


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _slice(events: EventBatch, first: int, last: int) -> EventBatch:
    return events.slice(first, last - first)


def _typed(mapping: StreamMapping, schema: pa.Schema) -> StreamMapping:
    """The mapping with the types the stream was opened with, so that live rows get the same keys."""
    named = ("event_id", *mapping.entities)
    return replace(
        mapping, types={n: "integer" if schema.field(n).type == pa.int64() else "text" for n in named}
    )
