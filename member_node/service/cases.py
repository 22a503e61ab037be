"""What staff do with cases: assign, note, decide. A decision is an outcome, and may clear a customer from a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from member_node.storage.cases import CaseFilter, CaseRow, CaseStore
from scoring.lists_values import ListError

FRAUD, GENUINE, UNCLEAR = "fraud", "genuine", "unclear"
DECISIONS = (FRAUD, GENUINE, UNCLEAR)
AGES_SECONDS = (3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
MAX_NOTE = 4000
MAX_LIST_REASON = 400


class CaseError(RuntimeError):
    """Staff ask for something that cannot be done; the text says why."""


class Exempter(Protocol):
    """Clears a customer from a rule until a time (an entry of an exemption list)."""

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
    ) -> None:
        """``learn``: takes outcomes (event id, fraud, known at in unix ms); ``clock``: unix seconds."""
        self._store = store
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
        return {**self._told(row), "alert_rows": alerts, "notes": notes}

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
    ) -> dict[str, Any]:
        """Close a case. ``fraud`` and ``genuine`` become the outcome of all its events, known at ``known_at_ms``.

        ``clearance`` (with ``genuine`` only) exempts the customer, for a time that the lists allow. Exemption and
        outcome are recorded before the case is closed, so that a decision that is repeated after a crash finishes what
        the first one began.
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
        if clearance is not None:
            # First: when the list refuses it, nothing has happened.
            reason = f"case {case_id}: {_one_line(text) or 'cleared after review'}"
            try:
                self._exempter.exempt(
                    row.customer, clearance.rule, clearance.until_us, reason=reason, author=author
                )
            except ListError as error:
                raise CaseError(f"the customer cannot be cleared: {error.field} {error.reason}") from error
        at = self._clock() * 1000 if known_at_ms is None else known_at_ms
        told: set[str] = set()

        def tell() -> int:
            events = [each for each in self._store.events(case_id) if each not in told]
            if decision == UNCLEAR or not events:
                return 0
            told.update(events)
            return self._learn([(event_id, decision == FRAUD, at) for event_id in events])

        recorded = tell()
        if clearance is not None:
            until = f"{clearance.rule or 'every rule'} until {clearance.until_us}"
            self._store.note(case_id, until, author=author, at=self._clock(), action="exempt")
        if not self._store.decide(case_id, decision, text, author=author, at=self._clock()):
            raise CaseError(f"case {case_id} was decided by somebody else just now")
        # Alerts that joined the case while it was decided; from here on they open another one.
        recorded += tell()
        return {**self.show(case_id), "outcomes": recorded}

    def _require(self, case_id: int) -> CaseRow:
        try:
            return self._store.show(case_id)[0]
        except KeyError:
            raise CaseError(f"there is no case {case_id}") from None

    def _told(self, row: CaseRow) -> dict[str, Any]:
        return {**asdict(row), "age_seconds": max(0, self._clock() - row.opened_at)}


def _one_line(text: str) -> str:
    """The beginning of a note as a list takes it for a reason; the case keeps the note."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_LIST_REASON]
