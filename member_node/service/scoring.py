"""Scoring a batch of the bank's own transactions: journal, evidence, features, rules, history - in this order.

What is on disk when: the events are in the journal before anything is computed, the verdicts are in the history
before they leave. After a crash the journal rebuilds the engine, and frames without a history file are judged then;
an event is never applied twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crypto.errors import CryptoError
from governance.log.follow import LogFollowError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.problems import ProblemError, RequestError
from governance.policy.decision import PolicyError, RefusedError
from member_node.client.ports import PartyUnreachableError
from member_node.latencies import Latencies
from member_node.service.counts import ConsortiumCounts
from member_node.service.evidence import (
    KindEvidence,
    LabelLike,
    distinct_values,
    no_evidence,
    weigh_labels,
)
from member_node.service.history import HistoryStore
from member_node.service.layout import evidence_columns, rule_columns, transaction_columns
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.streams.events import EventBatch, check_events, entities_of, transactions_of
from member_node.streams.journal import Draft, Frame, Journal
from member_node.streams.mapping import StreamMapping
from scoring.features.engine import FeatureMatrix
from scoring.reasons import Reason, reasons
from scoring.rules.columns import ColumnValues
from scoring.rules.ruleset import Judgement, RuleSet, load_ruleset
from scoring.schema import OutcomeBatch, TransactionBatch
from scoring.verdicts import VERDICT_LABELS, TierTable

LOGGER = logging.getLogger(__name__)
EVENTS, OUTCOMES = "events", "outcomes"
# The consortium is out of reach for a lookup, or what it says does not hold: expected, and logged without a trace.
UNREACHABLE = (
    ConsortiumUnavailableError,
    CryptoError,
    LogFollowError,
    MalformedError,
    MembershipError,
    NotJoinedError,
    PartyUnreachableError,
    PolicyError,
    ProblemError,
    RefusedError,
    RequestError,
)


class Engine(Protocol):
    """A feature engine: one in this process, or several behind shards."""

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the matrix."""

    def update(self, batch: TransactionBatch, outcomes: OutcomeBatch | None = None) -> FeatureMatrix:
        """Apply a batch in arrival order and give its features."""


class TagSource(Protocol):
    """Ensures tags in the cache (see ``LookupService.tags``)."""

    def tags(self, kind: str, values: Sequence[str]) -> object: ...


class EvidenceSource(Protocol):
    """Labels on cached values (see ``IndexMirror.evidence``)."""

    def evidence(self, kind: str, values: Sequence[str]) -> Mapping[str, Sequence[LabelLike]]: ...


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Verdicts of one batch. ``columns`` are those the rules with the consortium saw; ``reasons`` by row.

    ``events``: the rows that were judged; ``disposition`` uint8 says for every row that was given what became of it
    (duplicates and late events are not judged); ``sequence``: the journal frame; ``degraded``: the consortium could
    not be asked, or its counts are behind.
    """

    sequence: int
    events: EventBatch
    disposition: NDArray[np.uint8]
    live: Judgement
    alone: Judgement
    reasons: Mapping[int, tuple[Reason, ...]]
    degraded: bool
    table: pa.Table

    def __len__(self) -> int:
        return len(self.live.verdict)


@dataclass(frozen=True)
class Restored:
    """What a restart found: events applied again, frames judged now because their verdicts had not been written."""

    events: int
    judged: int
    facts: Mapping[str, str]


class ScoringService:
    """One bank's stream. Calls are serialised: a stream has one order."""

    def __init__(
        self,
        party: str,
        mapping: StreamMapping,
        rules_text: str,
        *,
        engine: Engine,
        features: Sequence[str],
        journal: Journal,
        history: HistoryStore,
        tags: TagSource,
        mirror: EvidenceSource,
        tiers: Callable[[], TierTable],
        counts: ConsortiumCounts | None,
        latencies: Latencies | None = None,
    ) -> None:
        """``features``: those of the engine that rules may read and the history keeps.

        ``tiers`` gives the tiers of the policy in force (raises ``NotJoinedError`` before the first).
        """
        self.party = party
        self.mapping = mapping
        self.counts = counts
        self._engine = engine
        self._features = [(name, engine.names.index(name)) for name in features]
        self._journal = journal
        self._history = history
        self._tags = tags
        self._mirror = mirror
        self._tiers = tiers
        self._latencies = latencies or Latencies()
        self._lock = threading.RLock()
        names = counts.names() if counts is not None else []
        self.columns = rule_columns(mapping, features, names)
        self.ruleset: RuleSet = load_ruleset(rules_text, self.columns)
        self._waiting: list[OutcomeBatch] = []
        self.rule_errors = 0
        self.degraded_reason = ""

    def restore(self) -> Restored:
        """Rebuild the engine from the journal and judge what was accepted but not judged. Call once, first."""
        events = judged = 0
        facts: dict[str, str] = {}
        with self._lock:
            for frame in self._journal.frames():
                facts.update(frame.facts)
                if frame.kind == OUTCOMES:
                    self._waiting.append(outcomes_of(frame.rows))
                    continue
                batch = transactions_of(frame.rows)
                features = self._engine.update(batch, self._take_waiting())
                events += len(batch)
                if not self._history.has(frame.sequence):
                    self._judge(frame, batch, features)
                    judged += 1
        return Restored(events, judged, facts)

    def score(
        self, events: EventBatch, outcomes: OutcomeBatch | None = None, facts: Mapping[str, str] | None = None
    ) -> ScoredBatch:
        """Accept and judge events (valid rows, in arrival order) after the outcomes that became known before.

        ``facts`` are kept in the journal and given back by :meth:`restore`. Raises ``JournalError`` (nothing was
        accepted then) and ``EventSchemaError``.
        """
        check_events(events)
        with self._lock, self._latencies.time("score batch", events.num_rows):
            drafts = []
            if outcomes is not None and len(outcomes):
                drafts.append(Draft(OUTCOMES, outcome_rows(outcomes)))
                self._waiting.append(outcomes)
            drafts.append(Draft(EVENTS, events, facts or {}))
            try:
                sequence = self._journal.append(drafts)
            except BaseException:
                if len(drafts) > 1:
                    self._waiting.pop()
                raise
            batch = transactions_of(events)
            features = self._engine.update(batch, self._take_waiting())
            return self._judge(Frame(sequence, EVENTS, facts or {}, events), batch, features)

    def learn(self, outcomes: OutcomeBatch, facts: Mapping[str, str] | None = None) -> None:
        """Accept outcomes on their own; they are visible to the next events at or after they became known."""
        with self._lock:
            self._journal.append([Draft(OUTCOMES, outcome_rows(outcomes), facts or {})])
            self._waiting.append(outcomes)

    def _take_waiting(self) -> OutcomeBatch | None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        if len(waiting) == 1:
            return waiting[0]
        return OutcomeBatch(
            event_id=np.concatenate([each.event_id for each in waiting]),
            fraud=np.concatenate([each.fraud for each in waiting]),
            known_at_us=np.concatenate([each.known_at_us for each in waiting]),
        )

    def _judge(self, frame: Frame, batch: TransactionBatch, features: FeatureMatrix) -> ScoredBatch:
        disposition = features.disposition
        applied = np.flatnonzero(features.applied)
        events = frame.rows
        if len(applied) < len(batch):
            events, batch = events.take(pa.array(applied)), batch.take(applied)
            features = FeatureMatrix(
                features.names, features.values[applied], disposition[applied], features.refusal[applied]
            )
        rows = len(batch)
        evidence, tiers, failure = self._evidence(events, batch.time_us)
        own_counts: Mapping[str, NDArray[np.float64]] = {}
        all_counts: Mapping[str, NDArray[np.float64]] = {}
        if self.counts is not None:
            if rows:
                self.counts.start(int(self.mapping.day_of(batch.time_us).min()))
            cells = self.counts.directory.cells(events.column(self.mapping.directory_entity))
            all_counts, own_counts = self.counts.columns(cells, batch.time_us)
            if (
                not failure
                and rows
                and not self.counts.is_current(int(self.mapping.day_of(batch.time_us).max()))
            ):
                failure = "the consortium's counts are behind"
        self.degraded_reason = failure
        common = transaction_columns(self.mapping, batch.amount, batch.channel, batch.time_us)
        common |= {
            name: features.values[:, i] for i, name in enumerate(features.names) if name in self.columns
        }
        judgements: list[Judgement] = []
        explained: Mapping[int, tuple[Reason, ...]] = {}
        for alone in (False, True):
            seen: dict[str, ColumnValues] = dict(common)
            found, limits = evidence_columns(evidence, tiers, alone=alone)
            seen |= found
            seen |= own_counts if alone else all_counts
            seen["degraded"] = np.full(rows, bool(failure) and not alone)
            judgement = self.ruleset.evaluate(seen, rows, limits)
            judgements.append(judgement)
            if not alone:
                explained = reasons(self.ruleset, judgement, seen)
        live, shadow = judgements
        self.rule_errors += int(live.errors.sum())
        table = self._table(events, features, evidence, all_counts, live, shadow, bool(failure))
        self._history.write(frame.sequence, table)
        return ScoredBatch(frame.sequence, events, disposition, live, shadow, explained, bool(failure), table)

    def _evidence(
        self, events: EventBatch, time_us: NDArray[np.int64]
    ) -> tuple[dict[str, KindEvidence], TierTable, str]:
        """Evidence by kind, the tiers, and why the consortium could not be asked (empty if it could).

        The events are accepted by now and must get a verdict, so **nothing that others say or fail to say may raise
        here**, of whatever kind: the bank scores on without it, and the verdict says so.
        """
        failure = ""
        evidence: dict[str, KindEvidence] = {}
        try:
            tiers = self._tiers()
        except Exception as error:  # noqa: BLE001 - see above; what is unexpected is logged with its trace
            self._without("the consortium", error)
            nothing = {kind: no_evidence(events.num_rows) for kind in self.mapping.indicators.values()}
            return nothing, TierTable([]), str(error) or type(error).__name__
        for entity, kind in self.mapping.indicators.items():
            codes, vocabulary = distinct_values(events.column(entity))
            try:
                if vocabulary:
                    self._tags.tags(kind, vocabulary)
            except Exception as error:  # noqa: BLE001 - see above
                failure = failure or str(error) or type(error).__name__
                self._without(f"new lookups of {kind}", error)
            try:
                # Values in the cache are answered by the mirror even when nobody can be asked.
                labels = self._mirror.evidence(kind, vocabulary)
                evidence[kind] = weigh_labels(codes, vocabulary, labels, time_us, self.party)
            except Exception as error:  # noqa: BLE001 - see above
                failure = failure or str(error) or type(error).__name__
                self._without(f"labels of {kind}", error)
                evidence[kind] = no_evidence(events.num_rows)
        return evidence, tiers, failure

    def _without(self, what: str, error: Exception) -> None:
        unexpected = not isinstance(error, UNREACHABLE)
        LOGGER.warning("%s scores without %s: %s", self.party, what, error, exc_info=unexpected)

    def _table(
        self,
        events: EventBatch,
        features: FeatureMatrix,
        evidence: Mapping[str, KindEvidence],
        counts: Mapping[str, NDArray[np.float64]],
        live: Judgement,
        alone: Judgement,
        degraded: bool,
    ) -> pa.Table:
        columns: dict[str, Any] = {
            name: events.column(name) for name in ("event_id", "time_us", "channel", "amount")
        }
        columns |= {name: events.column(name) for name in entities_of(events)}
        columns["verdict"] = _labels(live.verdict)
        columns["rule"] = self._rules(live.rule)
        columns["verdict_alone"] = _labels(alone.verdict)
        columns["rule_alone"] = self._rules(alone.rule)
        for kind, found in evidence.items():
            columns[f"{kind}_victims_own"] = pa.array(found.own.astype(np.int32))
            columns[f"{kind}_victims_all"] = pa.array(found.all.astype(np.int32))
            columns[f"{kind}_labels"] = pa.array(found.labels, type=pa.string())
        for name, place in self._features:
            columns[name] = pa.array(np.ascontiguousarray(features.values[:, place]))
        columns |= {name: pa.array(values) for name, values in counts.items()}
        columns["degraded"] = pa.array(np.full(events.num_rows, degraded))
        return pa.table(columns)

    def _rules(self, index: NDArray[np.int16]) -> pa.Array:
        ids = pa.array([rule.id for rule in self.ruleset.rules], type=pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(index, mask=index < 0), ids).cast(pa.string())


def _labels(verdict: NDArray[np.uint8]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(verdict.astype(np.int8)), pa.array(VERDICT_LABELS)).cast(
        pa.string()
    )


def outcome_rows(outcomes: OutcomeBatch) -> pa.RecordBatch:
    """Outcomes as a journal frame's rows."""
    ids = outcomes.event_id
    kind = pa.string() if ids.dtype == object else pa.int64()
    return pa.record_batch(
        {
            "event_id": pa.array(ids, type=kind),
            "fraud": pa.array(outcomes.fraud),
            "known_at_us": pa.array(outcomes.known_at_us),
        }
    )


def outcomes_of(rows: pa.RecordBatch) -> OutcomeBatch:
    """The outcomes of a journal frame."""
    return OutcomeBatch(
        event_id=np.asarray(rows.column("event_id").to_numpy(zero_copy_only=False)),
        fraud=np.asarray(rows.column("fraud").to_numpy(zero_copy_only=False), dtype=np.bool_),
        known_at_us=np.asarray(rows.column("known_at_us").to_numpy(zero_copy_only=False), dtype=np.int64),
    )
