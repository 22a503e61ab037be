"""Membership as the coordinator publishes it, signed: parties, keys and the OPRF parameters of the epoch."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from governance.messages.codec import MalformedError, Message
from governance.messages.signed import Evidence


class RollEntry(Message, frozen=True):
    """One party. ``share_index`` is its Shamir index (1..n), 0 if it holds no key share."""

    party: str
    name: str
    role: str
    verify_key: bytes
    url: str
    share_index: int
    joined_epoch: int


class PublicShare(Message, frozen=True):
    """The commitment to one key holder's share: ``element`` is a ristretto255 element (32 bytes)."""

    share_index: int
    element: bytes


class GroupKey(Message, frozen=True):
    """The OPRF key of one kind group in one epoch; ``generation`` counts re-sharings of the same key."""

    epoch: int
    kind_group: str
    generation: int
    threshold: int
    public_key: bytes
    public_shares: list[PublicShare]


class Directory(Message, frozen=True):
    """A public directory that per-entity inquiries address by position; parties hold the file themselves."""

    dataset: str
    cells: int
    digest: bytes


class MembershipRoll(Evidence, frozen=True):
    """All parties of the consortium. ``version`` grows by one with each change."""

    CONTEXT: ClassVar[str] = "membership-roll"

    version: int
    epoch: int
    issued_at: int
    normal_forms: int
    parties: list[RollEntry]
    group_keys: list[GroupKey]
    directories: list[Directory]


class PartyCard(Message, frozen=True):
    """How a party introduces itself to the coordinator's operator, as a JSON file carried by hand.

    ``verify_key`` is the Ed25519 verify key in 64 hexadecimal digits; ``url`` where it listens.
    """

    party: str
    name: str
    role: str
    verify_key: str
    url: str

    def to_json(self) -> str:
        """The card as it is stored."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> PartyCard:
        """Read a card, or raise :class:`~governance.messages.codec.MalformedError`."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise MalformedError(f"PartyCard: {error}") from error
