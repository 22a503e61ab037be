"""An open stream: journal, engine, history, alerts and snapshots of one source, put together and restored."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.background import BackgroundLoop
from member_node.service.alerts import AlertFeed, AlertPolicy
from member_node.service.counts import ConsortiumCounts, PublicDirectory
from member_node.service.feature_names import check_feature_names
from member_node.service.history import HistoryError, HistoryStore
from member_node.service.history_feed import HistoryFeed
from member_node.service.in_force import FileRules, ForceSource, no_lists, no_models, timed_models
from member_node.service.layout import rule_columns, tier_table
from member_node.service.rulebook import Rulebook
from member_node.service.scoring import Restored, ScoredBatch, ScoringService
from member_node.service.stream_parts import StreamError, StreamParts, StreamSource
from member_node.service.surroundings import Surveyor
from member_node.service.warming import (
    compiling,
    read_numbers,
    warm,
    warm_devices,
    warm_judging,
    warm_reading,
)
from member_node.storage.cases import BRAKE
from member_node.streams.events import DEVICE_COMPONENTS, EventBatch, event_schema
from member_node.streams.journal import Journal
from member_node.streams.mapping import StreamMapping, parse_mapping
from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotStore
from scoring.brake import BrakeAlarm
from scoring.devices.linker import NUMBERS as DEVICE_NUMBERS
from scoring.devices.linker import DeviceLinker
from scoring.engine import ScoringCore
from scoring.features.engine import STATE_LAYOUT
from scoring.features.spec import FeatureSpec, FieldFeature, SpecError, parse_spec
from scoring.models.words import feature_words
from scoring.rules.columns import ColumnSchema

LOGGER = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 5.0
DRAIN_SECONDS = 600.0
# How often the history is asked whether small files are to be put together.
MERGE_SECONDS = 60.0
# A full disk stops the history, and must not stop the answers to events sent again.
FIND_SECONDS = 2.0
DAY_SECONDS = 86_400


@dataclass(frozen=True, eq=False)
class Replayed:
    """The rows of a file that is replayed. ``times`` int64 [n] ascending; ``fraud`` int8 [n], -1: not known."""

    events: EventBatch
    times: NDArray[np.int64]
    fraud: NDArray[np.int8]
    rows: int
    rejected: int
    rejects: Path | None


@dataclass(frozen=True, eq=False)
class Opened:
    """Everything of one open stream; ``close`` releases it."""

    source: StreamSource
    mapping: StreamMapping
    schema: pa.Schema
    file: Replayed
    scoring: ScoringService
    columns: Callable[[], ColumnSchema]
    rules: Rulebook | FileRules
    directory: PublicDirectory | None
    journal: Journal
    history: HistoryStore
    snapshots: SnapshotStore
    feed: HistoryFeed
    alerts: AlertFeed | None
    keeper: SnapshotKeeper
    restored: Restored
    _loops: list[BackgroundLoop] = field(default_factory=list)

    def start(self) -> None:
        """Start what works on its own: snapshots, retention."""
        for loop in self._loops:
            loop.start()

    def find(self, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """``columns`` of scored events by id (as text), those of the newest batches included.

        Waits :data:`FIND_SECONDS` at most for what is on its way into the history; raises ``HistoryError`` when
        events are not found and might be among what is still on its way.
        """
        settled = self._settled()
        found = self.history.find(event_ids, columns)
        if not settled and len(set(found.column("event_id").to_pylist())) < len(set(event_ids)):
            raise HistoryError(
                f"the history is {self.feed.waiting_rows} rows behind ({self.feed.failure or 'being written'}), and "
                "not all of these events are found: free some room on its disk, or ask again in a moment"
            )
        return found

    def find_held(self, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """The same as far as the history holds them, for whoever can do without the rest."""
        self._settled()
        return self.history.find(event_ids, columns)

    def _settled(self) -> bool:
        """Whether the history has everything, after a moment's wait unless it cannot be written anyway."""
        return self.feed.drain(0.0 if self.feed.failure else FIND_SECONDS)

    def flush(self) -> None:
        """Have everything that was scored so far in the history's files. Raises ``HistoryError``."""
        if not self.feed.drain(DRAIN_SECONDS):
            raise HistoryError(f"the history is behind: {self.feed.failure or 'it is still being written'}")
        self.history.flush()

    def close(self) -> None:
        """Finish what is under way, save the state unless scoring has halted, and release the journal."""
        self.history.stop_merging()
        for loop in self._loops:
            loop.stop()
        for loop in self._loops:
            loop.join(DRAIN_SECONDS)
        self.scoring.close()
        try:
            if not self.scoring.halted:
                self.scoring.checkpoint(self.keeper.save)
        except Exception:
            # The journal has it all: the next start replays more of it.
            LOGGER.exception("the state could not be saved at the end")
        finally:
            self.keeper.close()
            self.feed.close()
            if self.alerts is not None:
                self.alerts.close()
            try:
                self.history.close()
            finally:
                self.journal.close()


def open_stream(parts: StreamParts, source: StreamSource, told: Callable[[str], None]) -> Opened:
    """Open what ``source`` names and restore it. ``told`` hears what is being done. Raises what its parts raise."""
    mapping = parse_mapping(source.mapping, name=source.mapping_name, source=f"mapping {source.mapping_name}")
    file = _replayed(parts, source, mapping)
    directory = _directory(parts, mapping)
    counts = None
    if directory is not None:
        counts = ConsortiumCounts(mapping.directory_dataset, directory, mapping, parts.stream)
    spec = parse_spec(source.features)
    _check_names(spec, source, mapping, parts.directory)
    features = [each.name for each in spec.features if not isinstance(each, FieldFeature)]
    linked = DEVICE_COMPONENTS in file.events.schema.names
    names = counts.names() if counts is not None else []

    def columns() -> ColumnSchema:
        lists = parts.lists.snapshot().columns() if parts.lists is not None else ()
        return rule_columns(mapping, features, names, numbers=DEVICE_NUMBERS if linked else (), lists=lists)

    rules = _rules(parts, source, columns)
    if parts.models is not None:
        parts.models.bind(columns())
    force = ForceSource(
        rules.deployment,
        no_lists if parts.lists is None else parts.lists.snapshot,
        no_models if parts.models is None else timed_models(parts.models.serving, parts.on_stage),
    )
    linker = DeviceLinker(parts.device_key) if linked else None
    core = ScoringCore(parts.engine(spec), features=features, linker=linker, words=feature_words(spec))
    journal = Journal(parts.directory / "journal")
    closers: list[Callable[[], None]] = [journal.close]
    try:
        history = HistoryStore(parts.directory / "history")
        alerts = None
        if parts.cases is not None:
            policy = AlertPolicy(parts.settings.alert_least, parts.settings.case_window_us)
            alerts = AlertFeed(parts.cases, policy, parts.clock)
            closers.insert(0, alerts.close)
        feed = HistoryFeed(history, alerts, on_stage=parts.on_stage)
        closers.insert(0, feed.close)
        surveyor = Surveyor(
            parts.party,
            mapping,
            tags=parts.tags,
            mirror=parts.mirror,
            tiers=lambda: tier_table(parts.policy()),
            counts=counts,
        )
        store = SnapshotStore(
            parts.directory / "snapshots", f"{spec.digest}/{parts.shards}/{linked}/{STATE_LAYOUT}"
        )
        scoring = ScoringService(
            core=core,
            surveyor=surveyor,
            in_force=force,
            deployment_at=rules.deployment_at,
            journal=journal,
            feed=feed,
            numbers=read_numbers(spec),
            latencies=parts.latencies,
            on_scored=_watcher(alerts, rules, parts.on_scored),
            on_stage=parts.on_stage,
        )
        with compiling(lambda kernel: told(f"compiling {kernel}")):
            keeper = SnapshotKeeper(
                store,
                lambda: scoring.state(copy=False),
                before=lambda sequence: _settle(feed, alerts, history, sequence),
                after=lambda covered: journal.retire(covered + 1),
                every_seconds=parts.settings.snapshot_seconds,
            )
            if parts.shards == 1:
                warm(parts.engine(spec), spec, linked=linked)
            if linked:
                warm_devices()
            warm_judging(force().deployment)
            warm_reading(file.events.schema)
            told("restoring")
            restored = scoring.restore(store.latest())
    except BaseException:
        for closer in closers:
            closer()
        raise
    opened = Opened(
        source=source,
        mapping=mapping,
        schema=file.events.schema,
        file=file,
        scoring=scoring,
        columns=columns,
        rules=rules,
        directory=directory,
        journal=journal,
        history=history,
        snapshots=store,
        feed=feed,
        alerts=alerts,
        keeper=keeper,
        restored=restored,
    )
    opened._loops.append(BackgroundLoop("snapshots", _checkpointer(scoring, keeper)))
    opened._loops.append(BackgroundLoop("history-merging", _merger(history)))
    if parts.settings.history_days:
        opened._loops.append(BackgroundLoop("history-retention", _expirer(history, parts)))
    opened.start()
    return opened


def _check_names(spec: FeatureSpec, source: StreamSource, mapping: StreamMapping, directory: Path) -> None:
    try:
        check_feature_names(spec, source.features, mapping)
    except SpecError as error:
        with Journal(directory / "journal") as journal:
            if not journal.last_sequence:
                raise
        # It was opened before this was refused, and its spec cannot be changed any more.
        LOGGER.warning("the feature spec, %s; this feature is missing from the history", error)


def _settle(feed: HistoryFeed, alerts: AlertFeed | None, history: HistoryStore, sequence: int) -> None:
    """Leave everything up to a frame in history and cases: a snapshot at it means that it is not replayed again."""
    if not feed.drain(DRAIN_SECONDS):
        raise TimeoutError(f"the history is behind: {feed.failure or 'it is still being written'}")
    history.flush()
    if alerts is not None and not alerts.flush(DRAIN_SECONDS):
        raise TimeoutError(f"alerts up to frame {sequence} are not stored: {alerts.failure}")


def _checkpointer(scoring: ScoringService, keeper: SnapshotKeeper) -> Callable[[], float]:
    scored = 0

    def step() -> float:
        nonlocal scored
        if scoring.halted:
            return DAY_SECONDS
        fresh = scoring.accepted - scored
        scored += fresh
        if keeper.due(fresh, time.monotonic()):
            scoring.checkpoint(keeper.locate)
            keeper.gather()
            scoring.checkpoint(keeper.begin)
        return CHECKPOINT_SECONDS

    return step


def _merger(history: HistoryStore) -> Callable[[], float]:
    def step() -> float:
        history.merge()
        return MERGE_SECONDS

    return step


def _expirer(history: HistoryStore, parts: StreamParts) -> Callable[[], float]:
    def step() -> float:
        rows = history.expire(parts.clock() // DAY_SECONDS - parts.settings.history_days)
        if rows:
            LOGGER.info(
                "%d scored events are older than %d days and were removed", rows, parts.settings.history_days
            )
        return 3600.0

    return step


def _watcher(
    alerts: AlertFeed | None, rules: Rulebook | FileRules, on_scored: Callable[[ScoredBatch], None]
) -> Callable[[ScoredBatch], None]:
    """Hears of every scored batch: counts it, and raises an alarm for each rule the brake has stopped."""

    def alarm(each: BrakeAlarm) -> None:
        text = (
            f"stopped: {each.declines} of {each.events} events got {each.verdict.label}, "
            f"more than {each.share:.1%}; it acts as in shadow until somebody releases it"
        )
        LOGGER.error("rule %s of version %d is %s", each.rule, each.version, text)
        if isinstance(rules, Rulebook):
            rules.record_alarm(each)
        if alerts is not None:
            alerts.alarm(BRAKE, each.rule, text, each.time_us)

    def watch(batch: ScoredBatch) -> None:
        on_scored(batch)
        for each in batch.scored.alarms:
            # The database may be slow, and the stream does not wait for it.
            threading.Thread(target=alarm, args=(each,), name="brake-alarm").start()

    return watch


def _rules(
    parts: StreamParts, source: StreamSource, columns: Callable[[], ColumnSchema]
) -> Rulebook | FileRules:
    if parts.rulebook is None:
        return FileRules(source.rules, columns())
    rulebook = parts.rulebook(columns)
    if not rulebook.bootstrap(source.rules) and rulebook.version(1).text != source.rules:
        raise StreamError(
            "the rulebook began with other rules than this file's: propose the file as a new version instead"
        )
    return rulebook


def live_schema(mapping: StreamMapping) -> pa.Schema:
    """The events of a stream without a file: integers where the mapping says so, text otherwise."""
    return event_schema(
        {name: mapping.types.get(name) == "integer" for name in mapping.entities},
        integer_ids=mapping.types.get("event_id") == "integer",
        numbers=tuple(mapping.numbers),
        correction="correction" in mapping.columns,
        device_components="device_components" in mapping.columns,
    )


def _replayed(parts: StreamParts, source: StreamSource, mapping: StreamMapping) -> Replayed:
    if not source.events:
        nothing = live_schema(mapping).empty_table().combine_chunks().to_batches()
        events = nothing[0] if nothing else pa.RecordBatch.from_pylist([], schema=live_schema(mapping))
        return Replayed(events, np.empty(0, np.int64), np.empty(0, np.int8), 0, 0, None)
    # The reader of files needs Polars, which no live stream waits for.
    from member_node.streams.files import read_events, write_rejects

    # What is refused for its time is the file's end: as the clock goes on, rows are added behind those that were read.
    read = read_events(Path(source.events), mapping, latest_us=parts.latest_us())
    rejects = None
    if read.rejects:
        rejects = parts.directory / "rejects.csv"
        write_rejects(read.rejects, rejects)
        LOGGER.warning("%s: %d of %d rows refused, see rejects.csv", source.events, read.rejected, read.rows)
    times = np.asarray(read.events.column("time_us").to_numpy(), dtype=np.int64)
    return Replayed(read.events, times, read.fraud, read.rows, read.rejected, rejects)


def _directory(parts: StreamParts, mapping: StreamMapping) -> PublicDirectory | None:
    if not mapping.directory_entity or not parts.public_ids:
        return None
    kind = mapping.indicators.get(mapping.directory_entity, mapping.directory_entity)
    return PublicDirectory(kind, parts.public_ids)
