"""The index of tags: labels as contributors sign them, and the feed that members mirror."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from governance.messages.codec import Message
from governance.messages.log import CheckpointUpdate, LoggedEntry
from governance.messages.signed import Evidence, Signed

TAG_SIZE = 16
MAX_LABELS = 2048


class SealedLabel(Evidence, frozen=True):
    """A label under its tag. Times are unix milliseconds of business time; ``sealed`` has one fixed size.

    The fields before ``sealed`` are the associated data of the sealing (see ``crypto.sealing``).
    """

    CONTEXT: ClassVar[str] = "sealed-label"

    epoch: int
    kind: str
    tag: bytes
    contributor: str
    issued_at: int
    expires_at: int
    sealed: bytes


class Label(Message, frozen=True):
    """What a contributor says of an indicator; only a holder of the OPRF output reads it. No free text.

    ``distinct_victims``: different customers of the contributor within the policy's victim window.
    ``grade``: evidence grade, ``"confirmed"`` or ``"suspected"``. Times in unix milliseconds.
    """

    typology: str
    grade: str
    distinct_victims: int
    first_seen: int
    last_seen: int


class SubmitLabels(Message, frozen=True):
    """1..2048 signed labels of the caller. ``purpose`` is why it may contribute."""

    purpose: str
    labels: list[Signed]


class Receipt(Evidence, frozen=True):
    """The coordinator's promise that the batch with ``digest`` will be in the index by ``merge_by`` (unix s)."""

    CONTEXT: ClassVar[str] = "index-receipt"

    contributor: str
    digest: bytes
    accepted: int
    merge_by: int


class Delta(Message, frozen=True):
    """One accepted batch. ``number`` counts from 1 without gaps; ``entry`` logs the digest of ``labels``."""

    number: int
    labels: list[Signed]
    entry: LoggedEntry


class Deltas(Message, frozen=True):
    """A page of the feed after ``after``; ``last`` is the newest number that exists."""

    after: int
    last: int
    checkpoint: CheckpointUpdate
    deltas: list[Delta]


def labels_digest(labels: Sequence[Signed]) -> bytes:
    """SHA-256 (32 bytes) of a batch in its order: what a receipt promises and a delta's log entry names."""
    return hashlib.sha256(b"subrosa/v1/labels\0" + msgspec.msgpack.encode(list(labels))).digest()
