"""Contributing: what leaves is sealed and signed, and the coordinator's receipt is held against it."""

from __future__ import annotations

import pytest

from governance.indicators import InvalidIndicatorError
from governance.messages.codec import decode
from governance.messages.index import Receipt, SealedLabel
from governance.messages.problems import ProblemError, RequestError, make_problem
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy.decision import RefusedError
from member_node.service.contribution import BrokenReceiptError, Finding


def finding(value="T1", kind="terminal", victims=2, first=1, last=2) -> Finding:
    return Finding(kind, value, "mule", victims, first, last)


def test_what_is_submitted_names_no_value_and_is_signed_by_its_contributor(world):
    bank = world.banks["bank-a"]
    assert bank.contribution.contribute([finding("SECRETVALUE1"), finding("SECRETVALUE2")], 5_000) == 2
    labels = world.chair.deltas[0].labels
    assert {each.signer for each in labels} == {"bank-a"}
    assert b"SECRETVALUE" not in b"".join(each.payload for each in labels)
    assert "SECRETVALUE1" not in repr(finding("SECRETVALUE1"))
    opened = [decode(SealedLabel, each.payload) for each in labels]
    assert {each.issued_at for each in opened} == {5_000}
    assert len({len(each.payload) for each in labels}) == 1


def test_findings_on_one_indicator_become_one_label_and_invalid_ones_none(world):
    bank = world.banks["bank-a"]
    findings = [finding("ab-1"), finding("AB1", victims=7), finding("!!!"), finding("DE00", kind="iban")]
    assert bank.contribution.contribute(findings, 5_000) == 1
    bank.index.sync(0)
    (view,) = bank.index.evidence("terminal", ["AB1"])["AB1"]
    assert view.distinct_victims == 7


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_labels_tells_nothing_of_the_order_of_values(world, reverse):
    values = sorted((f"TERMINAL{number:04}" for number in range(40)), reverse=reverse)
    world.banks["bank-a"].contribution.contribute([finding(value) for value in values], 5_000)
    tags = [decode(SealedLabel, each.payload).tag for each in world.chair.deltas[0].labels]
    assert tags == sorted(tags)
    assert tags != [world.banks["bank-a"].lookup.cached("terminal", value).tag for value in values]


def test_kinds_of_several_groups_are_submitted_apart(world):
    findings = [
        finding("T1"),
        finding("ACC1234567", kind="account"),
        finding("x.example", kind="email_domain"),
    ]
    assert world.banks["bank-a"].contribution.contribute(findings, 5_000) == 3
    assert len(world.chair.deltas) == 3


@pytest.mark.parametrize("wrong", [{"victims": -1}, {"first": 3, "last": 2}, {"first": -1}])
def test_impossible_findings_are_refused(world, wrong):
    with pytest.raises(RequestError, match="malformed"):
        world.banks["bank-a"].contribution.contribute([finding(**wrong)], 5_000)
    with pytest.raises(InvalidIndicatorError):
        world.banks["bank-a"].contribution.contribute([finding(kind="passport")], 5_000)
    assert world.chair.deltas == []


def test_the_own_policy_denies_before_anything_is_sent(world):
    rules = world.chair.policy.cedar.replace(
        'context.purpose == "indicator-sharing"', 'context.purpose == "oversight"'
    )
    world.set_policy(cedar=rules)
    with pytest.raises(RefusedError):
        world.banks["bank-a"].contribution.contribute([finding()], 5_000)
    assert world.chair.deltas == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": bytes(32)}, "another batch"),
        ({"contributor": "bank-b"}, "another batch"),
        ({"accepted": 0}, "accepts 0 of 1"),
        ({"merge_by": 2**40}, "later than the policy"),
    ],
)
def test_a_receipt_for_something_else_is_a_fault_of_the_coordinator(world, changes, reason):
    def change(signed):
        receipt = decode(Receipt, signed.payload)
        fields = {name: getattr(receipt, name) for name in Receipt.__struct_fields__}
        return sign_message(Receipt(**(fields | changes)), "coordinator", world.chair.key)

    world.chair.distort["submit_labels"] = change
    bank = world.banks["bank-a"]
    with pytest.raises(BrokenReceiptError, match=reason) as caught:
        bank.contribution.contribute([finding()], 5_000)
    assert caught.value.party == "coordinator"
    assert bank.faults.latest()[0].what == "receipt"


def test_a_receipt_by_another_member_is_not_accepted(world):
    bank = world.banks["bank-a"]

    def change(signed):
        return sign_message(decode(Receipt, signed.payload), "bank-c", world.banks["bank-c"].key)

    world.chair.distort["submit_labels"] = change
    with pytest.raises(BrokenReceiptError, match="signed by bank-c"):
        bank.contribution.contribute([finding()], 5_000)


def test_a_promise_that_is_not_kept_is_reported_until_it_is(world):
    bank = world.banks["bank-a"]
    bank.contribution.contribute([finding()], 5_000)
    kept = list(world.chair.deltas)
    world.chair.deltas.clear()
    world.clock.now += 61
    for _ in range(2):
        assert bank.index.sync(0).overdue_receipts == 1
    broken = next(each for each in bank.faults.latest() if each.what == "receipt")
    assert broken.party == "coordinator"
    assert open_signed(Receipt, decode(Signed, broken.evidence), world.chair.verify_keys()).accepted == 1
    assert [each.what for each in bank.faults.latest()].count("receipt") == 1
    world.chair.deltas.extend(kept)
    assert bank.index.sync(0).overdue_receipts == 0


def test_a_coordinator_that_refuses_is_heard(world):
    bank = world.banks["bank-a"]

    def refuse(_submission):
        raise ProblemError(make_problem("too-large", "fewer, please", "bank-a"), "coordinator")

    bank.port.submit_labels = refuse
    with pytest.raises(ProblemError, match="too large"):
        bank.contribution.contribute([finding()], 5_000)
