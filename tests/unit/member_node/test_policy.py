"""What a member believes: only what the pinned key signed, the log holds, and earlier beliefs allow."""

from __future__ import annotations

import msgspec
import pytest

from crypto.errors import InvalidSignatureError
from crypto.signing import SigningKey
from governance.log.entries import PolicyEntry
from governance.log.follow import LogFollowError
from governance.members import MembershipError
from governance.messages.problems import RequestError
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


def test_group_keys_may_not_change_within_an_epoch(world):
    bank = world.banks["bank-b"]
    bank.shares = []
    bank.restart()
    honest = world.chair.roll
    swapped = [
        msgspec.structs.replace(honest.group_keys[0], kind_group=each.kind_group)
        for each in honest.group_keys
    ]
    world.chair.roll = msgspec.structs.replace(honest, version=2, group_keys=swapped)
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
