"""What a membership roll must satisfy, and what is read from it."""

from __future__ import annotations

import secrets

import msgspec
import pytest

from crypto.errors import CryptoError
from crypto.threshold import deal
from governance.members import (
    MembershipError,
    PinnedParty,
    Role,
    check_newcomers,
    check_party_id,
    check_roll,
    check_successor,
    cohort,
    coordinator,
    find_directory,
    find_party,
    group_key,
    key_holders,
    key_set,
    verify_keys,
)
from governance.messages.roll import Directory, GroupKey, MembershipRoll, PublicShare, RollEntry

MEMBERS = ["bank-a", "bank-b", "bank-c"]


def entry(party: str, role: str, number: int, share_index: int = 0, **changes: object) -> RollEntry:
    plain = RollEntry(
        party=party,
        name=party.title(),
        role=role,
        verify_key=bytes([number]) * 32,
        url=f"http://127.0.0.1:80{number:02}",
        share_index=share_index,
        joined_epoch=1,
    )
    return msgspec.structs.replace(plain, **changes)


def make_group_key(**changes: object) -> GroupKey:
    keys, _ = deal(epoch=1, kind_group="terminals", threshold=2, holders=3, random=secrets.token_bytes)
    plain = GroupKey(
        epoch=1,
        kind_group="terminals",
        generation=1,
        threshold=2,
        public_key=keys.public_key,
        public_shares=[PublicShare(share_index=i, element=e) for i, e in sorted(keys.public_shares.items())],
    )
    return msgspec.structs.replace(plain, **changes)


GROUP_KEY = make_group_key()


def make_roll(**changes: object) -> MembershipRoll:
    parties = [
        entry("bank-c", "member", 3, 1),
        entry("bank-a", "member", 1, 3),
        entry("bank-b", "member", 2, 2),
        entry("coordinator", "coordinator", 4),
        entry("regulator", "regulator", 5, url=""),
    ]
    plain = MembershipRoll(
        version=4,
        epoch=1,
        issued_at=0,
        normal_forms=1,
        parties=parties,
        group_keys=[GROUP_KEY],
        directories=[Directory(dataset="terminals", cells=10, digest=bytes(32))],
    )
    return msgspec.structs.replace(plain, **changes)


def test_what_is_read_from_a_roll() -> None:
    roll = make_roll()
    check_roll(roll)
    assert cohort(roll) == MEMBERS
    assert [holder.party for holder in key_holders(roll).values()] == ["bank-c", "bank-b", "bank-a"]
    assert list(key_holders(roll)) == [1, 2, 3]
    assert verify_keys(roll)["bank-b"] == bytes([2]) * 32
    assert coordinator(roll).party == "coordinator"
    assert find_party(roll, "bank-a").role == Role.MEMBER
    assert find_directory(roll, "terminals").cells == 10
    assert group_key(roll, "terminals") is GROUP_KEY


def test_what_is_not_on_the_roll() -> None:
    roll = make_roll()
    with pytest.raises(MembershipError, match="bank-z: is not on"):
        find_party(roll, "bank-z")
    with pytest.raises(MembershipError, match="kind group 'accounts'"):
        group_key(roll, "accounts")
    with pytest.raises(MembershipError, match="data set 'merchants'"):
        find_directory(roll, "merchants")
    with pytest.raises(MembershipError, match="no coordinator"):
        coordinator(make_roll(parties=[]))


def test_the_key_set_is_verified() -> None:
    keys = key_set(make_roll(), "terminals")
    assert (keys.threshold, sorted(keys.public_shares)) == (2, [1, 2, 3])
    other = make_group_key()
    forged = msgspec.structs.replace(GROUP_KEY, public_key=other.public_key)
    with pytest.raises(CryptoError):
        key_set(make_roll(group_keys=[forged]), "terminals")
    shares = [*GROUP_KEY.public_shares[:2], other.public_shares[2]]
    with pytest.raises(CryptoError):
        key_set(make_roll(group_keys=[msgspec.structs.replace(GROUP_KEY, public_shares=shares)]), "terminals")


def with_entry(index: int, **changes: object) -> dict[str, object]:
    parties = list(make_roll().parties)
    parties[index] = msgspec.structs.replace(parties[index], **changes)
    return {"parties": parties}


def with_group_key(**changes: object) -> dict[str, object]:
    return {"group_keys": [msgspec.structs.replace(GROUP_KEY, **changes)]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 0}, "count from 1"),
        ({"epoch": 0}, "count from 1"),
        ({"normal_forms": 2}, "normal forms 2"),
        ({"parties": [entry(f"bank-{i}", "member", 1) for i in range(257)]}, "more than 256"),
        (with_entry(0, party="Bank C"), "party id"),
        (with_entry(0, party="b"), "party id"),
        (with_entry(0, party="x" * 33), "party id"),
        (with_entry(0, party="bank-c\n"), "party id"),
        (with_entry(0, party="bank-a"), "same party id"),
        (with_entry(0, verify_key=bytes([1]) * 32), "same verify key"),
        (with_entry(0, verify_key=bytes(31)), "bank-c: has a verify key"),
        (with_entry(0, share_index=3), "same share index"),
        (with_entry(0, share_index=-1), "share index"),
        (with_entry(4, share_index=4), "regulator: has a share index"),
        (with_entry(0, role="king"), "bank-c: has an unknown role"),
        (with_entry(3, role="regulator"), "exactly one coordinator"),
        (with_entry(4, role="coordinator"), "exactly one coordinator"),
        (with_entry(0, joined_epoch=2), "bank-c: joined"),
        (with_entry(0, joined_epoch=0), "bank-c: joined"),
        (with_entry(0, url="file:///etc"), "bank-c: has an address"),
        (with_entry(0, url="http://["), "bank-c: has an address"),
        (with_entry(0, url="http://"), "bank-c: has an address"),
        (with_entry(0, url="http://a..b:1"), "bank-c: has an address"),
        (with_entry(0, url="http://xn--/"), "bank-c: has an address"),
        (with_entry(0, url="http://user@host:1"), "bank-c: has an address"),
        (with_entry(0, url="http://host:1/path"), "bank-c: has an address"),
        (with_entry(0, url="http://" + "a" * 64), "bank-c: has an address"),
        (with_entry(0, url="http://\u00fc.example"), "bank-c: has an address"),
        (with_entry(0, share_index=0), "not those of the roll's key holders"),
        (with_group_key(kind_group="shoes"), "unknown kind group"),
        (with_group_key(epoch=2), "roll's epoch"),
        (with_group_key(generation=0), "generation"),
        (with_group_key(threshold=1), "threshold 1 of 3"),
        (with_group_key(threshold=4), "threshold 4 of 3"),
        (with_group_key(public_key=bytes(31)), "32 bytes"),
        (with_group_key(public_shares=GROUP_KEY.public_shares[:2]), "key holders"),
        (
            with_group_key(public_shares=[*GROUP_KEY.public_shares, GROUP_KEY.public_shares[0]]),
            "occurs twice",
        ),
        ({"group_keys": [GROUP_KEY, GROUP_KEY]}, "same group key"),
        ({"directories": make_roll().directories * 2}, "same directory"),
        ({"directories": [Directory(dataset="terminals", cells=0, digest=bytes(32))]}, "no cells"),
        ({"directories": [Directory(dataset="terminals", cells=1, digest=bytes(31))]}, "32-byte digest"),
    ],
)
def test_an_inconsistent_roll_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MembershipError, match=reason):
        check_roll(make_roll(**changes))


def test_rolls_only_grow() -> None:
    roll = make_roll()
    check_successor(roll, roll)
    check_successor(roll, make_roll(version=5))
    check_successor(roll, make_roll(version=5, epoch=2))
    with pytest.raises(MembershipError, match="older"):
        check_successor(roll, make_roll(version=3))
    with pytest.raises(MembershipError, match="older"):
        check_successor(make_roll(epoch=2), make_roll(version=5))
    with pytest.raises(MembershipError, match="two different"):
        check_successor(roll, make_roll(issued_at=1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verify_key": bytes([9]) * 32}, "changes the verify key of bank-c"),
        ({"role": "regulator", "share_index": 0}, "changes the role of bank-c from member"),
        ({"share_index": 4}, "changes the share index of bank-c within epoch 1"),
    ],
)
def test_a_party_that_stays_keeps_key_role_and_share_index(changes: dict[str, object], reason: str) -> None:
    successor = make_roll(version=5, **with_entry(0, **changes))
    with pytest.raises(MembershipError, match=reason):
        check_successor(make_roll(), successor)


def test_a_new_epoch_deals_new_share_indices_and_parties_may_leave() -> None:
    check_successor(make_roll(), make_roll(version=5, epoch=2, **with_entry(0, share_index=4)))
    check_successor(make_roll(), make_roll(version=5, parties=make_roll().parties[1:]))


def test_only_parties_that_are_pinned_or_known_may_be_on_a_roll() -> None:
    roll = make_roll()
    pins = {each.party: PinnedParty(each.role, each.verify_key) for each in roll.parties}
    check_newcomers(None, roll, pins)
    check_newcomers(roll, roll, {})
    before = make_roll(parties=roll.parties[1:])
    check_newcomers(before, roll, {"bank-c": pins["bank-c"]})
    for old, held in ((None, {k: v for k, v in pins.items() if k != "bank-c"}), (before, {})):
        with pytest.raises(MembershipError, match="adds bank-c, whose card is not pinned"):
            check_newcomers(old, roll, held)
    for wrong in (PinnedParty("member", bytes(32)), PinnedParty("regulator", bytes([3]) * 32)):
        with pytest.raises(MembershipError, match="adds bank-c with another verify key or role"):
            check_newcomers(before, roll, pins | {"bank-c": wrong})


@pytest.mark.parametrize("party", ["bank-a", "coordinator", "b2", "x" * 32])
def test_party_ids(party: str) -> None:
    check_party_id(party)
