"""From outcomes to evidence: confirmed frauds become findings by the policy's rule, and findings become labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from governance.indicators import InvalidIndicatorError, Kind, normalise_batch
from governance.messages.policy import PolicyBundle
from governance.messages.problems import ProblemError, RequestError
from governance.policy.decision import RefusedError
from member_node.client.ports import NotMaturedError, PartyUnreachableError
from member_node.service.contribution import BrokenReceiptError, Finding
from member_node.service.counts import PublicDirectory
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.storage.outcomes import ConfirmedFraud, OutcomeStore, PendingFinding, StreamStore
from member_node.streams.events import EventBatch, encoded
from member_node.streams.mapping import StreamMapping

LOGGER = logging.getLogger(__name__)
MATURED_DAY = "matured_day"
# What keeps findings waiting; anything else is an error of this program and is not swallowed.
CONTRIBUTION_FAILURES = (
    BrokenReceiptError,
    ConsortiumUnavailableError,
    NotJoinedError,
    PartyUnreachableError,
    ProblemError,
    RefusedError,
    RequestError,
)
TYPOLOGIES: Mapping[str, str] = {
    Kind.TERMINAL: "point-of-compromise",
    Kind.MERCHANT: "point-of-compromise",
    Kind.ACCOUNT: "mule-account",
    Kind.IBAN: "mule-account",
    Kind.DEVICE: "account-takeover",
    Kind.PHONE: "account-takeover",
    Kind.EMAIL_DOMAIN: "account-takeover",
}


class Contributor(Protocol):
    """Turns findings into labels in the index (see ``ContributionService``)."""

    def contribute(self, findings: Sequence[Finding], now_ms: int) -> int: ...


@dataclass(frozen=True)
class ConfirmReport:
    """What became known: ``findings`` made now, ``contributed`` labels accepted, ``waiting`` findings and why."""

    outcomes: int
    frauds: int
    findings: int
    contributed: int
    waiting: int
    reason: str


class OutcomeStatistic:
    """The bank's own statistic for joint inquiries (``LocalStatistic``): confirmed frauds per cell and day."""

    def __init__(self, outcomes: OutcomeStore, stream: StreamStore, cells: int) -> None:
        self._outcomes = outcomes
        self._stream = stream
        self._cells = cells

    def counts(self, first_day: int, last_day: int) -> NDArray[np.int64]:
        """int64 [days, cells], or :class:`NotMaturedError` naming the newest day that is complete."""
        matured = self._stream.cursor(MATURED_DAY)
        if matured is None or last_day > matured:
            raise NotMaturedError(-1 if matured is None else matured)
        return self._outcomes.counts(first_day, last_day, self._cells)


class OutcomeService:
    """Records outcomes, applies the evidence rule, contributes what it finds."""

    def __init__(self, outcomes: OutcomeStore, stream: StreamStore, contributor: Contributor) -> None:
        self._outcomes = outcomes
        self._stream = stream
        self._contributor = contributor

    def record(
        self,
        events: EventBatch,
        fraud: NDArray[np.bool_],
        known_at_us: NDArray[np.int64],
        mapping: StreamMapping,
        directory: PublicDirectory | None,
        cursors: Mapping[str, int] | None = None,
    ) -> int:
        """Store the outcomes of ``events`` (row by row) with ``cursors``; how many were new."""
        ids = [str(value) for value in events.column("event_id").to_pylist()]
        outcomes = list(zip(ids, fraud.tolist(), known_at_us.tolist(), strict=True))
        rows = np.flatnonzero(fraud)
        frauds = (
            confirmed_frauds(events.take(rows), known_at_us[rows], mapping, directory) if len(rows) else []
        )
        return self._outcomes.record(outcomes, frauds, cursors=cursors)

    def evaluate(self, now_us: int, policy: PolicyBundle) -> int:
        """Apply the policy's evidence rule at ``now_us``; findings made."""
        return self._outcomes.weigh(now_us, {rule.kind: rule.victim_window_days for rule in policy.kinds})

    def contribute(self) -> tuple[int, int, str]:
        """Contribute all waiting findings: (labels accepted, findings still waiting, why)."""
        accepted = 0
        pending = sorted(self._outcomes.pending(), key=lambda each: each.found_at_ms)
        for found_at_ms, group in groupby(pending, key=lambda each: each.found_at_ms):
            findings = list(group)
            try:
                accepted += self._contributor.contribute([_finding(each) for each in findings], found_at_ms)
            except CONTRIBUTION_FAILURES as error:
                LOGGER.warning("%d findings wait: %s", len(self._outcomes.pending()), error)
                return accepted, len(self._outcomes.pending()), str(error)
            self._outcomes.contributed(findings)
        return accepted, 0, ""

    def mature(self, day: int) -> None:
        """Declare that all outcomes of transactions up to ``day`` are recorded."""
        self._stream.advance({MATURED_DAY: day})


def confirmed_frauds(
    events: EventBatch,
    known_at_us: NDArray[np.int64],
    mapping: StreamMapping,
    directory: PublicDirectory | None,
) -> list[ConfirmedFraud]:
    """The records of frauds (all rows of ``events``), with the normal forms of the indicators they name."""
    rows = events.num_rows
    times = np.asarray(events.column("time_us").to_numpy(), dtype=np.int64)
    days = mapping.day_of(times)
    cells = np.full(rows, -1, dtype=np.int64)
    if directory is not None and mapping.directory_entity:
        cells = directory.cells(events.column(mapping.directory_entity))
    named: list[list[tuple[str, str]]] = [[] for _ in range(rows)]
    for entity, kind in mapping.indicators.items():
        codes, vocabulary = encoded(events.column(entity))
        forms = normalise_batch(kind, vocabulary)
        for row, code in enumerate(codes.tolist()):
            # A value without normal form cannot be an indicator; the transaction still counts as fraud.
            if code >= 0 and not isinstance(form := forms[code], InvalidIndicatorError):
                named[row].append((kind, form.text))
    customers = (
        [str(value) for value in events.column("customer").to_pylist()]
        if "customer" in events.schema.names
        else [str(value) for value in events.column("event_id").to_pylist()]
    )
    return [
        ConfirmedFraud(str(event_id), int(time), int(day), int(cell), int(known), customer, tuple(pairs))
        for event_id, time, day, cell, known, customer, pairs in zip(
            events.column("event_id").to_pylist(),
            times,
            days,
            cells,
            known_at_us,
            customers,
            named,
            strict=True,
        )
    ]


def _finding(pending: PendingFinding) -> Finding:
    return Finding(
        kind=pending.kind,
        value=pending.value,
        typology=TYPOLOGIES[pending.kind],
        distinct_victims=pending.distinct_victims,
        first_seen_ms=pending.first_seen_ms,
        last_seen_ms=pending.last_seen_ms,
    )
