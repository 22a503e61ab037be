"""From deliveries to answers: rows are read and checked, what is acceptable is scored as one batch, all are answered.

Whatever the source, the same happens here, so the sources keep one convention: order of arrival, refusals by row, an
event applied once however often it comes. A delivery is read whole or refused whole, a row scored or refused alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import pyarrow as pa

from governance.messages.problems import RequestError
from member_node.metrics import ACCEPT_TO_VERDICT, NodeMetrics
from member_node.service.answers import Finder, Originals, answers_to, refusal_answer, tally
from member_node.service.scoring import ScoredBatch
from member_node.streams.events import EventBatch
from member_node.streams.sources.arrow_rows import ArrowRows
from member_node.streams.sources.deliveries import Answer, Answered, Delivery, Encoding, check_size
from member_node.streams.sources.json_rows import JsonRows
from member_node.streams.sources.rows import Incoming, RowForm
from scoring.schema import OutcomeBatch


class ScoringPort(Protocol):
    """Accepts events and judges them (see ``ScoringService``); calls are serialised."""

    def score_unsettled(
        self,
        events: EventBatch,
        outcomes: OutcomeBatch | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> ScoredBatch:
        """The verdicts, which must not leave before :meth:`settle`."""

    def settle(self) -> None:
        """Return when everything scored so far is on disk."""


@dataclass(frozen=True, eq=False)
class LiveStream:
    """An open stream: where its events are scored, what its rows hold, and how old first answers are found."""

    scoring: ScoringPort
    form: RowForm
    find: Finder


class Ingest:
    """Takes deliveries, some at a time and in the order they arrived. Thread safe: one call at a time, so that what one
    source sent is known when another sends it again."""

    def __init__(
        self,
        live: Callable[[], LiveStream],
        metrics: NodeMetrics,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        """``live`` gives the open stream, or raises ``RequestError``; the same object while it is the same stream."""
        self._live = live
        self._metrics = metrics
        self._now_us = now_us
        self._stream: LiveStream | None = None
        self._lock = threading.Lock()
        # Batches are finished in the order they were begun in.
        self._turn = threading.Condition()
        self._begun = self._finished = 0

    def take(self, deliveries: Sequence[Delivery], facts: Mapping[str, str] | None = None) -> list[Answered]:
        """Score the acceptable rows of all deliveries as one batch; what they hold is durable when this returns.

        Raises what the ``ScoringPort`` raises, and ``RequestError`` where no stream is open; nothing was answered then.
        """
        return self.begin(deliveries, facts)()

    def begin(
        self, deliveries: Sequence[Delivery], facts: Mapping[str, str] | None = None
    ) -> Callable[[], list[Answered]]:
        """:meth:`take` in two parts: score them now, and what is returned waits for the disk and answers them.

        It must be called, once; those begun before are finished first.
        """
        with self._lock:
            finish = self._score(deliveries, facts)
            self._begun += 1
            number = self._begun
        return lambda: self._in_turn(number, finish)

    def _in_turn(self, number: int, finish: Callable[[], list[Answered]]) -> list[Answered]:
        with self._turn:
            self._turn.wait_for(lambda: self._finished == number - 1)
        try:
            return finish()
        finally:
            with self._turn:
                self._finished = number
                self._turn.notify_all()

    def _score(
        self, deliveries: Sequence[Delivery], facts: Mapping[str, str] | None
    ) -> Callable[[], list[Answered]]:
        stream = self._open()
        now_us = self._now_us()
        read: list[_Read] = []
        for arrow, group in groupby(deliveries, key=lambda each: each.encoding is Encoding.ARROW):
            run = list(group)
            read += (
                [self._read_arrow(each, now_us) for each in run] if arrow else [self._read_json(run, now_us)]
            )
        batches = [each.incoming.events for each in read if each.incoming is not None]
        events = _one(batches, stream.form.schema)
        batch = stream.scoring.score_unsettled(events, None, facts) if events.num_rows else None
        originals = self._originals

        def finish() -> list[Answered]:
            scored: list[Answer] = []
            if batch is not None:
                stream.scoring.settle()
                scored = answers_to(batch, events.column("event_id").to_pylist(), originals)
            results = _dealt(read, scored)
            self._count(deliveries, results, events)
            return results

        return finish

    def _open(self) -> LiveStream:
        stream = self._live()
        if stream is not self._stream:
            self._stream = stream
            self._json = JsonRows(stream.form)
            self._arrow = ArrowRows(stream.form)
            self._originals = Originals(stream.find)
        return stream

    def _read_json(self, deliveries: Sequence[Delivery], now_us: int) -> _Read:
        """All their rows become columns at once."""
        items: list[object] = []
        counts: list[int | RequestError] = []
        for each in deliveries:
            try:
                check_size(each.encoding, len(each.body))
                one = each.encoding is Encoding.OBJECT
                rows = [self._json.one(each.body)] if one else self._json.lines(each.body)
            except RequestError as error:
                counts.append(error)
            else:
                items += rows
                counts.append(len(rows))
        return _Read(self._json.rows(items, now_us), counts)

    def _read_arrow(self, delivery: Delivery, now_us: int) -> _Read:
        try:
            check_size(delivery.encoding, len(delivery.body))
            incoming = self._arrow.rows(delivery.body, now_us)
        except RequestError as error:
            return _Read(None, [error])
        return _Read(incoming, [incoming.rows])

    def _count(self, deliveries: Sequence[Delivery], results: Sequence[Answered], events: EventBatch) -> None:
        done = time.perf_counter()
        waited: list[float] = []
        by_source: dict[str, list[Answer]] = {}
        for each, answered in zip(deliveries, results, strict=True):
            if isinstance(answered, RequestError):
                self._metrics.count_delivery_refused(each.source, answered.name)
            else:
                by_source.setdefault(each.source, []).extend(answered)
                waited += [done - each.arrived] * len(answered)
        for source, answers in by_source.items():
            dispositions, verdicts, codes = tally(answers)
            self._metrics.count_events(source, dispositions)
            self._metrics.count_verdicts(verdicts)
            self._metrics.count_refusals(source, codes)
            if events.num_rows:
                self._metrics.set_lag(source, int(np.max(events.column("time_us").to_numpy())))
        if waited:
            self._metrics.latency.observe(ACCEPT_TO_VERDICT, waited)


@dataclass(frozen=True, eq=False)
class _Read:
    """The rows of successive deliveries, and how many are each one's (or why it was refused)."""

    incoming: Incoming | None
    counts: Sequence[int | RequestError]

    def dealt(self, answers: list[Answer]) -> Iterator[Answered]:
        """The answers of the acceptable rows, with those of the refused ones in their places, by delivery."""
        if self.incoming is not None and self.incoming.refusals:
            rows = [refusal_answer(each) for each in self.incoming.refusals]
            places = np.array([each.row for each in self.incoming.refusals], np.int64)
            order = np.argsort(np.concatenate([self.incoming.places, places]), kind="stable")
            both = [*answers, *rows]
            answers = [both[place] for place in order.tolist()]
        first = 0
        for count in self.counts:
            if isinstance(count, RequestError):
                yield count
            else:
                yield answers[first : first + count]
                first += count


def _one(batches: Sequence[EventBatch], schema: pa.Schema) -> EventBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches) if batches else schema.empty_table()


def _dealt(read: Sequence[_Read], scored: list[Answer]) -> list[Answered]:
    """The answers of all deliveries in their order; ``scored``: of the rows that were acceptable."""
    results: list[Answered] = []
    first = 0
    for each in read:
        last = first + (each.incoming.events.num_rows if each.incoming else 0)
        results += each.dealt(scored[first:last])
        first = last
    return results
