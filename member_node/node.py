"""The composition of a member node: which service gets which store, client and key. No rules of its own."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from member_node.background import BackgroundLoop
from member_node.client.coordinator import HttpCoordinator
from member_node.client.key_holder import HttpKeyHolders
from member_node.client.ports import (
    CoordinatorPort,
    LocalStatistic,
    MapChunks,
    NotMaturedError,
    Random,
    map_in_turn,
)
from member_node.client.signed_http import Caller, SignedHttp
from member_node.compute.decryption import DecryptionChild
from member_node.latencies import Latencies
from member_node.secret_files import StorageKey, check_private, load_key_shares, read_identity
from member_node.service.contribution import ContributionService
from member_node.service.holder import HolderService
from member_node.service.index import IndexMirror
from member_node.service.inquiry import InquiryService
from member_node.service.lookup import LookupService
from member_node.service.participation import Participation
from member_node.service.policy import Anchors, Consortium, OwnShare
from member_node.service.tag_cache import TagCache
from member_node.service.totals import TotalsService
from member_node.settings import MemberSettings, SettingsError, load_settings
from member_node.setup import read_ids
from member_node.storage.database import Database
from member_node.storage.evaluations import EvaluationStore
from member_node.storage.labels import LabelStore
from member_node.storage.questions import QuestionStore
from member_node.storage.tags import TagStore
from member_node.storage.traffic import TrafficStore
from member_node.storage.trust import FaultStore, ReplayStore, TrustStore
from member_node.traffic import TrafficKeeper, WireCapture

REFRESH_SECONDS = 60
POLL_SECONDS = 2.0
SOON_SECONDS = 0.5
STOP_SECONDS = 3.0
SAVE_SECONDS = 10.0
# Anybody on the roll can claim a newer policy; the coordinator is asked about it no more often than this.
LEARN_SECONDS = 5.0
LOGGER = logging.getLogger(__name__)


class NoStatistic:
    """Stands in until the bank's outcomes are attached: nothing is matured, so nothing is contributed."""

    def counts(self, first_day: int, last_day: int) -> NDArray[np.int64]:
        """Always raises :class:`NotMaturedError`."""
        del last_day
        raise NotMaturedError(first_day - 1)


class MemberNode:
    """All services of one bank's node: build it, attach the local statistic, :meth:`start`, and :meth:`close` it."""

    def __init__(
        self,
        settings: MemberSettings,
        *,
        map_chunks: MapChunks = map_in_turn,
        clock: Callable[[], int] = lambda: int(time.time()),
        random: Random = secrets.token_bytes,
        coordinator: CoordinatorPort | None = None,
    ) -> None:
        """Open storage and keys of ``settings.directory``; nothing is sent yet.

        ``coordinator`` takes the place of the one at ``settings.coordinator_url`` (without a network, in tests).
        """
        trust = settings.require_trust()
        self.settings = settings
        self.directory = settings.directory
        self.party = settings.party
        self.clock = clock
        check_private(settings.directory)
        self.latencies = Latencies()
        self.capture = None if settings.capture_directory is None else WireCapture(settings.capture_directory)
        self.local_statistic: LocalStatistic = NoStatistic()
        self.stream_status: Callable[[], dict[str, Any]] = dict
        self.directory_values = _read_directory(settings)
        self.key = read_identity(settings.directory)
        self.storage = StorageKey.load(settings.directory, random)
        self.database = Database.in_directory(settings.directory, settings.database_url)
        self.replays = ReplayStore(self.database)
        self.faults = FaultStore(self.database)
        self._starters: list[Callable[[], None]] = []
        self._stoppers: list[Callable[[float], None]] = []
        self._closers: list[Callable[[], None]] = [self.database.close]
        self.traffic = TrafficKeeper(TrafficStore(self.database), clock())
        self.meter = self.traffic.meter
        self.on_close(self.traffic.save)

        shares = load_key_shares(settings.directory, self.storage)
        own_shares = [
            OwnShare(each.epoch, each.kind_group, each.generation, each.index, each.public_share())
            for each in shares
        ]
        anchors = Anchors(
            settings.party,
            self.key.verify_key,
            trust.coordinator,
            trust.coordinator_key,
            trust.log_verifier_key,
        )
        caller = Caller(
            settings.party,
            self.key,
            lambda: self.consortium.policy_epoch(),
            lambda: self.consortium.verify_keys(),
            clock,
            random,
        )
        self.http = SignedHttp(caller, self.meter, capture=self.capture)
        self.on_close(self.http.close)
        self.coordinator: CoordinatorPort = coordinator or HttpCoordinator(
            self.http, trust.coordinator, settings.coordinator_url
        )
        self.consortium = Consortium(
            anchors,
            self.coordinator,
            TrustStore(self.database),
            clock,
            own_shares,
            # Read anew for each roll, so that a card can be pinned while the node runs.
            pinned=lambda: load_settings(settings.directory).pins,
        )

        evaluations = EvaluationStore(self.database)
        labels = LabelStore(self.database)
        self.questions = QuestionStore(self.database)
        cache = TagCache(TagStore(self.database), self.storage)
        self.holder = HolderService(
            self.key, self.consortium, shares, evaluations, clock=clock, random=random
        )
        self.lookup = LookupService(
            self.consortium,
            self.holder,
            HttpKeyHolders(self.http, lambda: self.consortium.roll, self.party, settings.patience),
            cache,
            self.faults,
            clock=clock,
            random=random,
            map_chunks=map_chunks,
            patience=settings.patience,
            latencies=self.latencies,
        )
        self.on_close(self.lookup.close)
        self.index = IndexMirror(self.consortium, self.coordinator, labels, cache, self.faults, clock=clock)
        self.contribution = ContributionService(
            self.key,
            self.consortium,
            self.coordinator,
            self.lookup,
            labels,
            self.faults,
            clock=clock,
            random=random,
        )
        decryption = DecryptionChild()
        self.on_close(decryption.close)
        public = settings.public_directory
        self.inquiry = InquiryService(
            self.key,
            self.consortium,
            self.coordinator,
            self.questions,
            self.storage,
            self.faults,
            dataset="" if public is None else public.dataset,
            directory_digest=b"" if public is None else public.digest,
            sum_and_decrypt=lambda key, parts, length, bound: decryption.decrypt_sum(
                key, parts, length, bound=bound
            ),
            clock=clock,
            random=random,
            latencies=self.latencies,
        )
        self.participation = Participation(
            self.key,
            self.consortium,
            self.coordinator,
            _Attached(self),
            self.questions,
            self.storage,
            self.faults,
            dataset="" if public is None else public.dataset,
            directory_digest=b"" if public is None else public.digest,
            clock=clock,
            random=random,
        )
        self.totals = TotalsService(self.party, self.key, self.coordinator, evaluations, clock=clock)
        self._refreshed = 0.0
        self._learning = threading.Lock()
        self._learned = -LEARN_SECONDS
        self.loops = [
            BackgroundLoop("inquiry-participant", self._participate),
            BackgroundLoop("totals-sender", self._send_totals),
            BackgroundLoop("traffic-keeper", self._save_traffic),
        ]

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have ``closer`` called at :meth:`close`, before everything that was registered earlier."""
        self._closers.insert(0, closer)

    def on_stop(self, stopper: Callable[[float], None]) -> None:
        """Have ``stopper`` called first at :meth:`close`, with the seconds it may wait for what is under way."""
        self._stoppers.append(stopper)

    def on_start(self, starter: Callable[[], None]) -> None:
        """Have ``starter`` called at :meth:`start`; it must not wait for anything."""
        self._starters.append(starter)

    def start(self) -> None:
        """Start the background threads and what was registered."""
        for loop in self.loops:
            loop.start()
        for starter in self._starters:
            starter()

    def close(self) -> None:
        """Stop the threads and the calls they wait for, then everything that was registered, newest first."""
        for loop in self.loops:
            loop.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for stopper in self._stoppers:
            stopper(max(0.0, deadline - time.monotonic()))
        self.http.abort()
        for loop in self.loops:
            if not loop.join(max(1.0, deadline - time.monotonic())):
                LOGGER.warning("%s did not stop within %s s", loop.name, STOP_SECONDS)
        closers, self._closers = self._closers, []
        for closer in closers:
            try:
                closer()
            except Exception:
                # What is registered later (the bank's Ray, the counters, the database) must be closed all the same.
                LOGGER.exception("%s: closing failed", self.party)

    def is_ready(self) -> bool:
        """Whether this node has verified roll, policy and a fresh checkpoint."""
        age = self.consortium.checkpoint_age()
        return (
            self.consortium.joined
            and age is not None
            and age <= self.consortium.policy.max_checkpoint_age_seconds
        )

    def refresh(self) -> None:
        """Fetch and verify roll, policy and checkpoint."""
        self.consortium.refresh()
        self._refreshed = time.monotonic()

    def learn(self) -> None:
        """:meth:`refresh` because another party knows of something newer; at once nothing while that is under way, or
        was tried less than :data:`LEARN_SECONDS` ago, whatever came of it."""
        if not self._learning.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._learned >= LEARN_SECONDS:
                self._learned = time.monotonic()
                self.refresh()
        finally:
            self._learning.release()

    def status(self) -> dict[str, Any]:
        """What the bank's operator, and a report of the sandbox, want to know; one JSON object."""
        consortium = self.consortium
        status: dict[str, Any] = {
            "party": self.party,
            "name": self.settings.name,
            "joined": consortium.joined,
            "ready": self.is_ready(),
            "checkpoint_age_seconds": consortium.checkpoint_age(),
            "log_size": consortium.log_size,
            "faults": [
                {"party": each.party, "at": each.at, "what": each.what, "reason": each.reason}
                for each in self.faults.latest()
            ],
            "fault_count": self.faults.count(),
            "threads": {loop.name: loop.last_error or "running" for loop in self.loops},
            "traffic": self.meter.report(),
            "counting_since": self.traffic.counting.since,
            "restarts": self.traffic.counting.restarts,
            "latencies": self.latencies.report(),
            "tag_cache": self.latencies.hit_rate.report(),
            "scoring": self.stream_status(),
        }
        if consortium.joined:
            status |= {
                "epoch": consortium.roll.epoch,
                "roll_version": consortium.roll.version,
                "policy_epoch": consortium.policy.policy_epoch,
                "members": [each.party for each in consortium.roll.parties if each.role == "member"],
                "cached_tags": self.lookup.cached_count(),
                "excluded_holders": self.lookup.excluded(),
                "index": {"deltas": self.index.last_delta(), "labels": self.index.label_count()},
                "inquiries": {
                    reason or "taken-part": count for reason, count in self.questions.counts().items()
                },
            }
        return status

    def _participate(self) -> float:
        if not self.consortium.joined or time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self.refresh()
        return SOON_SECONDS if self.participation.poll(POLL_SECONDS) else 0.0

    def _send_totals(self) -> float:
        if self.consortium.joined and self.totals.is_due():
            self.totals.send()
        return POLL_SECONDS

    def _save_traffic(self) -> float:
        self.traffic.save()
        return SAVE_SECONDS


class _Attached:
    """The node's local statistic of the moment, so that it can be attached after the node is built."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def counts(self, first_day: int, last_day: int) -> NDArray[np.int64]:
        return self._node.local_statistic.counts(first_day, last_day)


def _read_directory(settings: MemberSettings) -> tuple[str, ...]:
    public = settings.public_directory
    if public is None:
        return ()
    ids = read_ids(public.file.read_bytes(), public.file.name)
    if len(ids) != public.cells:
        raise SettingsError(
            f"{public.file.name} has {len(ids)} ids, not the {public.cells} of member.toml: install it again"
        )
    return ids
