"""What a bank knows of a batch beside its features: evidence of the consortium, its counts, and the time of day.

Everything the consortium says or fails to say is taken here, and nothing of it may raise: an accepted event gets a
verdict, if need be without the others, and the verdict says so.
"""

from __future__ import annotations

import logging
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
from member_node.service.counts import ConsortiumCounts
from member_node.service.decisions import names
from member_node.service.evidence import (
    KindEvidence,
    LabelLike,
    distinct_values,
    no_evidence,
    weigh_labels,
)
from member_node.service.layout import evidence_columns, transaction_columns
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.streams.events import EventBatch
from member_node.streams.mapping import StreamMapping
from scoring.rules.columns import TextColumn
from scoring.schema import TransactionBatch
from scoring.scored import Sight
from scoring.verdicts import TierTable

LOGGER = logging.getLogger(__name__)
_NO_ROWS = np.empty(0, np.int64)
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


class TagSource(Protocol):
    """Ensures tags in the cache (see ``LookupService.tags``)."""

    def tags(self, kind: str, values: Sequence[str]) -> object: ...


class EvidenceSource(Protocol):
    """Labels on cached values (see ``IndexMirror.evidence``)."""

    def evidence(self, kind: str, values: Sequence[str]) -> Mapping[str, Sequence[LabelLike]]: ...


@dataclass(frozen=True, eq=False)
class Surroundings:
    """``live``: what the bank knows with the consortium. ``alone``: what it would know by itself; the two differ only
    in the rows ``differing`` (int64 positions). ``kept``: columns for the history. ``failure``: why the consortium
    could not be asked, or is behind; empty if all is well."""

    live: Sight
    alone: Sight
    differing: NDArray[np.int64]
    kept: Mapping[str, Any]
    failure: str


class Surveyor:
    """Fills :class:`Surroundings` for batches of one stream."""

    def __init__(
        self,
        party: str,
        mapping: StreamMapping,
        *,
        tags: TagSource,
        mirror: EvidenceSource,
        tiers: Callable[[], TierTable],
        counts: ConsortiumCounts | None,
    ) -> None:
        """``tiers`` gives the tiers of the policy in force (raises ``NotJoinedError`` before the first)."""
        self.counts = counts
        self._party = party
        self._mapping = mapping
        self._tags = tags
        self._mirror = mirror
        self._tiers = tiers

    def survey(self, events: EventBatch, batch: TransactionBatch) -> Surroundings:
        """The surroundings of accepted events; ``batch`` holds the same rows."""
        rows = len(batch)
        common = transaction_columns(self._mapping, batch.amount, batch.channel, batch.time_us)
        # An attribute that was not sent is missing; a rule that reads it is not in error.
        common |= {name: np.full(rows, np.nan) for name in self._mapping.numbers if name not in batch.numbers}
        common |= dict(batch.numbers)
        if not self._mapping.indicators and self.counts is None:
            common["degraded"] = np.zeros(rows, np.bool_)
            sight = Sight(common, {})
            return Surroundings(sight, sight, _NO_ROWS, {}, "")
        evidence, tiers, failure = self._evidence(events, batch.time_us)
        own_counts, all_counts, behind = self._counted(events, batch.time_us)
        failure = failure or behind
        sights, kept = [], {}
        for alone in (False, True):
            found, limits = evidence_columns(evidence, tiers, alone=alone)
            columns = {**common, **found, **(own_counts if alone else all_counts)}
            columns["degraded"] = np.full(rows, bool(failure) and not alone)
            sights.append(Sight(columns, limits))
        differs = np.full(rows, bool(failure))
        for kind, each in evidence.items():
            differs |= (each.all != each.own) | (each.reporters != each.own_reporters)
            kept[f"{kind}_victims_own"] = pa.array(each.own.astype(np.int32))
            kept[f"{kind}_victims_all"] = pa.array(each.all.astype(np.int32))
            kept[f"{kind}_reporters"] = pa.array(each.reporters.astype(np.int32))
            kept[f"{kind}_labels"] = pa.array(each.labels, type=pa.string())
            tier = sights[0].columns[f"{kind}_tier"]
            assert isinstance(tier, TextColumn)
            kept[f"{kind}_tier"] = names(tier.codes, tier.vocabulary)
            kept[f"{kind}_limit"] = pa.array(sights[0].limits[kind])
        for name, values in all_counts.items():
            differs |= values != own_counts[name]
            kept[name] = pa.array(values)
        return Surroundings(sights[0], sights[1], np.flatnonzero(differs), kept, failure)

    def _counted(
        self, events: EventBatch, time_us: NDArray[np.int64]
    ) -> tuple[Mapping[str, NDArray[np.float64]], Mapping[str, NDArray[np.float64]], str]:
        """The bank's own counts, those of all, and whether they are behind."""
        if self.counts is None:
            return {}, {}, ""
        behind = ""
        if len(time_us):
            days = self._mapping.day_of(time_us)
            self.counts.start(int(days.min()))
            if not self.counts.is_current(int(days.max())):
                behind = "the consortium's counts are behind"
        cells = self.counts.directory.cells(events.column(self._mapping.directory_entity))
        shared, own = self.counts.columns(cells, time_us)
        return own, shared, behind

    def _evidence(
        self, events: EventBatch, time_us: NDArray[np.int64]
    ) -> tuple[dict[str, KindEvidence], TierTable, str]:
        """Evidence by kind, the tiers, and why the consortium could not be asked (empty if it could)."""
        failure = ""
        evidence: dict[str, KindEvidence] = {}
        try:
            tiers = self._tiers()
        except Exception as error:  # noqa: BLE001 - see the module; what is unexpected is logged with its trace
            self._without("the consortium", error)
            nothing = {kind: no_evidence(events.num_rows) for kind in self._mapping.indicators.values()}
            return nothing, TierTable([]), _told(error)
        for entity, kind in self._mapping.indicators.items():
            codes, vocabulary = distinct_values(events.column(entity))
            try:
                if vocabulary:
                    self._tags.tags(kind, vocabulary)
            except Exception as error:  # noqa: BLE001 - see the module
                failure = failure or _told(error)
                self._without(f"new lookups of {kind}", error)
            try:
                # Values in the cache are answered by the mirror even when nobody can be asked.
                labels = self._mirror.evidence(kind, vocabulary)
                evidence[kind] = weigh_labels(codes, vocabulary, labels, time_us, self._party)
            except Exception as error:  # noqa: BLE001 - see the module
                failure = failure or _told(error)
                self._without(f"labels of {kind}", error)
                evidence[kind] = no_evidence(events.num_rows)
        return evidence, tiers, failure

    def _without(self, what: str, error: Exception) -> None:
        unexpected = not isinstance(error, UNREACHABLE)
        LOGGER.warning("%s scores without %s: %s", self._party, what, error, exc_info=unexpected)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
