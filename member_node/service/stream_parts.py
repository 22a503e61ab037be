"""What a bank's stream is made of, what it can be asked, and what it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from governance.messages.policy import PolicyBundle
from member_node.latencies import Latencies
from member_node.scoring_settings import ScoringSettings
from member_node.service.index import SyncReport
from member_node.service.lists import ListBook
from member_node.service.models import ModelBook
from member_node.service.outcomes import Contributor
from member_node.service.rulebook import Rulebook
from member_node.service.scoring import ScoredBatch
from member_node.service.surroundings import EvidenceSource, TagSource
from member_node.storage.cases import CaseStore
from member_node.storage.outcomes import OutcomeStore, StreamStore
from scoring.engine import Engine
from scoring.features.spec import FeatureSpec
from scoring.hashing import DEFAULT_KEY
from scoring.rules.columns import ColumnSchema


class StreamError(RuntimeError):
    """The stream cannot do what it is asked; the message says what to do first."""


class Asker(Protocol):
    """Asks a joint statistic (see ``InquiryService``)."""

    def ask(self, first_day: int, last_day: int) -> NDArray[np.int64]: ...


class Mirror(EvidenceSource, Protocol):
    """The mirror of the index (see ``IndexMirror``)."""

    def sync(self, now_ms: int) -> SyncReport: ...


class StreamSource(msgspec.Struct, frozen=True):
    """What was opened, kept whole so that a restart needs no other file. ``events`` is empty for a live stream."""

    events: str
    events_digest: str
    mapping_name: str
    mapping: str
    features: str
    rules: str


@dataclass(frozen=True)
class OpenReport:
    """What an opened stream holds. Days count from 1970-01-01; -1 where the stream is empty."""

    rows: int
    rejected: int
    rejects: str
    first_day: int
    last_day: int
    scored: int


@dataclass(frozen=True)
class ShareReport:
    """What a share brought: deltas and labels of the index, matches with values looked up before, days of counts.

    ``reason``: what was out of reach or refused, to be caught up later. ``distrust``: what the coordinator served that
    contradicts its log, its keys or its promises; a person must look at it. Both empty if all went well.
    """

    deltas: int
    labels: int
    matches: int
    days_asked: int
    counts_until: int
    reason: str
    distrust: str = ""


@dataclass(frozen=True)
class ScoreReport:
    """What was scored: rows now and in all, verdicts by name (live and alone), rows scored in degraded mode."""

    scored: int
    total: int
    remaining: int
    verdicts: Mapping[str, int]
    verdicts_alone: Mapping[str, int]
    degraded: int
    reason: str
    rule_errors: int


@dataclass(frozen=True, eq=False)
class StreamParts:
    """What a stream is built from.

    ``public_ids``: entries of the public directory in their order (empty: none is held); ``engine`` makes a feature
    engine of so many ``shards``; ``policy`` gives the policy in force; ``clock``: unix seconds. ``rulebook`` makes one
    for the columns of a stream; without it the rules of the opened file are in force, without ``lists``, ``models`` and
    ``cases`` there are none. ``on_scored`` sees every batch, ``on_stage`` how long its stages took (see
    ``ScoringService``), ``on_opened`` that the stream was opened. ``device_key``: 16 secret bytes under which device
    ids are made.
    """

    party: str
    directory: Path
    public_ids: Sequence[str]
    outcomes: OutcomeStore
    stream: StreamStore
    tags: TagSource
    mirror: Mirror
    contributor: Contributor
    asker: Asker
    policy: Callable[[], PolicyBundle]
    engine: Callable[[FeatureSpec], Engine]
    latencies: Latencies = field(default_factory=Latencies)
    settings: ScoringSettings = field(default_factory=ScoringSettings)
    shards: int = 1
    clock: Callable[[], int] = lambda: int(time.time())
    rulebook: Callable[[Callable[[], ColumnSchema]], Rulebook] | None = None
    lists: ListBook | None = None
    models: ModelBook | None = None
    cases: CaseStore | None = None
    on_scored: Callable[[ScoredBatch], None] = lambda batch: None
    on_stage: Callable[[str, float], None] = lambda stage, seconds: None
    on_opened: Callable[[], None] = lambda: None
    device_key: bytes = DEFAULT_KEY

    def latest_us(self) -> int | None:
        """The latest time that an event may be dated at now, UTC microseconds; None: any."""
        ahead = self.settings.max_future_us
        return self.clock() * 1_000_000 + ahead if ahead else None
