"""Puts a bank's stream together on a node: stores, rules, lists, models, cases and consortium around one stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from member_node.api.event_lane import event_batcher
from member_node.api.metrics import Readiness
from member_node.background import BackgroundLoop
from member_node.metrics import NodeMetrics
from member_node.node import MemberNode
from member_node.service.answers import history_finder
from member_node.service.cases import CaseService
from member_node.service.drift_watch import DriftWatch
from member_node.service.ingest import Ingest, LiveStream
from member_node.service.lists import ListBook
from member_node.service.microbatch import MicroBatcher
from member_node.service.models import ModelBook
from member_node.service.opened import Opened
from member_node.service.replay import OPEN, StreamService
from member_node.service.rulebook import Rulebook
from member_node.service.scoring import ScoredBatch
from member_node.service.stream_parts import StreamError, StreamParts
from member_node.service.training import ScoredHistory
from member_node.storage.case_exemptions import ExemptionStore
from member_node.storage.cases import DRIFT, CaseStore
from member_node.storage.lists import ListStore
from member_node.storage.outcomes import OutcomeStore, StreamStore
from member_node.storage.registry import ModelRegistry
from member_node.storage.rulebook import RulebookStore
from member_node.storage.staff import StaffStore
from member_node.stream_status import StreamWatch
from member_node.streams.sources.deliveries import Answer, Delivery
from member_node.streams.sources.rows import RowForm
from scoring.brake import BrakeCount
from scoring.engine import Engine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec

LOGGER = logging.getLogger(__name__)
CLOSED_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class StreamDesk:
    """A node's stream and what staff work on around it."""

    stream: StreamService
    lists: ListBook
    models: ModelBook
    cases: CaseService
    history: ScoredHistory
    watch: StreamWatch
    metrics: NodeMetrics
    batcher: MicroBatcher[Delivery, list[Answer]]
    source_failures: Mapping[str, Callable[[], str]]

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
        without |= {name: failure() for name, failure in self.source_failures.items()}
        return Readiness(degraded=[name for name, failure in without.items() if failure])

    def status(self) -> dict[str, Any]:
        """What the stream tells of itself, for people; JSON."""
        return self.watch.status(self.readiness().degraded)

    def _resume(self) -> None:
        try:
            self.stream.resume()
        except Exception:
            # It stays closed and the readiness says so; the next verb tries again and tells its caller why.
            LOGGER.exception("the stream cannot be opened again")


def attach_stream(
    node: MemberNode,
    engine: Callable[[FeatureSpec], Engine] = FeatureEngine,
    on_opened: Callable[[], None] = lambda: None,
) -> StreamDesk:
    """The stream of ``node``; its outcomes become the node's local statistic. Closed with the node."""

    def clock_us() -> int:
        return node.clock() * 1_000_000

    scoring = node.settings.scoring
    metrics = NodeMetrics(node.clock)
    rules = RulebookStore(node.database)
    lists = ListBook(ListStore(node.database), clock_us)
    staff = StaffStore(node.database)
    models = ModelBook(
        ModelRegistry(node.database),
        node.directory / "models",
        clock_us,
        threads=scoring.model_threads,
        added_by=staff.added_by,
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
            rulebook=lambda columns: Rulebook(rules, columns, lambda: node.clock() * 1000, staff.added_by),
            lists=lists,
            models=models,
            cases=store,
            on_scored=lambda batch: _count(metrics, batch),
            on_stage=metrics.latency.observe_one,
            on_opened=on_opened,
            device_key=node.storage.subkey("device-ids")[:16],
        )
    )
    cases = CaseService(
        store,
        learn=stream.learn,
        exempter=lists,
        clock=node.clock,
        exemptions=ExemptionStore(node.database),
        clear_seconds=scoring.case_exemption_days * 86_400,
        added_by=staff.added_by,
    )
    node.local_statistic = stream.statistic
    node.on_stop(stream.stop)
    node.on_close(stream.close)
    ingest = Ingest(_Live(stream, scoring.max_future_us or None), metrics, now_us=clock_us)
    batcher = event_batcher(ingest, metrics, max_wait_ms=scoring.max_wait_ms, max_rows=scoring.max_batch_rows)
    # Questions to the history must not take the processors from scoring.
    history = ScoredHistory(node.directory / "history", threads=1)
    drift = _drift(node, stream, models, history)
    watch = StreamWatch(stream, lists, models, cases, lambda: drift.state)
    watch.gauges(metrics)
    sources = {"nats": _consume(node, metrics, ingest)} if scoring.nats_url else {}
    desk = StreamDesk(stream, lists, models, cases, history, watch, metrics, batcher, sources)
    node.stream_status = desk.status
    return desk


def _drift(node: MemberNode, stream: StreamService, models: ModelBook, history: ScoredHistory) -> DriftWatch:
    """Measures while the node serves, unless the settings say never."""
    scoring = node.settings.scoring

    def alarm(subject: str, text: str, time_us: int) -> None:
        alerts = stream.opened().alerts
        assert alerts is not None
        alerts.alarm(DRIFT, subject, text, time_us)

    watch = DriftWatch(
        models,
        history,
        StreamStore(node.database),
        every_hours=scoring.drift_hours,
        window_days=scoring.drift_days,
        threshold=scoring.drift_psi,
        alarm=alarm,
        clock=node.clock,
    )

    def step() -> float:
        # A stream that is closed has nobody to tell; the step must not be what opens it.
        return watch.step() if stream.state == OPEN else CLOSED_SECONDS

    if scoring.drift_hours:
        node.loops.append(BackgroundLoop("drift", step))
    return watch


def _consume(node: MemberNode, metrics: NodeMetrics, ingest: Ingest) -> Callable[[], str]:
    """Take events from NATS JetStream too, from the node's start to its stop; gives why that fails at present."""
    # Only banks with a broker wait for its client to load.
    from member_node.streams.sources.jetstream import JetStreamSettings, JetStreamSource

    scoring = node.settings.scoring
    where = JetStreamSettings(
        (scoring.nats_url,),
        scoring.nats_stream,
        scoring.nats_subject,
        durable=scoring.nats_consumer,
        verdicts=scoring.nats_verdicts,
        dead_letters=scoring.nats_dead_letters,
        credentials=node.directory / scoring.nats_credentials if scoring.nats_credentials else None,
    )
    source = JetStreamSource(where, ingest.take, metrics)
    node.on_start(source.start)
    node.on_stop(source.stop)
    return lambda: source.failure


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
            self._held = opened, LiveStream(opened.scoring, form, history_finder(opened.find_held))
        return self._held[1]


def _count(metrics: NodeMetrics, batch: ScoredBatch) -> None:
    scored = batch.scored
    metrics.count_rules(
        *(_by_rule(scored.deciders, counts) for counts in (scored.rule_hits, scored.rule_errors))
    )


def _by_rule(deciders: tuple[str, ...], counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, int]:
    return {deciders[place]: int(counts[place]) for place in np.flatnonzero(counts).tolist()}
