"""Puts a bank's stream together on a node: stores, rules, lists, models, cases and consortium around one stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from member_node.api.event_lane import event_batcher
from member_node.api.metrics import Readiness
from member_node.metrics import NodeMetrics
from member_node.node import MemberNode
from member_node.service.answers import history_finder
from member_node.service.cases import CaseService
from member_node.service.ingest import Ingest, LiveStream
from member_node.service.lists import ListBook
from member_node.service.microbatch import MicroBatcher
from member_node.service.models import ModelBook
from member_node.service.opened import Opened
from member_node.service.replay import OPEN, StreamService
from member_node.service.rulebook import Rulebook
from member_node.service.scoring import ScoredBatch
from member_node.service.stream_parts import StreamError, StreamParts
from member_node.storage.cases import CaseStore
from member_node.storage.lists import ListStore
from member_node.storage.outcomes import OutcomeStore, StreamStore
from member_node.storage.registry import ModelRegistry
from member_node.storage.rulebook import RulebookStore
from member_node.streams.sources.deliveries import Answer, Delivery
from member_node.streams.sources.rows import RowForm
from scoring.brake import BrakeCount
from scoring.engine import Engine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StreamDesk:
    """A node's stream and what staff work on around it."""

    stream: StreamService
    lists: ListBook
    models: ModelBook
    cases: CaseService
    metrics: NodeMetrics
    batcher: MicroBatcher[Delivery, list[Answer]]

    def rulebook(self) -> Rulebook:
        """The open stream's; raises :class:`StreamError`."""
        rules = self.stream.opened().rules
        if not isinstance(rules, Rulebook):
            raise StreamError("this stream was opened without a rulebook")
        return rules

    def brake(self) -> list[BrakeCount]:
        """What the brake's windows hold; raises :class:`StreamError`."""
        return self.stream.opened().scoring.core.brake_counts()

    def resume(self) -> None:
        """Open what was open before a restart, in a thread of its own; the readiness says how far it is."""
        threading.Thread(target=self._resume, name="stream-opener", daemon=True).start()

    def readiness(self) -> Readiness:
        """Whether events are scored now, in fixed words."""
        state = self.stream.state
        if state != OPEN:
            return Readiness(faults=[state.partition(":")[0].partition(" ")[0]])
        opened = self.stream.opened()
        without = {
            "consortium": opened.scoring.degraded_reason,
            "model": opened.scoring.model_failure,
            "history": opened.feed.failure,
            "alerts": "" if opened.alerts is None else opened.alerts.failure,
            "snapshots": opened.keeper.last_error,
        }
        return Readiness(degraded=[name for name, failure in without.items() if failure])

    def _resume(self) -> None:
        try:
            self.stream.resume()
        except Exception:
            # It stays closed and the readiness says so; the next verb tries again and tells its caller why.
            LOGGER.exception("the stream cannot be opened again")


def attach_stream(node: MemberNode, engine: Callable[[FeatureSpec], Engine] = FeatureEngine) -> StreamDesk:
    """The stream of ``node``; its outcomes become the node's local statistic. Closed with the node."""

    def clock_us() -> int:
        return node.clock() * 1_000_000

    scoring = node.settings.scoring
    metrics = NodeMetrics(node.clock)
    rules = RulebookStore(node.database)
    lists = ListBook(ListStore(node.database), clock_us)
    models = ModelBook(
        ModelRegistry(node.database), node.directory / "models", clock_us, threads=scoring.model_threads
    )
    node.on_close(models.close)
    store = CaseStore(node.database)
    stream = StreamService(
        StreamParts(
            party=node.party,
            directory=node.directory,
            public_ids=node.directory_values,
            outcomes=OutcomeStore(node.database),
            stream=StreamStore(node.database),
            tags=node.lookup,
            mirror=node.index,
            contributor=node.contribution,
            asker=node.inquiry,
            policy=lambda: node.consortium.policy,
            engine=engine,
            latencies=node.latencies,
            settings=scoring,
            clock=node.clock,
            shards=node.settings.shards,
            rulebook=lambda columns: Rulebook(rules, columns, lambda: node.clock() * 1000),
            lists=lists,
            models=models,
            cases=store,
            on_scored=lambda batch: _count(metrics, batch),
        )
    )
    cases = CaseService(store, learn=stream.learn, exempter=lists, clock=node.clock)
    node.local_statistic = stream.statistic
    node.on_stop(stream.stop)
    node.on_close(stream.close)
    ingest = Ingest(_Live(stream, scoring.max_future_us or None), metrics, now_us=clock_us)
    desk = StreamDesk(stream, lists, models, cases, metrics, event_batcher(ingest, metrics))
    _watch(desk)
    if scoring.nats_url:
        _consume(node, desk, ingest)
    return desk


def _consume(node: MemberNode, desk: StreamDesk, ingest: Ingest) -> None:
    """Take events from NATS JetStream too, from the node's start to its stop."""
    # Only banks with a broker wait for its client to load.
    from member_node.streams.sources.jetstream import JetStreamSettings, JetStreamSource

    scoring = node.settings.scoring
    where = JetStreamSettings(
        (scoring.nats_url,), scoring.nats_stream, scoring.nats_subject, durable=scoring.nats_consumer
    )
    source = JetStreamSource(where, ingest.take, desk.metrics)
    node.on_start(source.start)
    node.on_stop(source.stop)


class _Live:
    """The open stream as the ingest sees it: the same object while it is the same stream."""

    def __init__(self, stream: StreamService, max_future_us: int | None) -> None:
        self._stream = stream
        self._max_future_us = max_future_us
        self._held: tuple[Opened, LiveStream] | None = None

    def __call__(self) -> LiveStream:
        opened = self._stream.opened()
        if self._held is None or self._held[0] is not opened:
            form = RowForm.of(opened.mapping, opened.schema, self._max_future_us)
            self._held = opened, LiveStream(opened.scoring, form, history_finder(opened.find))
        return self._held[1]


def _count(metrics: NodeMetrics, batch: ScoredBatch) -> None:
    scored = batch.scored
    metrics.count_rules(
        *(_by_rule(scored.deciders, counts) for counts in (scored.rule_hits, scored.rule_errors))
    )


def _by_rule(deciders: tuple[str, ...], counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, int]:
    return {deciders[place]: int(counts[place]) for place in np.flatnonzero(counts).tolist()}


def _watch(desk: StreamDesk) -> None:
    """Gauges that are read when somebody asks."""

    def opened(read: Callable[[Opened], float]) -> Callable[[], float]:
        def reading() -> float:
            return read(desk.stream.opened()) if desk.stream.state == OPEN else 0.0

        return reading

    watch = desk.metrics.watch
    watch("stream_open", "1 while events are scored.", lambda: float(desk.stream.state == OPEN))
    watch("journal_bytes", "Bytes of the journal.", opened(lambda each: each.journal.nbytes))
    watch("journal_sequence", "Newest journal frame.", opened(lambda each: each.journal.last_sequence))
    watch("history_waiting_rows", "Scored rows not in files.", opened(lambda each: each.feed.waiting_rows))
    watch("open_cases", "Cases that wait for a decision.", lambda: float(desk.cases.counts()["open"]))
