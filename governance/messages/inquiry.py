"""Joint statistics: the inquiry, the masks' keys, contributions and the outcome (DESIGN 5.3, strict mode)."""

from __future__ import annotations

from typing import ClassVar

from governance.messages.codec import Message
from governance.messages.log import CheckpointUpdate, LoggedEntry
from governance.messages.signed import Evidence, Signed


class Inquiry(Evidence, frozen=True):
    """What is asked. Days count from 1970-01-01 in the data set's time zone, both inclusive.

    ``cells`` is the length of the vector of integers; ``context_digest`` is SHA-256 of the public BFV context.
    """

    CONTEXT: ClassVar[str] = "inquiry"

    nonce: bytes
    requester: str
    template: str
    dataset: str
    purpose: str
    first_day: int
    last_day: int
    cells: int
    privacy: str
    mode: str
    roll_version: int
    policy_epoch: int
    created_at: int
    context_digest: bytes


class OpenInquiry(Message, frozen=True):
    """The requester's call: the signed inquiry and the public BFV context it names."""

    inquiry: Signed
    context: bytes


class InquiryTask(Message, frozen=True):
    """What a cohort member needs to take part: verify everything, decide for itself, then send its mask key.

    ``intent`` logs inquiry digest, cohort and decision. ``mask_keys`` is empty until the whole cohort has sent
    one; then the member sends its contribution. ``context`` is empty when the member has asked not to get it again.
    """

    inquiry_id: bytes
    inquiry: Signed
    context: bytes
    cohort: list[str]
    intent: LoggedEntry
    checkpoint: CheckpointUpdate
    mask_keys: list[Signed]


class InquiryTasks(Message, frozen=True):
    """All inquiries that wait for the caller."""

    tasks: list[InquiryTask]


class MaskKey(Evidence, frozen=True):
    """A fresh X25519 public key (32 bytes) for one inquiry and one cohort."""

    CONTEXT: ClassVar[str] = "mask-key"

    inquiry_id: bytes
    cohort_digest: bytes
    member: str
    public_key: bytes


class Contribution(Evidence, frozen=True):
    """A member's masked statistic under the requester's key, ring by ring."""

    CONTEXT: ClassVar[str] = "contribution"

    inquiry_id: bytes
    member: str
    mask_keys_digest: bytes
    ciphertexts: list[bytes]


class Veto(Evidence, frozen=True):
    """A cohort member's refusal: ``reason`` is a refusal reason, never a value."""

    CONTEXT: ClassVar[str] = "veto"

    inquiry_id: bytes
    member: str
    reason: str


class InquiryStatus(Message, frozen=True):
    """State of one inquiry: ``keys``, ``contributions``, ``complete``, ``vetoed``, ``expired`` or ``closed``.

    ``waiting_for`` names the members that have not yet sent what the state needs; ``contributions`` is filled
    for the requester once complete; ``vetoes`` are signed.
    """

    inquiry_id: bytes
    state: str
    cohort: list[str]
    waiting_for: list[str]
    vetoes: list[Signed]
    mask_keys: list[Signed]
    contributions: list[Signed]


class Outcome(Evidence, frozen=True):
    """The requester's commitment (32 bytes, salted) to the aggregate it decrypted; closes the inquiry."""

    CONTEXT: ClassVar[str] = "inquiry-outcome"

    inquiry_id: bytes
    requester: str
    commitment: bytes
    cells: int
