"""Who belongs to the consortium: what a membership roll must satisfy, and what is read from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from crypto.signing import VERIFY_KEY_SIZE
from governance.indicators import ALL_KIND_GROUPS, NORMAL_FORMS_VERSION
from governance.messages.roll import Directory, GroupKey, MembershipRoll, RollEntry

if TYPE_CHECKING:
    from crypto.threshold import PublicKeySet

PARTY_ID = re.compile(r"[a-z][a-z0-9-]{1,31}")
# Scheme, host (name, IPv4 or bracketed IPv6) and port, and nothing that an HTTP library would have to interpret.
ADDRESS = re.compile(
    r"https?://(\[[0-9a-fA-F:.]{2,45}\]|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*)"
    r"(:[0-9]{1,5})?"
)
MAX_ADDRESS = 255
MAX_COUNT = 2**53  # the largest integer that JSON and every database column hold exactly
DIGEST_SIZE = 32
ELEMENT_SIZE = 32
MAX_PARTIES = 256


class Role(StrEnum):
    """What a party is. One party has one role."""

    MEMBER = "member"
    COORDINATOR = "coordinator"
    REGULATOR = "regulator"


class PinnedParty(NamedTuple):
    """What was agreed with a party out of band: its role and its Ed25519 verify key (32 bytes)."""

    role: str
    verify_key: bytes


class MembershipError(Exception):
    """A roll is wrong, or a party is not what the request needs; ``party`` is at fault ("" if the roll's author is)."""

    def __init__(self, party: str, reason: str) -> None:
        super().__init__(f"{party}: {reason}" if party else reason)
        self.party = party
        self.reason = reason


def check_party_id(party: str) -> None:
    """Raise :class:`MembershipError` unless ``party`` is 2..32 of ``a-z 0-9 -``, a letter first."""
    if not PARTY_ID.fullmatch(party):
        raise MembershipError("", "a party id is 2 to 32 of a-z, 0-9 and -, a letter first")


def check_roll(roll: MembershipRoll) -> None:
    """Raise :class:`MembershipError` unless the roll is consistent in itself.

    Ids, verify keys and share indices are unique, there is one coordinator, only members hold shares, every group
    key has a threshold of at least half the holders plus one and one public share for each of them. The algebra
    of the shares is checked by :func:`key_set`.
    """
    if not (1 <= roll.version < MAX_COUNT and 1 <= roll.epoch < MAX_COUNT):
        raise MembershipError("", "version and epoch of the roll count from 1")
    if roll.normal_forms != NORMAL_FORMS_VERSION:
        raise MembershipError(
            "", f"the roll needs normal forms {roll.normal_forms}, this software has {NORMAL_FORMS_VERSION}"
        )
    if len(roll.parties) > MAX_PARTIES:
        raise MembershipError("", f"more than {MAX_PARTIES} parties")
    for entry in roll.parties:
        _check_entry(entry, roll.epoch)
    _check_unique("party id", (entry.party for entry in roll.parties))
    _check_unique("verify key", (entry.verify_key for entry in roll.parties))
    _check_unique("share index", (entry.share_index for entry in roll.parties if entry.share_index))
    if sum(entry.role == Role.COORDINATOR for entry in roll.parties) != 1:
        raise MembershipError("", "the roll needs exactly one coordinator")
    holders = set(key_holders(roll))
    _check_unique("group key", (key.kind_group for key in roll.group_keys))
    for key in roll.group_keys:
        _check_group_key(key, holders, roll.epoch)
    _check_unique("directory", (directory.dataset for directory in roll.directories))
    for directory in roll.directories:
        if directory.cells < 1 or len(directory.digest) != DIGEST_SIZE:
            raise MembershipError(
                "", f"directory {directory.dataset}: no cells, or not a {DIGEST_SIZE}-byte digest"
            )


def check_successor(old: MembershipRoll, new: MembershipRoll) -> None:
    """Raise :class:`MembershipError` if ``new`` goes back behind ``old`` or says something else under its version.

    A party that stays keeps verify key and role, and within a key epoch its share index: otherwise whoever writes the
    roll could put itself in the place of anybody. Another key is another party: it leaves and is admitted anew.
    """
    if new.version < old.version or new.epoch < old.epoch:
        raise MembershipError(
            "", f"roll version {new.version} is older than {old.version}, which was accepted before"
        )
    if new.version == old.version and new != old:
        raise MembershipError("", f"two different rolls have version {new.version}")
    known = {entry.party: entry for entry in old.parties}
    for entry in new.parties:
        before = known.get(entry.party)
        if before is None:
            continue
        if entry.verify_key != before.verify_key:
            raise MembershipError("", f"roll version {new.version} changes the verify key of {entry.party}")
        if entry.role != before.role:
            raise MembershipError(
                "", f"roll version {new.version} changes the role of {entry.party} from {before.role}"
            )
        if new.epoch == old.epoch and entry.share_index != before.share_index:
            raise MembershipError(
                "",
                f"roll version {new.version} changes the share index of {entry.party} within epoch {new.epoch}",
            )


def check_newcomers(
    old: MembershipRoll | None, new: MembershipRoll, pinned: Mapping[str, PinnedParty]
) -> None:
    """Raise :class:`MembershipError` unless every party that ``old`` does not name is one of ``pinned``.

    ``pinned``: what a member's own operator has from other banks' operators, so that nobody can invent members;
    with no ``old`` roll it must name every party of ``new``.
    """
    known = set() if old is None else {entry.party for entry in old.parties}
    for entry in new.parties:
        if entry.party in known:
            continue
        pin = pinned.get(entry.party)
        if pin is None:
            raise MembershipError(
                "",
                f"roll version {new.version} adds {entry.party}, whose card is not pinned here: get the card from "
                "that party itself and run `subrosa member pin`",
            )
        if pin != PinnedParty(entry.role, entry.verify_key):
            raise MembershipError(
                "",
                f"roll version {new.version} adds {entry.party} with another verify key or role than its card, "
                "which is pinned here",
            )


def verify_keys(roll: MembershipRoll) -> dict[str, bytes]:
    """Ed25519 verify keys (32 bytes) by party id."""
    return {entry.party: entry.verify_key for entry in roll.parties}


def find_party(roll: MembershipRoll, party: str) -> RollEntry:
    """The entry of ``party``; raises :class:`MembershipError`."""
    for entry in roll.parties:
        if entry.party == party:
            return entry
    raise MembershipError(party, "is not on the membership roll")


def coordinator(roll: MembershipRoll) -> RollEntry:
    """The coordinator's entry."""
    for entry in roll.parties:
        if entry.role == Role.COORDINATOR:
            return entry
    raise MembershipError("", "the roll has no coordinator")


def key_holders(roll: MembershipRoll) -> dict[int, RollEntry]:
    """Parties that hold key shares, by share index (1..n), in that order."""
    held = (entry for entry in roll.parties if entry.share_index)
    return {entry.share_index: entry for entry in sorted(held, key=lambda entry: entry.share_index)}


def cohort(roll: MembershipRoll) -> list[str]:
    """All members in the order of their ids: nobody chooses who contributes to an inquiry."""
    return sorted(entry.party for entry in roll.parties if entry.role == Role.MEMBER)


def group_key(roll: MembershipRoll, kind_group: str) -> GroupKey:
    """The OPRF key of ``kind_group`` as published; raises :class:`MembershipError`."""
    for key in roll.group_keys:
        if key.kind_group == kind_group:
            return key
    raise MembershipError("", f"the roll has no key for the kind group {kind_group!r}")


def find_directory(roll: MembershipRoll, dataset: str) -> Directory:
    """The public directory of ``dataset``; raises :class:`MembershipError`."""
    for directory in roll.directories:
        if directory.dataset == dataset:
            return directory
    raise MembershipError("", f"the roll has no directory for the data set {dataset!r}")


def key_set(roll: MembershipRoll, kind_group: str) -> PublicKeySet:
    """The verified public key set of ``kind_group``: its shares interpolate to its key. Costly: keep the result.

    Raises :class:`MembershipError` or :class:`~crypto.errors.CryptoError`.
    """
    from crypto.threshold import PublicKeySet  # here, so that rbcl is loaded only where keys are used

    key = group_key(roll, kind_group)
    keys = PublicKeySet(
        epoch=key.epoch,
        kind_group=key.kind_group,
        generation=key.generation,
        threshold=key.threshold,
        public_key=key.public_key,
        public_shares={share.share_index: share.element for share in key.public_shares},
    )
    keys.verify()
    return keys


def _check_entry(entry: RollEntry, epoch: int) -> None:
    check_party_id(entry.party)
    if entry.role not in Role._value2member_map_:
        raise MembershipError(entry.party, "has an unknown role")
    if len(entry.verify_key) != VERIFY_KEY_SIZE:
        raise MembershipError(entry.party, f"has a verify key that is not {VERIFY_KEY_SIZE} bytes")
    if entry.share_index < 0 or (entry.share_index and entry.role != Role.MEMBER):
        raise MembershipError(entry.party, "has a share index, but only members hold key shares")
    if not 1 <= entry.joined_epoch <= epoch:
        raise MembershipError(entry.party, "joined in an epoch that is not between 1 and the roll's")
    if entry.url and (len(entry.url) > MAX_ADDRESS or not ADDRESS.fullmatch(entry.url)):
        raise MembershipError(entry.party, "has an address that is not http(s)://host[:port] in lower case")


def _check_group_key(key: GroupKey, holders: set[int], epoch: int) -> None:
    from crypto.threshold import least_threshold  # here, as in key_set

    name = f"group key {key.kind_group}"
    if key.kind_group not in ALL_KIND_GROUPS:
        raise MembershipError("", f"{name}: unknown kind group")
    if key.epoch != epoch or key.generation < 1:
        raise MembershipError("", f"{name}: not of the roll's epoch, or its generation is below 1")
    indices = [share.share_index for share in key.public_shares]
    _check_unique(f"{name}: share index", indices)
    if set(indices) != holders:
        raise MembershipError("", f"{name}: the public shares are not those of the roll's key holders")
    if not least_threshold(len(indices)) <= key.threshold <= len(indices):
        raise MembershipError(
            "", f"{name}: threshold {key.threshold} of {len(indices)} is not a majority of the holders"
        )
    if any(
        len(element) != ELEMENT_SIZE for element in (key.public_key, *(s.element for s in key.public_shares))
    ):
        raise MembershipError("", f"{name}: a public key or share is not {ELEMENT_SIZE} bytes")


def _check_unique(what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise MembershipError("", f"the same {what} occurs twice")
        seen.add(value)
