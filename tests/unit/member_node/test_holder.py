"""The key holder refuses what it must, counts everything, and says why."""

from __future__ import annotations

import secrets
from collections import Counter

import msgspec
import pytest

from crypto import group
from crypto.errors import CryptoError
from crypto.threshold import ShareEvaluation, verify_evaluation
from governance.budgets import BudgetExceededError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.lookup import EvaluateRequest, EvaluateResponse, EvaluationTotals
from governance.messages.policy import EvaluationBudget
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, open_signed
from governance.policy.decision import RefusedError
from member_node.client.ports import PartyUnreachableError
from member_node.storage.evaluations import CountKey


def request(count: int = 3, **changes) -> EvaluateRequest:
    elements = b"".join(group.multiply_base(group.random_scalar(secrets.token_bytes)) for _ in range(count))
    fields = {
        "request_id": secrets.token_bytes(16),
        "epoch": 1,
        "kind_group": "terminals",
        "generation": 1,
        "purpose": "fraud-prevention",
        "quota": "lookup",
        "elements": elements,
    }
    return EvaluateRequest(**(fields | changes))


def refusals(bank) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for row in bank.evaluations.counts():
        if row.key.refusal:
            counted[row.key.refusal] += row.requests
    return dict(counted)


def test_the_answer_is_signed_names_the_request_and_verifies_against_the_public_share(world):
    holder = world.banks["bank-b"]
    asked = request()
    answer = open_signed(
        EvaluateResponse, holder.holder.evaluate("bank-a", asked), holder.consortium.verify_keys()
    )
    assert answer.request_id == asked.request_id
    evaluation = ShareEvaluation(answer.share_index, tuple(group.split(answer.elements)), answer.proof)
    verify_evaluation(holder.consortium.key_set("terminals"), group.split(asked.elements), evaluation)
    assert [(row.key, row.requests, row.elements) for row in holder.evaluations.counts()] == [
        (CountKey("bank-a", "terminals", "fraud-prevention", "lookup"), 1, 3)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"elements": b""},
        {"elements": bytes(33)},
        {"elements": bytes(32 * 4097)},
        {"request_id": b"short"},
        {"kind_group": "passports"},
        {"purpose": "curiosity"},
        {"quota": "unlimited"},
    ],
)
def test_malformed_and_oversized_requests_change_nothing(world, changes):
    holder = world.banks["bank-b"]
    with pytest.raises(MalformedError):
        holder.holder.evaluate("bank-a", request(**changes))
    assert holder.evaluations.counts() == []


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"epoch": 0}, {"generation": 2}, {"generation": 0}])
def test_another_epoch_or_generation_is_refused_and_counted(world, changes):
    holder = world.banks["bank-b"]
    with pytest.raises(RequestError, match="stale-epoch") as caught:
        holder.holder.evaluate("bank-a", request(**changes))
    assert caught.value.party == "bank-a"
    assert refusals(holder) == {"stale-epoch": 1}


def test_what_policy_does_not_permit_is_refused_with_the_rule_and_counted(world):
    holder = world.banks["bank-b"]
    with pytest.raises(RefusedError):
        holder.holder.evaluate("bank-a", request(purpose="oversight"))
    with pytest.raises(RefusedError):
        holder.holder.evaluate("coordinator", request())
    with pytest.raises(RefusedError):
        holder.holder.evaluate("bank-x", request())
    assert sum(refusals(holder).values()) == 3
    assert "" not in refusals(holder)


def test_a_policy_that_cannot_be_evaluated_denies(world):
    """A rule that errors on every request must not open the door (Cedar alone would skip it)."""
    broken = world.chair.policy.cedar + (
        '\n@id("overflow") @reason("errors when evaluated") forbid (principal, action == Action::"lookup", resource) '
        "when { context.elements * 9223372036854775807 > 0 };\n"
    )
    world.set_policy(cedar=broken)
    holder = world.banks["bank-b"]
    with pytest.raises(RefusedError) as caught:
        holder.holder.evaluate("bank-a", request())
    assert caught.value.decision.rule == "evaluation-failed"


def test_a_bundle_that_does_not_parse_is_not_believed(world):
    bank = world.banks["bank-b"]
    with pytest.raises(Exception, match="policy"):
        world.set_policy(cedar="permit (nobody knows what);")
    assert bank.consortium.policy.policy_epoch == 1
    bank.holder.evaluate("bank-a", request())


def test_a_stale_checkpoint_denies_until_there_is_a_fresh_one(world):
    holder = world.banks["bank-b"]
    holder.holder.evaluate("bank-a", request())
    holder.port.down = True
    world.clock.now += 299
    holder.holder.evaluate("bank-a", request())
    world.clock.now += 2
    with pytest.raises(RequestError, match="stale-checkpoint") as caught:
        holder.holder.evaluate("bank-a", request())
    assert caught.value.party == "coordinator"
    holder.port.down = False
    holder.holder.evaluate("bank-a", request())


def test_a_coordinator_that_serves_an_old_checkpoint_does_not_help(world):
    holder = world.banks["bank-b"]
    old = world.chair.update(0)
    world.chair.distort["checkpoint"] = lambda _update: old
    world.clock.now += 301
    with pytest.raises(RequestError, match="stale-checkpoint"):
        holder.holder.evaluate("bank-a", request())


def small_budget(world, **limits) -> None:
    fields = {"lookups_per_day": 10, "enrolment_per_epoch": 20, "elements_per_second": 5000} | limits
    budgets = [EvaluationBudget(kind_group=each.kind_group, **fields) for each in world.chair.policy.budgets]
    world.set_policy(budgets=budgets)


def test_the_budget_is_durable_per_caller_and_quota(world):
    small_budget(world)
    holder = world.banks["bank-b"]
    holder.holder.evaluate("bank-a", request(8))
    holder.restart()
    with pytest.raises(BudgetExceededError, match="per day") as caught:
        holder.holder.evaluate("bank-a", request(3))
    assert (caught.value.party, caught.value.remaining) == ("bank-a", 2)
    holder.holder.evaluate("bank-a", request(2))
    holder.holder.evaluate("bank-c", request(10))
    holder.holder.evaluate("bank-a", request(20, quota="enrolment"))
    with pytest.raises(BudgetExceededError, match="enrolment"):
        holder.holder.evaluate("bank-a", request(1, quota="enrolment"))
    assert refusals(holder) == {"budget-exceeded": 2}
    world.clock.now += 86_400
    holder.holder.evaluate("bank-a", request(3))


def test_a_repeated_request_is_answered_the_same_and_spends_once(world):
    small_budget(world)
    holder = world.banks["bank-b"]
    asked = request(8)
    first = holder.holder.evaluate("bank-a", asked)
    assert holder.holder.evaluate("bank-a", asked) == first
    assert [row.elements for row in holder.evaluations.counts()] == [8]
    with pytest.raises(RequestError, match="conflict"):
        holder.holder.evaluate("bank-a", msgspec.structs.replace(asked, elements=request(2).elements))
    # Another caller cannot fetch an answer by its request id.
    holder.holder.evaluate("bank-c", asked)
    assert sorted(row.key.caller for row in holder.evaluations.counts()) == ["bank-a", "bank-c"]


@pytest.mark.parametrize("bad", [bytes(32), b"\xff" * 32, (group.ORDER + 1).to_bytes(32, "little")])
def test_elements_that_are_none_are_refused_after_they_were_counted(world, bad):
    holder = world.banks["bank-b"]
    with pytest.raises(CryptoError):
        holder.holder.evaluate("bank-a", request(1, elements=request(1).elements + bad))
    assert [row.elements for row in holder.evaluations.counts()] == [2]


def test_a_roll_whose_public_shares_are_not_ours_is_not_believed(world):
    """Somebody who chose another polynomial would know the key of our lookups."""
    bank = world.banks["bank-b"]
    other = world.chair.roll.group_keys
    keys = [msgspec.structs.replace(other[0], kind_group=each.kind_group) for each in other]
    world.chair.roll = msgspec.structs.replace(world.chair.roll, version=2, group_keys=keys)
    world.chair.publish()
    with pytest.raises(MembershipError, match="not the one of our key share"):
        bank.consortium.refresh()
    assert bank.consortium.roll.version == 1


def test_totals_hold_every_request_once_and_survive_a_failed_delivery(world):
    holder = world.banks["bank-b"]
    holder.holder.evaluate("bank-a", request(4))
    with pytest.raises(RefusedError):
        holder.holder.evaluate("bank-c", request(2, purpose="oversight"))
    assert holder.totals.is_due()
    holder.port.down = True
    with pytest.raises(PartyUnreachableError):
        holder.totals.send()
    holder.restart()
    holder.holder.evaluate("bank-a", request(1))
    world.clock.now += 10
    assert holder.totals.send() == 2
    assert holder.evaluations.unsent_totals() == []
    assert holder.evaluations.counts() == []
    assert not holder.totals.is_due()


def test_signed_totals_say_what_was_asked(world):
    holder = world.banks["bank-b"]
    holder.holder.evaluate("bank-a", request(4))
    envelopes: list[Signed] = []
    original = holder.port.send_totals
    holder.port.send_totals = lambda signed: (envelopes.append(signed), original(signed))[1]
    holder.totals.send()
    totals = open_signed(EvaluationTotals, envelopes[0], world.chair.verify_keys())
    assert (totals.holder, totals.sequence) == ("bank-b", 1)
    assert totals.period_start < totals.period_end
    ((caller, elements),) = [(each.caller, each.elements) for each in totals.counts]
    assert (caller, elements) == ("bank-a", 4)
