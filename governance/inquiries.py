"""Joint statistics: what may be asked, what binds the messages of one inquiry, and the order they come in.

The order is a table (:data:`NEXT`): a pair that is missing is a violation. Coordinator and members check the same
inquiry with the same function, each with its own roll, bundle and clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.members import MembershipError, cohort, find_directory
from governance.messages.codec import encode
from governance.messages.inquiry import Contribution, Inquiry, MaskKey, Outcome, Veto
from governance.messages.policy import InquiryRule, PolicyBundle
from governance.messages.roll import MembershipRoll
from governance.purposes import Purpose

NONCE_SIZE = 16
DIGEST_SIZE = 32
MASK_PUBLIC_KEY_SIZE = 32
MAX_REASON_CHARACTERS = 200
CLOCK_SKEW_SECONDS = 5


class InquiryError(Exception):
    """An inquiry or a message of one is not acceptable; ``party`` sent it."""

    def __init__(self, party: str, reason: str) -> None:
        super().__init__(f"{party}: {reason}")
        self.party = party
        self.reason = reason


class InquiryOrderError(InquiryError):
    """A message that does not fit the state of its inquiry, or differs from one already accepted."""


@dataclass(frozen=True)
class Template:
    """One statistic that may be asked. ``privacy`` lists the accepted parameters, ``cells_per`` says what a cell is."""

    name: str
    description: str
    purposes: frozenset[str]
    privacy: frozenset[str]
    modes: frozenset[str]
    cells_per: str


CONFIRMED_FRAUDS = "confirmed-frauds-per-entity"

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        CONFIRMED_FRAUDS: Template(
            name=CONFIRMED_FRAUDS,
            description="Confirmed frauds by day of the transaction and entity of a public directory (exact counts)",
            purposes=frozenset({Purpose.JOINT_STATISTICS}),
            privacy=frozenset({"none"}),
            modes=frozenset({"strict"}),
            cells_per="day and directory entry, day by day",
        )
    }
)


def _digest(domain: str, parts: Iterable[bytes]) -> bytes:
    """SHA-256 over a domain and length-prefixed parts, so that no two lists of parts give the same input."""
    state = hashlib.sha256(b"subrosa/v1/" + domain.encode() + b"\0")
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.digest()


def inquiry_id(payload: bytes) -> bytes:
    """The id of an inquiry: SHA-256 (32 bytes) of its canonical encoding, the payload of its envelope."""
    return hashlib.sha256(payload).digest()


def cohort_digest(members: Sequence[str]) -> bytes:
    """32 bytes that name the cohort; ``members`` sorted and distinct, else :class:`ValueError`."""
    if list(members) != sorted(set(members)):
        raise ValueError("a cohort is sorted and names each member once")
    return _digest("cohort", (member.encode() for member in members))


def mask_keys_digest(public_keys: Mapping[str, bytes]) -> bytes:
    """32 bytes over all members' X25519 mask keys: whoever was shown another key for anyone gets another digest."""
    return _digest("mask-keys", (part for m in sorted(public_keys) for part in (m.encode(), public_keys[m])))


def mask_binding(inquiry: bytes, members: Sequence[str], public_keys: Mapping[str, bytes]) -> bytes:
    """What the mask streams are bound to: inquiry id, cohort and all mask keys (32 bytes)."""
    return _digest("mask-binding", (inquiry, cohort_digest(members), mask_keys_digest(public_keys)))


def days_of(inquiry: Inquiry) -> int:
    """The number of days asked."""
    return inquiry.last_day - inquiry.first_day + 1


def find_rule(bundle: PolicyBundle, template: str, dataset: str, requester: str) -> InquiryRule:
    """The bundle's rule for ``template`` on ``dataset``; :class:`InquiryError` names the requester."""
    for rule in bundle.inquiries:
        if (rule.template, rule.dataset) == (template, dataset):
            return rule
    raise InquiryError(
        requester, f"no rule of the policy admits template {template!r} on data set {dataset!r}"
    )


def check_inquiry(
    inquiry: Inquiry, *, bundle: PolicyBundle, roll: MembershipRoll, context: bytes, now: int
) -> InquiryRule:
    """The rule that bounds ``inquiry`` if everything Cedar cannot see is right, else :class:`InquiryError`.

    ``context`` is the public BFV context that came with it, ``now`` unix seconds. Whether the requester *may* ask is
    the policy's decision, and how often it has asked is a count in one transaction: both are the caller's.
    """

    def refuse(reason: str) -> InquiryError:
        return InquiryError(inquiry.requester, reason)

    template = TEMPLATES.get(inquiry.template)
    if template is None:
        raise refuse("the template is not in the catalogue")
    rule = find_rule(bundle, inquiry.template, inquiry.dataset, inquiry.requester)
    members = cohort(roll)
    if inquiry.requester not in members:
        raise refuse("only a member of the cohort may ask")
    if len(members) < rule.colluders + 2:
        raise refuse(f"a cohort of {len(members)} is below colluders + 2 = {rule.colluders + 2}")
    if inquiry.roll_version != roll.version:
        raise refuse(f"names roll version {inquiry.roll_version}, the roll in force is {roll.version}")
    if inquiry.policy_epoch != bundle.policy_epoch:
        raise refuse(
            f"names policy epoch {inquiry.policy_epoch}, the policy in force is {bundle.policy_epoch}"
        )
    if len(inquiry.nonce) != NONCE_SIZE:
        raise refuse(f"the nonce is not {NONCE_SIZE} bytes")
    if inquiry.purpose not in template.purposes:
        raise refuse("the purpose is not one of the template's")
    if inquiry.privacy not in template.privacy:
        raise refuse("the privacy parameters are not among the template's")
    if inquiry.mode not in template.modes:
        raise refuse("the mode is not one of the template's")
    days = days_of(inquiry)
    if inquiry.first_day < 0 or not 1 <= days <= rule.max_days:
        raise refuse(f"asks {days} days from day {inquiry.first_day}, the rule admits 1 to {rule.max_days}")
    try:
        directory = find_directory(roll, inquiry.dataset)
    except MembershipError as error:
        raise refuse(error.reason) from error
    if inquiry.cells != directory.cells * days:
        raise refuse(f"{inquiry.cells} cells are not {days} days of {directory.cells} directory entries")
    if inquiry.cells > rule.max_cells:
        raise refuse(f"{inquiry.cells} cells, the rule admits {rule.max_cells}")
    if inquiry.created_at > now + CLOCK_SKEW_SECONDS:
        raise refuse("was created in the future")
    if now >= inquiry.created_at + rule.lifetime_seconds:
        raise refuse(f"is older than its lifetime of {rule.lifetime_seconds} s")
    if hashlib.sha256(context).digest() != inquiry.context_digest:
        raise refuse("the encryption context is not the one the inquiry names")
    return rule


def encode_counts(
    counts: npt.NDArray[np.integer[Any]], cells: int, max_cell_value: int
) -> npt.NDArray[np.int64]:
    """Clamp local counts to ``[0, max_cell_value]`` and flatten them day by day: int64 of length ``cells``.

    ``counts``: integers of shape [days, entries] or [cells]. A negative count is a fault of the caller, not clamped.
    """
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"counts are integers, not {counts.dtype}")
    if counts.size != cells:
        raise ValueError(f"{counts.size} counts for {cells} cells")
    if counts.size and int(counts.min()) < 0:
        raise ValueError("a count is negative")
    clamped: npt.NDArray[np.int64] = np.minimum(counts, max_cell_value).astype(np.int64).reshape(-1)
    return clamped


def check_aggregate(aggregate: npt.NDArray[np.int64], members: int, max_cell_value: int) -> None:
    """Raise :class:`ValueError` if a cell cannot be the sum of ``members`` clamped counts: a contribution was wrong."""
    if aggregate.size and not 0 <= int(aggregate.min()) <= int(aggregate.max()) <= members * max_cell_value:
        raise ValueError(
            "the aggregate is outside what clamped counts can add up to: a contribution was not as agreed"
        )


KEYS, CONTRIBUTIONS, COMPLETE, CLOSED, VETOED, EXPIRED = (
    "keys",
    "contributions",
    "complete",
    "closed",
    "vetoed",
    "expired",
)
FINAL_STATES = frozenset({CLOSED, VETOED, EXPIRED})

# (state, event) -> state; "last_..." is the event of the member that completes the cohort. After "complete" the
# requester has the contributions, so a veto would only pretend to stop something.
NEXT: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (KEYS, "mask_key"): KEYS,
        (KEYS, "last_mask_key"): CONTRIBUTIONS,
        (KEYS, "veto"): VETOED,
        (KEYS, "expire"): EXPIRED,
        (VETOED, "veto"): VETOED,
        (CONTRIBUTIONS, "contribution"): CONTRIBUTIONS,
        (CONTRIBUTIONS, "last_contribution"): COMPLETE,
        (CONTRIBUTIONS, "veto"): VETOED,
        (CONTRIBUTIONS, "expire"): EXPIRED,
        (COMPLETE, "outcome"): CLOSED,
        (COMPLETE, "expire"): EXPIRED,
    }
)

InquiryMessage = MaskKey | Contribution | Veto | Outcome


@dataclass(frozen=True)
class InquiryProgress:
    """Where an inquiry stands. A value: ``advance`` returns the next one or raises and changes nothing.

    ``mask_keys`` holds public keys, ``accepted`` SHA-256 digests of accepted messages by (kind, party); the
    bytes themselves are stored by the coordinator. Rebuild it after a restart by advancing through them again.
    """

    inquiry_id: bytes
    requester: str
    cohort: tuple[str, ...]
    cells: int
    state: str = KEYS
    mask_keys: Mapping[str, bytes] = field(default_factory=dict)
    accepted: Mapping[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def waiting_for(self) -> list[str]:
        """The parties that have not yet sent what the state needs."""
        if self.state == COMPLETE:
            return [self.requester]
        if self.state not in (KEYS, CONTRIBUTIONS):
            return []
        kind = "mask_key" if self.state == KEYS else "contribution"
        return [member for member in self.cohort if (kind, member) not in self.accepted]

    def advance(self, signer: str, message: InquiryMessage) -> InquiryProgress:
        """The state after a message whose envelope by ``signer`` has been verified.

        A repeated identical message gives the same state. Raises :class:`InquiryOrderError` for what does not fit
        or differs from before, :class:`InquiryError` for a wrong message; both name ``signer``.
        """
        kind = self._check_message(signer, message)
        digest = hashlib.sha256(encode(message)).digest()
        before = self.accepted.get((kind, signer))
        if before is not None:
            if before != digest:
                raise InquiryOrderError(signer, f"sent a different {_WORDS[kind]} before")
            return self
        event = kind
        if kind in ("mask_key", "contribution") and self.waiting_for == [signer]:
            event = f"last_{kind}"
        following = self._following(signer, event, _WORDS[kind])
        if isinstance(message, Contribution) and message.mask_keys_digest != mask_keys_digest(self.mask_keys):
            raise InquiryError(signer, "the contribution is masked under other mask keys")
        mask_keys = self.mask_keys
        if isinstance(message, MaskKey):
            if message.public_key in mask_keys.values():
                raise InquiryError(signer, "the mask key is another member's")
            mask_keys = {**mask_keys, signer: message.public_key}
        return replace(
            self, state=following, mask_keys=mask_keys, accepted={**self.accepted, (kind, signer): digest}
        )

    def expire(self) -> InquiryProgress:
        """The state after the lifetime has passed; a final state stays what it is."""
        if self.state in FINAL_STATES:
            return self
        return replace(self, state=NEXT[self.state, "expire"])

    def _following(self, signer: str, event: str, word: str) -> str:
        following = NEXT.get((self.state, event))
        if following is None:
            raise InquiryOrderError(signer, f"a {word} does not fit an inquiry in state {self.state!r}")
        return following

    def _check_message(self, signer: str, message: InquiryMessage) -> str:
        sender = message.requester if isinstance(message, Outcome) else message.member
        if sender != signer:
            raise InquiryError(signer, "signed a message that names another party")
        if message.inquiry_id != self.inquiry_id:
            raise InquiryError(signer, "the message belongs to another inquiry")
        if signer not in self.cohort:
            raise InquiryError(signer, "is not in the cohort of this inquiry")
        match message:
            case MaskKey():
                if message.cohort_digest != cohort_digest(self.cohort):
                    raise InquiryError(signer, "the mask key is for another cohort")
                if len(message.public_key) != MASK_PUBLIC_KEY_SIZE:
                    raise InquiryError(signer, f"the mask key is not {MASK_PUBLIC_KEY_SIZE} bytes")
                return "mask_key"
            case Contribution():
                return "contribution"
            case Veto():
                if len(message.reason) > MAX_REASON_CHARACTERS:
                    raise InquiryError(
                        signer, f"the reason is longer than {MAX_REASON_CHARACTERS} characters"
                    )
                return "veto"
            case Outcome():
                if signer != self.requester:
                    raise InquiryError(signer, "only the requester closes an inquiry")
                if len(message.commitment) != DIGEST_SIZE or message.cells != self.cells:
                    raise InquiryError(signer, "the outcome has another size than the inquiry")
                return "outcome"


_WORDS = {
    "mask_key": "mask key",
    "contribution": "contribution",
    "veto": "veto",
    "outcome": "outcome",
}
