"""Whether the entries of a log make sense one after another.

``NEXT`` is the life of an inquiry as the log shows it; a missing key is a violation. The rest are the rules of
DESIGN 5.4: intents before outcomes, deltas and accounts without gaps, epochs that only grow, signed statements
that verify under the roll in force when they were logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from crypto.errors import InvalidSignatureError
from governance.log.entries import (
    DeltaEntry,
    Entry,
    EvaluationTotalsEntry,
    InquiryExpiredEntry,
    InquiryIntentEntry,
    InquiryOutcomeEntry,
    InquiryRefusalEntry,
    InquiryVetoEntry,
    KeyEpochEntry,
    MembershipEntry,
    PolicyEntry,
    ReadsEntry,
    RefusalEntry,
    entry_type,
)
from governance.log.evidence import verify_evidence

NEXT: dict[tuple[str, str], str] = {
    ("unknown", "inquiry-intent"): "permitted",
    ("unknown", "inquiry-refusal"): "refused",
    ("refused", "inquiry-refusal"): "refused",
    ("refused", "inquiry-intent"): "permitted",
    ("permitted", "inquiry-veto"): "vetoed",
    ("vetoed", "inquiry-veto"): "vetoed",
    ("permitted", "inquiry-expired"): "expired",
    ("permitted", "inquiry-outcome"): "closed",
    # Asking the same again may be refused at any time and changes nothing.
    ("permitted", "inquiry-refusal"): "permitted",
    ("vetoed", "inquiry-refusal"): "vetoed",
    ("expired", "inquiry-refusal"): "expired",
    ("closed", "inquiry-refusal"): "closed",
}


class HistoryError(ValueError):
    """An entry that cannot follow the entries before it."""


@dataclass(frozen=True)
class _Asked:
    """A permitted inquiry, for the entries that refer to it."""

    requester: str
    cohort: frozenset[str]
    cells: int


class LogHistory:
    """The state after the entries applied so far. ``apply`` raises :class:`HistoryError` and then is void."""

    def __init__(self) -> None:
        self.roll: MembershipEntry | None = None
        self.policy_epoch: int | None = None
        self.inquiries: dict[str, str] = {}
        self.clock_steps = 0
        self._newest = 0
        self._verify_keys: dict[str, bytes] = {}
        self._members: frozenset[str] = frozenset()
        self._asked: dict[str, _Asked] = {}
        self._vetoes: set[tuple[str, str]] = set()
        self._delta = 0
        self._totals: dict[str, tuple[int, int]] = {}
        self._reads: dict[tuple[str, str, str, str, int], int] = {}
        self._key_epochs: dict[str, tuple[int, int]] = {}

    def apply(self, entry: Entry) -> None:
        """Check ``entry`` against all before it."""
        if isinstance(entry, MembershipEntry):
            self._apply_membership(entry)
        elif self.roll is None:
            raise HistoryError("the first entry of a log is a membership entry")
        match entry:
            case PolicyEntry():
                if self.policy_epoch is not None and entry.policy_epoch <= self.policy_epoch:
                    raise HistoryError(f"policy epoch {entry.policy_epoch} after {self.policy_epoch}")
                self.policy_epoch = entry.policy_epoch
            case KeyEpochEntry():
                self._apply_key_epoch(entry)
            case DeltaEntry():
                if entry.number != self._delta + 1:
                    raise HistoryError(f"delta {entry.number} after delta {self._delta}")
                self._require_members([entry.contributor])
                self._delta = entry.number
            case EvaluationTotalsEntry():
                self._apply_totals(entry)
            case ReadsEntry():
                self._apply_reads(entry)
            case RefusalEntry():
                if entry.since > entry.at:
                    raise HistoryError("refusals that begin after they were logged")
            case InquiryIntentEntry():
                self._apply_intent(entry)
            case InquiryRefusalEntry():
                self._move(entry.inquiry_id, entry)
            case InquiryVetoEntry():
                self._move(entry.inquiry_id, entry)
                self._require_cohort(entry.inquiry_id, [entry.member])
                if (entry.inquiry_id, entry.member) in self._vetoes:
                    raise HistoryError(f"a second veto of {entry.member!r}")
                self._vetoes.add((entry.inquiry_id, entry.member))
            case InquiryExpiredEntry():
                self._move(entry.inquiry_id, entry)
                self._require_cohort(entry.inquiry_id, entry.missing)
            case InquiryOutcomeEntry():
                self._move(entry.inquiry_id, entry)
                asked = self._asked[entry.inquiry_id]
                if (entry.requester, entry.cells) != (asked.requester, asked.cells):
                    raise HistoryError(
                        "an outcome by another requester, or of another size, than was permitted"
                    )
        try:
            verify_evidence(entry, self._verify_keys)
        except InvalidSignatureError as error:
            raise HistoryError(str(error)) from error
        if entry.at < self._newest:
            self.clock_steps += 1
        self._newest = max(self._newest, entry.at)

    def _apply_membership(self, entry: MembershipEntry) -> None:
        names = [known.party for known in entry.roll]
        keys = {known.verify_key for known in entry.roll}
        if names != sorted(set(names)) or len(keys) != len(names):
            raise HistoryError("a roll whose parties are not sorted, distinct and with keys of their own")
        if self.roll is not None and (entry.version <= self.roll.version or entry.epoch < self.roll.epoch):
            raise HistoryError(f"roll version {entry.version} after version {self.roll.version}")
        self.roll = entry
        self._verify_keys = {known.party: bytes.fromhex(known.verify_key) for known in entry.roll}
        self._members = frozenset(known.party for known in entry.roll if known.role == "member")

    def _apply_key_epoch(self, entry: KeyEpochEntry) -> None:
        last = self._key_epochs.get(entry.kind_group)
        if last is not None and (entry.epoch, entry.generation) <= last:
            raise HistoryError(f"the key of {entry.kind_group!r} does not move forward")
        self._require_members(entry.holders)
        if not 1 <= entry.threshold <= len(set(entry.holders)) == len(entry.holders):
            raise HistoryError(f"threshold {entry.threshold} of {len(entry.holders)} holders")
        self._key_epochs[entry.kind_group] = (entry.epoch, entry.generation)

    def _apply_totals(self, entry: EvaluationTotalsEntry) -> None:
        sequence, end = self._totals.get(entry.holder, (0, 0))
        if entry.sequence != sequence + 1:
            raise HistoryError(f"account {entry.sequence} of {entry.holder!r} after its account {sequence}")
        if not end <= entry.period_start <= entry.period_end:
            raise HistoryError(f"the periods of the accounts of {entry.holder!r} overlap or run backwards")
        self._totals[entry.holder] = (entry.sequence, entry.period_end)

    def _apply_reads(self, entry: ReadsEntry) -> None:
        key = (entry.party, entry.action, entry.purpose, entry.rule, entry.policy_epoch)
        if not self._reads.get(key, 0) <= entry.period_start <= entry.period_end <= entry.at:
            raise HistoryError(f"the periods of what {entry.party!r} read overlap or run backwards")
        self._reads[key] = entry.period_end

    def _apply_intent(self, entry: InquiryIntentEntry) -> None:
        self._move(entry.inquiry_id, entry)
        if entry.policy_epoch != self.policy_epoch:
            raise HistoryError(f"an inquiry under policy epoch {entry.policy_epoch}, not {self.policy_epoch}")
        self._require_members(entry.cohort)
        if entry.cohort != sorted(set(entry.cohort)) or entry.requester not in entry.cohort:
            raise HistoryError("a cohort that is not sorted and distinct, or lacks the requester")
        if entry.last_day < entry.first_day:
            raise HistoryError("an inquiry over no days")
        self._asked[entry.inquiry_id] = _Asked(entry.requester, frozenset(entry.cohort), entry.cells)

    def _move(self, inquiry_id: str, entry: Entry) -> None:
        state = self.inquiries.get(inquiry_id, "unknown")
        following = NEXT.get((state, entry_type(entry)))
        if following is None:
            raise HistoryError(f"{entry_type(entry)} for an inquiry that is {state}")
        self.inquiries[inquiry_id] = following

    def _require_members(self, parties: list[str]) -> None:
        for party in parties:
            if party not in self._members:
                raise HistoryError(f"{party!r} is not a member on the roll")

    def _require_cohort(self, inquiry_id: str, parties: list[str]) -> None:
        for party in parties:
            if party not in self._asked[inquiry_id].cohort:
                raise HistoryError(f"{party!r} is not in the cohort of the inquiry")
