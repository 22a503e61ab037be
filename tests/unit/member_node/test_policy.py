"""What a member believes: only what the pinned key signed, the log holds, and earlier beliefs allow."""

from __future__ import annotations

import secrets
import shutil

import msgspec
import pytest

from crypto import group
from crypto.errors import InvalidSignatureError
from crypto.signing import SigningKey
from crypto.threshold import deal
from governance.log.entries import PolicyEntry
from governance.log.follow import LogFollowError
from governance.members import MembershipError, PinnedParty
from governance.messages.problems import RequestError
from governance.messages.roll import PublicShare
from governance.messages.signed import sign_message
from member_node.service.policy import NotJoinedError
from member_node.storage.trust import ReplayStore


def next_roll(world, **changes):
    return msgspec.structs.replace(world.chair.roll, **({"version": world.chair.roll.version + 1} | changes))


def unchanged(world):
    consortium = world.banks["bank-b"].consortium
    return (consortium.roll.version, consortium.policy_epoch()) == (1, 1)


def test_a_new_roll_and_policy_are_believed_once_they_are_logged(world):
    consortium = world.banks["bank-b"].consortium
    world.chair.roll = next_roll(world)
    with pytest.raises(MembershipError, match="membership roll that is not in the log"):
        consortium.refresh()
    assert unchanged(world)
    world.chair.publish()
    consortium.refresh()
    assert consortium.roll.version == 2


def test_a_policy_that_only_we_are_shown_is_not_believed(world):
    world.chair.policy = msgspec.structs.replace(world.chair.policy, policy_epoch=2)
    with pytest.raises(MembershipError, match="policy that is not in the log"):
        world.banks["bank-b"].consortium.refresh()
    assert unchanged(world)


def test_a_roll_far_along_the_log_is_found(world):
    consortium = world.banks["bank-b"].consortium
    for _ in range(130):
        world.chair.append(msgspec.json.decode(world.chair.entries[1][1], type=PolicyEntry))
    world.chair.roll = next_roll(world)
    world.chair.publish()
    consortium.refresh()
    assert consortium.roll.version == 2


@pytest.mark.parametrize("call", ["membership", "policy"])
def test_documents_by_another_key_or_changed_ones_are_refused(world, call):
    stranger = SigningKey(b"s" * 32)

    def resign(signed):
        message = world.chair.roll if call == "membership" else world.chair.policy
        return sign_message(message, "coordinator", stranger)

    for change in (resign, lambda signed: msgspec.structs.replace(signed, payload=signed.payload + b"\0")):
        world.chair.distort[call] = change
        with pytest.raises(InvalidSignatureError):
            world.banks["bank-b"].consortium.refresh()
    member = world.banks["bank-a"]
    world.chair.distort[call] = lambda signed: sign_message(
        world.chair.roll if call == "membership" else world.chair.policy, "bank-a", member.key
    )
    with pytest.raises(InvalidSignatureError, match="not on the membership roll"):
        world.banks["bank-b"].consortium.refresh()
    assert unchanged(world)


def test_a_roll_or_policy_may_not_go_back_or_differ_under_one_number(world):
    consortium = world.banks["bank-b"].consortium
    first_roll, first_policy = world.chair.roll, world.chair.policy
    world.chair.roll = next_roll(world)
    world.set_policy()
    world.chair.roll = first_roll
    with pytest.raises(MembershipError, match="older"):
        consortium.refresh()
    world.chair.roll = next_roll(world, issued_at=5)
    with pytest.raises(MembershipError, match="two different rolls"):
        consortium.refresh()
    world.chair.roll = next_roll(world, issued_at=first_roll.issued_at)
    world.chair.policy = first_policy
    with pytest.raises(MembershipError, match="older policy"):
        consortium.refresh()
    world.chair.policy = msgspec.structs.replace(first_policy, policy_epoch=2, merge_delay_seconds=1)
    with pytest.raises(MembershipError, match="two policies"):
        consortium.refresh()


def with_party(roll, party, **changes):
    return [
        msgspec.structs.replace(each, **changes) if each.party == party else each for each in roll.parties
    ]


def test_a_roll_with_other_keys_for_us_or_for_the_coordinator_is_refused(world):
    consortium = world.banks["bank-b"].consortium
    other = SigningKey(b"o" * 32).verify_key
    honest = world.chair.roll
    for party, reason in (("bank-b", "another verify key for us"), ("coordinator", "another coordinator")):
        world.chair.roll = msgspec.structs.replace(
            honest, version=2, parties=with_party(honest, party, verify_key=other)
        )
        world.chair.publish()
        with pytest.raises(MembershipError, match=reason):
            consortium.refresh()
    assert unchanged(world)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verify_key": SigningKey(b"o" * 32).verify_key}, "changes the verify key of bank-c"),
        ({"role": "regulator", "share_index": 0}, "changes the role of bank-c"),
    ],
)
def test_the_coordinator_cannot_put_itself_in_the_place_of_a_member(world, changes, reason):
    consortium = world.banks["bank-b"].consortium
    key = consortium.verify_keys()["bank-c"]
    honest = world.chair.roll
    keys = [] if "role" in changes else honest.group_keys
    world.chair.roll = next_roll(world, parties=with_party(honest, "bank-c", **changes), group_keys=keys)
    world.chair.publish()
    with pytest.raises(MembershipError, match=reason):
        consortium.refresh()
    assert unchanged(world)
    assert consortium.verify_keys()["bank-c"] == key


def test_share_indices_stay_within_an_epoch(world):
    roll = world.chair.roll
    swapped = [
        msgspec.structs.replace(each, share_index={1: 3, 3: 1}.get(each.share_index, each.share_index))
        for each in roll.parties
    ]
    world.chair.roll = next_roll(world, parties=swapped)
    world.chair.publish()
    with pytest.raises(MembershipError, match="changes the share index of bank-a"):
        world.banks["bank-b"].consortium.refresh()


@pytest.mark.parametrize("role", ["member", "regulator"])
def test_a_party_the_coordinator_adds_is_believed_only_once_our_operator_has_pinned_its_card(world, role):
    bank = world.banks["bank-b"]
    key = SigningKey(b"n" * 32).verify_key
    newcomer = msgspec.structs.replace(
        world.chair.roll.parties[0], party="bank-n", role=role, verify_key=key, share_index=0
    )
    world.chair.roll = next_roll(world, parties=[*world.chair.roll.parties, newcomer])
    world.chair.publish()
    with pytest.raises(MembershipError, match="adds bank-n, whose card is not pinned"):
        bank.consortium.refresh()
    world.pins["bank-n"] = PinnedParty(role, SigningKey(b"m" * 32).verify_key)
    with pytest.raises(MembershipError, match="another verify key or role than its card"):
        bank.consortium.refresh()
    assert unchanged(world)
    world.pins["bank-n"] = PinnedParty(role, key)
    bank.consortium.refresh()
    assert bank.consortium.verify_keys()["bank-n"] == key


def test_a_first_roll_names_only_parties_whose_cards_are_pinned(world, tmp_path, migrated):
    bank = world.banks["bank-b"]
    bank.path = tmp_path / "afresh"
    bank.path.mkdir()
    shutil.copy(migrated, bank.path / "bank-b.sqlite3")
    bank.restart()
    pin = world.pins.pop("bank-c")
    with pytest.raises(MembershipError, match="adds bank-c, whose card is not pinned"):
        bank.consortium.refresh()
    assert not bank.consortium.joined
    world.pins["bank-c"] = pin
    bank.consortium.refresh()
    world.pins.clear()
    bank.restart()
    assert bank.consortium.joined


def new_keys(world, *, epoch: int, generation: int = 1):
    """Group keys that somebody dealt alone, and the shares of holder 2 (bank-b)."""
    keys, own = [], []
    for known in world.chair.roll.group_keys:
        public, shares = deal(
            epoch=epoch, kind_group=known.kind_group, threshold=2, holders=3, random=secrets.token_bytes
        )
        elements = [PublicShare(share_index=i, element=e) for i, e in sorted(public.public_shares.items())]
        keys.append(
            msgspec.structs.replace(
                known,
                epoch=epoch,
                generation=generation,
                public_key=public.public_key,
                public_shares=elements,
            )
        )
        own.append(shares[1])
    return keys, own


@pytest.mark.parametrize(("epoch", "generation"), [(2, 1), (1, 2)])
def test_a_key_of_which_we_hold_no_share_is_never_used(world, epoch, generation):
    """Raising epoch or generation would give the coordinator the key under which we look up."""
    bank = world.banks["bank-b"]
    keys, _ = new_keys(world, epoch=epoch, generation=generation)
    world.chair.roll = next_roll(world, epoch=epoch, group_keys=keys)
    world.chair.publish()
    with pytest.raises(MembershipError, match="install our share") as caught:
        bank.consortium.refresh()
    assert caught.value.party == "coordinator"
    assert unchanged(world)


def test_a_new_epoch_is_believed_when_its_key_is_the_one_of_our_share(world):
    bank = world.banks["bank-b"]
    keys, own = new_keys(world, epoch=2)
    bank.shares = [*bank.shares, *own]
    bank.restart()
    forged, _ = new_keys(world, epoch=2)
    honest = next_roll(world, epoch=2, group_keys=keys)
    world.chair.roll = msgspec.structs.replace(honest, group_keys=[*keys[:-1], forged[-1]])
    world.chair.publish()
    with pytest.raises(MembershipError, match="public share 2"):
        bank.consortium.refresh()
    world.chair.roll = honest
    world.chair.publish()
    bank.consortium.refresh()
    assert bank.consortium.key_set("terminals").epoch == 2


def test_a_roll_that_takes_our_share_index_away_has_no_key_we_believe(world):
    roll = world.chair.roll
    keys = [
        msgspec.structs.replace(each, public_shares=[s for s in each.public_shares if s.share_index != 2])
        for each in new_keys(world, epoch=2)[0]
    ]
    world.chair.roll = next_roll(
        world, epoch=2, parties=with_party(roll, "bank-b", share_index=0), group_keys=keys
    )
    world.chair.publish()
    with pytest.raises(MembershipError, match=r"gives us \(bank-b\) no key share"):
        world.banks["bank-b"].consortium.refresh()
    assert unchanged(world)


def test_a_share_of_another_index_is_not_ours(world):
    bank = world.banks["bank-b"]
    bank.shares = world.banks["bank-c"].shares
    with pytest.raises(MembershipError, match="public share 2"):
        bank.restart()


def through_our_share(key, element: bytes):
    """A group key of another constant whose line (threshold 2) passes through the public share 2 of ``key``."""
    half = group.scalar_from_int((group.ORDER + 1) // 2)
    ours = next(each.element for each in key.public_shares if each.share_index == 2)
    slope = group.multiply(half, group.subtract(ours, element))
    third = group.add(ours, slope)
    first = group.add(element, slope)
    shares = [PublicShare(share_index=i, element=e) for i, e in ((1, first), (2, ours), (3, third))]
    return msgspec.structs.replace(key, public_key=element, public_shares=shares)


def test_group_keys_may_not_change_within_an_epoch_even_if_they_fit_our_share(world):
    bank = world.banks["bank-b"]
    honest = world.chair.roll
    other = group.multiply_base(group.random_scalar(secrets.token_bytes))
    changed = [through_our_share(honest.group_keys[0], other), *honest.group_keys[1:]]
    world.chair.roll = msgspec.structs.replace(honest, version=2, group_keys=changed)
    world.chair.publish()
    with pytest.raises(MembershipError, match="within epoch 1"):
        bank.consortium.refresh()


def test_beliefs_survive_a_restart_and_nothing_is_believed_before_the_first(world):
    bank = world.banks["bank-b"]
    size = bank.consortium.log_size
    bank.restart()
    bank.port.down = True
    assert (bank.consortium.roll.version, bank.consortium.log_size) == (1, size)
    bank.party, old = "bank-x", bank.party
    bank.restart()
    bank.party = old
    assert not bank.consortium.joined
    assert bank.consortium.policy_epoch() == 0
    assert set(bank.consortium.verify_keys()) == {"coordinator"}
    with pytest.raises(NotJoinedError, match="synchronise"):
        _ = bank.consortium.roll


def test_freshness_is_by_the_policys_bound(world):
    consortium = world.banks["bank-b"].consortium
    world.banks["bank-b"].port.down = True
    world.clock.now += 300
    consortium.require_fresh()
    world.clock.now += 1
    with pytest.raises(RequestError, match="stale-checkpoint"):
        consortium.require_fresh()


def test_a_checkpoint_nobody_signed_or_from_the_future_is_refused(world):
    consortium = world.banks["bank-b"].consortium
    world.chair.distort["checkpoint"] = lambda update: msgspec.structs.replace(
        update, note=update.note.replace("time 1", "time 2")
    )
    with pytest.raises(LogFollowError):
        consortium.catch_up()
    world.chair.distort.clear()
    world.clock.now += 100
    ahead = world.chair.update(0)
    world.clock.now -= 100
    world.chair.distort["checkpoint"] = lambda _update: ahead
    with pytest.raises(LogFollowError, match="future"):
        consortium.catch_up()


def test_a_nonce_is_remembered_per_party_and_forgotten_long_after_it_expired(world):
    bank = world.banks["bank-b"]
    store = ReplayStore(bank.database)
    assert store.remember("bank-a", "n", 100, now=50)
    assert store.remember("bank-c", "n", 100, now=50)
    assert not store.remember("bank-a", "n", 100, now=50)
    assert not ReplayStore(bank.database).remember("bank-a", "n", 100, now=50)
    store._since_sweep = 10**6
    assert store.remember("bank-a", "m", 1000, now=161)
    assert store.remember("bank-a", "n", 1000, now=161)
