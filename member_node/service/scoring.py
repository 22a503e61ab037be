"""Scoring a bank's own transactions: journal, features, judgement, journal, disk, answer - in this order.

The events' frame is appended before anything is computed, the verdicts' frame before they leave, and one ``fsync``
covers both: a verdict that has left is on disk with the events it is about. After a crash a snapshot and the journal
behind it rebuild the state to the bit; frames with verdicts keep the verdicts that were given, frames without are
judged then.

Two batches may be under way at once, one in its features, the next one's verdicts behind it: whoever holds the first
lock takes the second before letting go, so batches never overtake each other and results do not depend on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.latencies import Latencies
from member_node.metrics import FEATURES, JOURNAL, RULES, SYNC
from member_node.service.decisions import DEPLOYMENT, OF, decision_facts, decision_rows, recalled
from member_node.service.frames import (
    EVENTS,
    OUTCOMES,
    VERDICTS,
    components_of,
    joined,
    outcome_rows,
    outcomes_of,
    remaining_state,
    split_state,
)
from member_node.service.history_feed import HistoryFeed, ScoredFrame
from member_node.service.surroundings import Surroundings, Surveyor
from member_node.streams.events import EventBatch, transactions_of
from member_node.streams.journal import Draft, Frame, Journal
from scoring.engine import ScoringCore
from scoring.reasons import Reason
from scoring.rules.deployment import Deployment
from scoring.schema import OutcomeBatch, TransactionBatch
from scoring.scored import Advanced, InForce, ScoredRows, Words

LOGGER = logging.getLogger(__name__)


class StreamHaltedError(RuntimeError):
    """Scoring has stopped because going on could lose or repeat something; the text says why and what to do."""


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Verdicts of one batch. ``live.verdict`` and ``alone.verdict`` uint8 [m], ``reasons`` by judged row.

    ``events``: the m rows that were judged; ``disposition`` and ``refusal`` uint8 [n] say for every row that was given
    what became of it (duplicates and late events are not judged); ``sequence``: the journal frame of the events;
    ``degraded``: the consortium could not be asked, or its counts are behind (``failure`` says which).
    """

    sequence: int
    events: EventBatch
    disposition: NDArray[np.uint8]
    refusal: NDArray[np.uint8]
    scored: ScoredRows
    failure: str

    @property
    def live(self) -> Words:
        """The verdicts that were given."""
        return self.scored.live

    @property
    def alone(self) -> Words:
        """What the bank would have said without the consortium."""
        return self.scored.alone

    @property
    def reasons(self) -> Mapping[int, tuple[Reason, ...]]:
        """Why, for each judged row that was not allowed."""
        return self.scored.reasons

    @property
    def degraded(self) -> bool:
        """Whether the consortium's part was missing or behind."""
        return bool(self.failure)

    def __len__(self) -> int:
        return len(self.scored)


@dataclass(frozen=True)
class Restored:
    """What a restart found: events applied again, frames judged now because their verdicts had not been written."""

    events: int
    judged: int
    facts: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Batch:
    """Events to score, after the outcomes that became known before; ``facts`` are kept in the journal."""

    events: EventBatch
    outcomes: OutcomeBatch | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Begun:
    """A batch whose events are in the journal and whose features are computed."""

    sequence: int
    events: EventBatch
    advanced: Advanced


class ScoringService:
    """One bank's stream. Thread safe: a stream has one order, that in which calls begin."""

    def __init__(
        self,
        *,
        core: ScoringCore,
        surveyor: Surveyor,
        in_force: Callable[[], InForce],
        deployment_at: Callable[[int], Deployment],
        journal: Journal,
        feed: HistoryFeed,
        numbers: Iterable[str] = (),
        latencies: Latencies | None = None,
        on_scored: Callable[[ScoredBatch], None] = lambda batch: None,
        on_stage: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """``in_force``: asked once a batch for rules, lists and models; ``deployment_at``: an earlier deployment by
        its number, for replays; ``numbers``: attributes that features read.

        ``on_scored`` sees every batch once its verdicts are final (counting; it must be quick and not raise),
        ``on_stage`` how many seconds a stage took (the same).
        """
        self.core = core
        self.surveyor = surveyor
        self.in_force = in_force
        self._deployment_at = deployment_at
        self._journal = journal
        self._feed = feed
        self._numbers = tuple(numbers)
        self._latencies = latencies or Latencies()
        self._on_scored = on_scored
        self._on_stage = on_stage
        self._first, self._second = threading.Lock(), threading.Lock()
        self._waiting: list[OutcomeBatch] = []
        self._facts: dict[str, str] = {}
        self._halted = ""
        self._pipe: ThreadPoolExecutor | None = None
        self._judged_by = in_force().deployment.number
        self.accepted = 0
        self.rule_errors = 0
        self.degraded_reason = ""
        self.model_failure = ""

    @property
    def halted(self) -> str:
        """Why nothing is scored any more; empty while all is well."""
        return self._halted

    def score(
        self, events: EventBatch, outcomes: OutcomeBatch | None = None, facts: Mapping[str, str] | None = None
    ) -> ScoredBatch:
        """Accept and judge events (valid rows, in arrival order) after the outcomes that became known before.

        ``facts`` are kept in the journal and given back by :meth:`restore`. Raises ``JournalError`` (nothing was
        accepted then), ``EventSchemaError`` and :class:`StreamHaltedError`.
        """
        scored = self.score_unsettled(events, outcomes, facts)
        self.settle()
        return scored

    def score_unsettled(
        self, events: EventBatch, outcomes: OutcomeBatch | None = None, facts: Mapping[str, str] | None = None
    ) -> ScoredBatch:
        """:meth:`score` without the wait for the disk: what it returns must not leave before :meth:`settle`."""
        with self._latencies.time("score batch", events.num_rows):
            return self._finish(self._begin(Batch(events, outcomes, facts or {})))

    def score_each(self, batches: Iterable[Batch]) -> Iterator[ScoredBatch]:
        """Score batches in their order, the features of one while the one before is judged; durable when yielded."""
        if self._pipe is None:
            self._pipe = ThreadPoolExecutor(1, thread_name_prefix="scoring-judge")
        before: Future[ScoredBatch] | None = None
        for batch in batches:
            begun = self._begin(batch)
            try:
                following = self._pipe.submit(self._finish_durably, begun)
            except BaseException:
                self._second.release()
                raise
            if before is not None:
                yield before.result()
            before = following
        if before is not None:
            yield before.result()

    def learn(self, outcomes: OutcomeBatch, facts: Mapping[str, str] | None = None) -> None:
        """Accept outcomes on their own; they are visible to the next events at or after they became known."""
        with self._first:
            self._check()
            self._journal.append([Draft(OUTCOMES, outcome_rows(outcomes), facts or {})], sync=False)
            self._waiting.append(outcomes)
            self._facts.update(facts or {})
        self.settle()

    def checkpoint(self, take: Callable[[int], object]) -> None:
        """Call ``take`` with the newest journal frame while nothing is under way and everything so far is on disk:
        :meth:`state` is then exactly the state after that frame."""
        with self._first, self._second:
            self._check()
            self.settle()
            take(self._journal.last_sequence)

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All state as numbers, without ``copy`` views of it; only from within :meth:`checkpoint`."""
        return {**self.core.state(copy), **remaining_state(self._waiting, self._facts, self._judged_by)}

    def restore(self, snapshot: tuple[int, Mapping[str, NDArray[Any]]] | None = None) -> Restored:
        """Rebuild the state from a snapshot (a journal frame and what :meth:`state` gave after it) and the journal
        behind it, and judge what was accepted but not judged. Call once, first."""
        events = judged = 0
        after = 0
        if snapshot is not None:
            after, arrays = snapshot
            held = split_state(arrays)
            self._waiting, self._facts, self._judged_by = held.waiting, held.facts, held.deployment
            self.core.restore(held.core, self._deployment_at(held.deployment))
        pending: dict[int, _Begun] = {}
        for frame in self._journal.frames(after + 1):
            if frame.kind == VERDICTS:
                self._replay(pending.pop(int(frame.facts[OF])), frame)
                continue
            self._facts.update(frame.facts)
            if frame.kind == OUTCOMES:
                self._waiting.append(outcomes_of(frame.rows))
            elif frame.kind == EVENTS:
                pending[frame.sequence] = self._advance(
                    frame.sequence, frame.rows, transactions_of(frame.rows)
                )
                events += frame.rows.num_rows
        for begun in pending.values():
            self._second.acquire()
            self._finish(begun)
            judged += 1
        self.settle()
        return Restored(events, judged, dict(self._facts))

    def close(self) -> None:
        """End the thread of :meth:`score_each`; what is under way is finished first."""
        if self._pipe is not None:
            self._pipe.shutdown()

    def _begin(self, given: Batch) -> _Begun:
        """Accept a batch and compute its features; returns holding the second lock."""
        batch = transactions_of(given.events)
        drafts = []
        if given.outcomes is not None and len(given.outcomes):
            drafts.append(Draft(OUTCOMES, outcome_rows(given.outcomes)))
        drafts.append(Draft(EVENTS, given.events, given.facts))
        with self._first:
            self._check()
            began = time.perf_counter()
            first = self._journal.append(drafts, sync=False)
            appended = time.perf_counter()
            try:
                if len(drafts) > 1 and given.outcomes is not None:
                    self._waiting.append(given.outcomes)
                self._facts.update(given.facts)
                self.accepted += given.events.num_rows
                begun = self._advance(first + len(drafts) - 1, given.events, batch)
                self._on_stage(JOURNAL, appended - began)
                self._on_stage(FEATURES, time.perf_counter() - appended)
            except BaseException as error:
                raise self._halt("computing features", error) from error
            self._second.acquire()
        return begun

    def _advance(self, sequence: int, events: EventBatch, batch: TransactionBatch) -> _Begun:
        waiting, self._waiting = self._waiting, []
        advanced = self.core.advance(self._complete(batch), joined(waiting), components_of(events))
        if len(advanced.rows) < len(events):
            events = events.take(pa.array(advanced.rows))
        return _Begun(sequence, events, advanced)

    def _finish(self, begun: _Begun) -> ScoredBatch:
        """Judge a begun batch and append its verdicts; releases the second lock."""
        try:
            surroundings = self.surveyor.survey(begun.events, begun.advanced.batch)
            began = time.perf_counter()
            scored = self.core.judge(
                begun.advanced,
                surroundings.live,
                surroundings.alone,
                surroundings.differing,
                self.in_force(),
            )
            self._on_stage(RULES, time.perf_counter() - began)
            decisions = decision_rows(scored, surroundings.kept, bool(surroundings.failure))
            facts = decision_facts(begun.sequence, scored)
            self._journal.append([Draft(VERDICTS, decisions, facts)], sync=False, finishing=True)
            self._account(scored, surroundings)
            self._keep(begun, decisions)
        except BaseException as error:
            raise self._halt("judging", error) from error
        finally:
            self._second.release()
        batch = ScoredBatch(
            begun.sequence,
            begun.events,
            begun.advanced.disposition,
            begun.advanced.refusal,
            scored,
            surroundings.failure,
        )
        self._on_scored(batch)
        return batch

    def _finish_durably(self, begun: _Begun) -> ScoredBatch:
        with self._latencies.time("score batch", len(begun.advanced.disposition)):
            scored = self._finish(begun)
        self.settle()
        return scored

    def settle(self) -> None:
        """Have everything appended so far on disk; callers that wait together share one ``fsync``."""
        began = time.perf_counter()
        try:
            self._journal.sync()
        except BaseException as error:
            raise self._halt("forcing the journal to disk", error) from error
        self._on_stage(SYNC, time.perf_counter() - began)

    def _replay(self, begun: _Begun, frame: Frame) -> None:
        """Take the verdicts that were given: they are not judged again."""
        version, spoke = recalled(frame.rows, frame.facts)
        number = int(frame.facts[DEPLOYMENT])
        self.core.recall(begun.advanced, version, spoke, self._deployment_at(number))
        self._judged_by = number
        self._keep(begun, frame.rows)

    def _keep(self, begun: _Begun, decisions: pa.RecordBatch) -> None:
        advanced = begun.advanced
        if len(advanced.rows):
            self._feed.put(
                ScoredFrame(begun.sequence, begun.events, decisions, advanced.names, advanced.values)
            )

    def _account(self, scored: ScoredRows, surroundings: Surroundings) -> None:
        self.rule_errors += int(scored.rule_errors.sum())
        self.degraded_reason = surroundings.failure
        self.model_failure = scored.model_failure
        self._judged_by = scored.deployment

    def _complete(self, batch: TransactionBatch) -> TransactionBatch:
        """The batch with every number that features read: an attribute that was not sent is missing in each row."""
        absent = [name for name in self._numbers if name not in batch.numbers]
        if not absent:
            return batch
        missing = {name: np.full(len(batch), np.nan) for name in absent}
        return replace(batch, numbers={**batch.numbers, **missing})

    def _check(self) -> None:
        if self._halted:
            raise StreamHaltedError(self._halted)

    def _halt(self, doing: str, error: BaseException) -> StreamHaltedError:
        if not self._halted:
            LOGGER.critical("scoring stops while %s", doing, exc_info=error)
            self._halted = (
                f"scoring stopped while {doing} ({type(error).__name__}: {error}); nothing accepted is lost: "
                "restart the member node, and it goes on from its journal"
            )
        return StreamHaltedError(self._halted)
