"""What staff do with cases: assign, note, decide. A decision is an outcome, and may clear a customer from a rule.

An exemption lets more through, so an analyst's own ends soon (``clear_seconds``). A longer one is proposed with the
decision and takes effect when an approver, another person, approves it; an approver's takes effect at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from member_node.service.staff import check_two_persons
from member_node.storage.case_exemptions import (
    APPROVED,
    PROPOSED,
    REJECTED,
    ExemptionRow,
    ExemptionStore,
    propose,
)
from member_node.storage.cases import CaseFilter, CaseRow, CaseStore, add_note
from member_node.storage.database import Connection
from scoring.lists_values import ListError

FRAUD, GENUINE, UNCLEAR = "fraud", "genuine", "unclear"
DECISIONS = (FRAUD, GENUINE, UNCLEAR)
AGES_SECONDS = (3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
MAX_NOTE = 4000
MAX_LIST_REASON = 400
CLEAR_SECONDS = 7 * 24 * 3600


class CaseError(RuntimeError):
    """Staff ask for something that cannot be done; the text says why."""


class CaseNotPermittedError(CaseError):
    """A person lacks the role for what they ask."""


class Exempter(Protocol):
    """Clears a customer from a rule until a time (an entry of an exemption list)."""

    def check_exempt(self, customer: str, rule: str, until_us: int, *, reason: str, author: str) -> None:
        """Raise ListError if :meth:`exempt` would."""

    def exempt(self, customer: str, rule: str, until_us: int, *, reason: str, author: str) -> None: ...


@dataclass(frozen=True)
class Clearance:
    """A customer that was cleared is exempt from ``rule`` (empty: from every rule) until ``until_us``."""

    rule: str
    until_us: int


class CaseService:
    """The queue of one bank's fraud desk."""

    def __init__(
        self,
        store: CaseStore,
        *,
        learn: Callable[[Sequence[tuple[str, bool, int]]], int],
        exempter: Exempter,
        clock: Callable[[], int],
        exemptions: ExemptionStore,
        clear_seconds: int = CLEAR_SECONDS,
        added_by: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """``learn``: takes outcomes (event id, fraud, known at in unix ms); ``clock``: unix seconds.

        ``clear_seconds``: how long an analyst may exempt a customer alone; ``added_by``: who gave out whose token (see
        ``check_two_persons``).
        """
        self._store = store
        self._exemptions = exemptions
        self._clear_seconds = clear_seconds
        self._added_by = added_by
        self._settling = threading.Lock()
        self._learn = learn
        self._exempter = exempter
        self._clock = clock

    def find(self, wanted: CaseFilter, *, limit: int, offset: int) -> list[dict[str, Any]]:
        """Cases, the gravest and oldest first, each with its age in seconds."""
        return [self._told(row) for row in self._store.find(wanted, limit=limit, offset=offset)]

    def counts(self) -> dict[str, Any]:
        """How long the queue is: by severity, assignee and age; decisions so far."""
        return self._store.counts(self._clock(), AGES_SECONDS)

    def show(self, case_id: int) -> dict[str, Any]:
        """A case with its alerts and notes; raises :class:`CaseError`."""
        try:
            row, alerts, notes = self._store.show(case_id)
        except KeyError:
            raise CaseError(f"there is no case {case_id}") from None
        exemption = self._exemptions.find(case_id)
        told = None if exemption is None else asdict(exemption)
        return {**self._told(row), "alert_rows": alerts, "notes": notes, "exemption": told}

    def assign(self, case_id: int, assignee: str, author: str) -> dict[str, Any]:
        """Give an open case to a member of staff (empty: back to the queue)."""
        self._require(case_id)
        if not self._store.assign(case_id, assignee, author=author, at=self._clock()):
            raise CaseError(f"case {case_id} is closed")
        return self.show(case_id)

    def note(self, case_id: int, text: str, author: str) -> dict[str, Any]:
        """Add a note of at most :data:`MAX_NOTE` characters."""
        self._require(case_id)
        if not 0 < len(text) <= MAX_NOTE:
            raise CaseError(f"a note has 1 to {MAX_NOTE} characters")
        self._store.note(case_id, text, author=author, at=self._clock())
        return self.show(case_id)

    def decide(
        self,
        case_id: int,
        decision: str,
        author: str,
        *,
        text: str = "",
        known_at_ms: int | None = None,
        clearance: Clearance | None = None,
        may_loosen: bool = False,
    ) -> dict[str, Any]:
        """Close a case. ``fraud`` and ``genuine`` become the outcome of all its events, known at ``known_at_ms``.

        ``clearance`` (with ``genuine`` only) exempts the customer, for a time that the lists allow: at once if it ends
        soon or the author is an approver (``may_loosen``), else when an approver has agreed. Exemption and outcome are
        recorded before the case is closed, so that a decision that is repeated after a crash finishes what the first
        one began; a proposed exemption is stored with the closing.
        """
        row = self._require(case_id)
        if decision not in DECISIONS:
            raise CaseError(f"{decision!r} is no decision; use one of {', '.join(DECISIONS)}")
        if row.decision:
            raise CaseError(f"case {case_id} was decided by {row.decided_by}: {row.decision}")
        if len(text) > MAX_NOTE:
            raise CaseError(f"a note has at most {MAX_NOTE} characters")
        if clearance is not None and (decision != GENUINE or not row.customer):
            raise CaseError("only a customer whose case is decided as genuine can be cleared")
        proposal = None
        if clearance is not None:
            # First: when the list refuses it, nothing has happened.
            reason = f"case {case_id}: {_one_line(text) or 'cleared after review'}"
            soon = (self._clock() + self._clear_seconds) * 1_000_000
            if may_loosen or clearance.until_us <= soon:
                self._exempt(self._exempter.exempt, row.customer, clearance, reason, author)
            else:
                self._exempt(self._exempter.check_exempt, row.customer, clearance, reason, author)
                proposal = ExemptionRow(
                    case_id, row.customer, clearance.rule, clearance.until_us, reason, author, self._clock()
                )
        at = self._clock() * 1000 if known_at_ms is None else known_at_ms
        told: set[str] = set()

        def tell() -> int:
            events = [each for each in self._store.events(case_id) if each not in told]
            if decision == UNCLEAR or not events:
                return 0
            told.update(events)
            return self._learn([(event_id, decision == FRAUD, at) for event_id in events])

        recorded = tell()
        if clearance is not None and proposal is None:
            self._store.note(case_id, _until(clearance), author=author, at=self._clock(), action="exempt")

        def also(connection: Connection) -> None:
            if proposal is not None and clearance is not None:
                propose(connection, proposal)
                action = "propose-exemption"
                add_note(connection, case_id, proposal.proposed_at, author, action, _until(clearance))

        if not self._store.decide(case_id, decision, text, author=author, at=self._clock(), also=also):
            raise CaseError(f"case {case_id} was decided by somebody else just now")
        # Alerts that joined the case while it was decided; from here on they open another one.
        recorded += tell()
        return {**self.show(case_id), "outcomes": recorded}

    def proposed(self, *, limit: int, offset: int) -> list[dict[str, Any]]:
        """Exemptions that wait for an approver, the oldest first."""
        return [asdict(row) for row in self._exemptions.proposed(limit, offset)]

    def approve_exemption(self, case_id: int, author: str, why: str, *, may_loosen: bool) -> dict[str, Any]:
        """Let a proposed exemption take effect; by an approver, another person than who proposed it.

        Raises :class:`CaseError`, :class:`CaseNotPermittedError`, ``SamePersonError``.
        """
        _check_why(why)
        with self._settling:
            row = self._proposal(case_id)
            if not may_loosen:
                raise CaseNotPermittedError("to approve an exemption takes the role approver")
            check_two_persons(f"the exemption of case {case_id}", row.author, author, self._added_by())
            # Repeated after a crash the list has it already.
            clearance = Clearance(row.rule, row.until_us)
            self._exempt(self._exempter.exempt, row.customer, clearance, row.reason, author)
            self._exemptions.settle(case_id, APPROVED, by=author, at=self._clock(), why=why)
        return self.show(case_id)

    def reject_exemption(self, case_id: int, author: str, why: str, *, may_loosen: bool) -> dict[str, Any]:
        """Refuse a proposed exemption; who proposed it may withdraw it so. Raises as :meth:`approve_exemption`."""
        _check_why(why)
        with self._settling:
            if not may_loosen and self._proposal(case_id).author != author:
                raise CaseNotPermittedError("to reject an exemption takes the role approver")
            self._proposal(case_id)
            self._exemptions.settle(case_id, REJECTED, by=author, at=self._clock(), why=why)
        return self.show(case_id)

    def _proposal(self, case_id: int) -> ExemptionRow:
        self._require(case_id)
        row = self._exemptions.find(case_id)
        if row is None:
            raise CaseError(f"with case {case_id} no exemption was proposed")
        if row.state != PROPOSED:
            raise CaseError(f"the exemption of case {case_id} was {row.state} by {row.decided_by}")
        return row

    def _exempt(
        self, verb: Callable[..., None], customer: str, clearance: Clearance, reason: str, author: str
    ) -> None:
        try:
            verb(customer, clearance.rule, clearance.until_us, reason=reason, author=author)
        except ListError as error:
            raise CaseError(f"the customer cannot be cleared: {error.field} {error.reason}") from error

    def _require(self, case_id: int) -> CaseRow:
        try:
            return self._store.show(case_id)[0]
        except KeyError:
            raise CaseError(f"there is no case {case_id}") from None

    def _told(self, row: CaseRow) -> dict[str, Any]:
        return {**asdict(row), "age_seconds": max(0, self._clock() - row.opened_at)}


def _check_why(why: str) -> None:
    if not 0 < len(why.strip()) <= MAX_NOTE:
        raise CaseError(f"say why, in at most {MAX_NOTE} characters")


def _until(clearance: Clearance) -> str:
    return f"{clearance.rule or 'every rule'} until {clearance.until_us}"


def _one_line(text: str) -> str:
    """The beginning of a note as a list takes it for a reason; the case keeps the note."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_LIST_REASON]
