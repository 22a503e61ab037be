"""Joint statistics: the sum is right, each member decides for itself, and nothing is answered twice differently."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time

import msgspec
import numpy as np
import pytest

from crypto.he.contexts import RequesterKey
from crypto.masks import MaskSecret, generate_mask_key
from governance.log.entries import InquiryIntentEntry, decode_entry
from governance.messages.codec import decode
from governance.messages.inquiry import Contribution, Inquiry, MaskKey, Outcome
from governance.messages.problems import ProblemError, RequestError, make_problem
from governance.messages.signed import Signed, sign_message
from governance.policy.decider import Decider
from governance.policy.decision import RefusedError
from member_node.service.inquiry import InquiryFailedError
from member_node.service.questions import aggregate_question, outcome_commitment, statistic_question
from member_node.storage.questions import OverlapError, StatisticSeries

FIRST, LAST = 20_000, 20_002


def expected(world, first: int = FIRST, last: int = LAST) -> np.ndarray:
    return sum(bank.statistic.counts(first, last) for bank in world.banks.values())


class Asking:
    """``bank`` asks in a thread while the test lets the cohort take its turns."""

    def __init__(self, world, bank: str = "bank-a", first: int = FIRST, last: int = LAST) -> None:
        self.world = world
        self.result = None
        self.error: Exception | None = None
        self._bank = world.banks[bank]
        self._thread = threading.Thread(target=self._run, args=(first, last), daemon=True)
        opened = len(world.chair.inquiries)
        self._thread.start()
        deadline = time.monotonic() + 10
        while len(world.chair.inquiries) == opened and self._thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self, first: int, last: int) -> None:
        try:
            self.result = self._bank.inquiry.ask(first, last)
        except Exception as error:  # noqa: BLE001 - raised again in finish
            self.error = error

    def finish(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def ask(world, bank: str = "bank-a", first: int = FIRST, last: int = LAST):
    asking = Asking(world, bank, first, last)
    world.take_turns(3)
    return asking.finish()


def the_inquiry(world) -> dict:
    (known,) = world.chair.inquiries.values()
    return known


def refusal(world, party: str) -> str:
    (identifier,) = world.chair.inquiries
    return world.banks[party].questions.inquiry(identifier).refusal


def test_the_aggregate_is_the_sum_over_the_cohort_and_is_committed_to(world):
    answer = ask(world)
    assert answer.shape == (3, 5)
    assert answer.dtype == np.int64
    np.testing.assert_array_equal(answer, expected(world))
    outcome = decode(Outcome, the_inquiry(world)["outcome"]["bank-a"].payload)
    inquiry = decode(Inquiry, the_inquiry(world)["opening"].inquiry.payload)
    record = world.banks["bank-a"].questions.aggregate(aggregate_question(inquiry, world.chair.cohort))
    assert outcome.commitment == outcome_commitment(record.salt, answer.reshape(-1))
    assert outcome.commitment != hashlib.sha256(answer.tobytes()).digest()
    assert record.outcome_sent == 1


def test_a_repeated_question_is_answered_from_the_own_store(world):
    first = ask(world)
    world.banks["bank-a"].restart()
    np.testing.assert_array_equal(world.banks["bank-a"].inquiry.ask(FIRST, LAST), first)
    assert len(world.chair.inquiries) == 1


def test_a_member_computes_its_statistic_once_and_resends_it_to_another_requester(world):
    first = ask(world, "bank-a")
    for bank in world.banks.values():
        bank.statistic.bias += 7
    np.testing.assert_array_equal(ask(world, "bank-b"), first)
    assert [bank.statistic.calls for bank in world.banks.values()] == [1, 1, 1]


def test_contributions_are_masked_and_differ_between_inquiries(world):
    ask(world, "bank-a")
    ask(world, "bank-b")
    payloads = [known["contribution"]["bank-c"].payload for known in world.chair.inquiries.values()]
    assert payloads[0] != payloads[1]


def test_a_member_that_restarts_between_mask_key_and_contribution_continues(world):
    asking = Asking(world)
    world.take_turns(1)
    assert the_inquiry(world)["progress"].state == "contributions"
    bank = world.banks["bank-c"]
    before = decode(MaskKey, the_inquiry(world)["mask_key"]["bank-c"].payload).public_key
    bank.restart()
    world.take_turns(2)
    np.testing.assert_array_equal(asking.finish(), expected(world))
    assert decode(MaskKey, the_inquiry(world)["mask_key"]["bank-c"].payload).public_key == before
    (identifier,) = world.chair.inquiries
    record = bank.questions.inquiry(identifier)
    assert record.mask_secret == b""
    assert record.contribution


def test_a_mask_secret_waits_sealed(world):
    asking = Asking(world)
    bank = world.banks["bank-b"]
    bank.participation.poll(0)
    (identifier,) = world.chair.inquiries
    record = bank.questions.inquiry(identifier)
    public = decode(MaskKey, decode(Signed, record.mask_key).payload).public_key
    assert record.mask_secret
    for start in range(len(record.mask_secret) - 31):
        assert MaskSecret(record.mask_secret[start : start + 32]).public_key != public
    world.take_turns(3)
    asking.finish()


def test_a_day_that_is_not_matured_waits_and_is_answered_when_it_is(world):
    bank = world.banks["bank-c"]
    bank.statistic.matured = LAST - 1
    asking = Asking(world)
    world.take_turns(2)
    assert the_inquiry(world)["progress"].waiting_for == ["bank-c"]
    assert bank.participation.poll(0) is True
    bank.statistic.matured = LAST
    assert bank.participation.poll(0) is False
    np.testing.assert_array_equal(asking.finish(), expected(world))


def test_an_inquiry_that_expires_names_the_missing_members(world):
    world.banks["bank-c"].statistic.matured = 0
    asking = Asking(world)
    world.take_turns(2)
    world.clock.now += 131
    with pytest.raises(InquiryFailedError) as caught:
        asking.finish()
    assert caught.value.missing == ["bank-c"]


def distort_task(world, change) -> None:
    world.chair.distort["tasks"] = lambda tasks: msgspec.structs.replace(
        tasks, tasks=[change(each) for each in tasks.tasks]
    )


def end_with_veto(world, asking, party: str) -> dict[str, str]:
    world.banks[party].participation.poll(0)
    world.chair.distort.clear()
    assert list(world.chair.inquiries.values())[-1]["progress"].state == "vetoed"
    with pytest.raises(InquiryFailedError) as caught:
        asking.finish()
    return caught.value.vetoes


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: msgspec.structs.replace(entry, salt=bytes(32)),
        lambda entry: msgspec.structs.replace(entry, inclusion=[bytes(32), *entry.inclusion]),
        lambda entry: msgspec.structs.replace(entry, index=entry.index + 1),
        lambda entry: msgspec.structs.replace(entry, body=entry.body.replace(b"bank-c", b"bank-d")),
    ],
)
def test_an_intent_that_is_not_in_the_log_denies(world, change):
    asking = Asking(world)
    distort_task(world, lambda task: msgspec.structs.replace(task, intent=change(task.intent)))
    vetoes = end_with_veto(world, asking, "bank-b")
    assert vetoes == {"bank-b": "the intent is not in the log"}
    assert world.banks["bank-b"].statistic.calls == 0
    assert world.banks["bank-b"].faults.latest()[0].party == "coordinator"


def test_a_logged_entry_of_another_inquiry_denies(world):
    ask(world, "bank-a")
    other = world.chair.logged(the_inquiry(world)["intent"])
    asking = Asking(world, "bank-b")

    def change(task):
        return msgspec.structs.replace(task, intent=world.chair.logged(other.index))

    distort_task(world, change)
    assert end_with_veto(world, asking, "bank-c") == {"bank-c": "the logged intent is not this inquiry's"}


def test_a_cohort_that_is_not_all_members_denies_even_if_it_is_logged(world):
    asking = Asking(world)
    entry = decode_entry(world.chair.entries[the_inquiry(world)["intent"]][1])
    assert isinstance(entry, InquiryIntentEntry)
    smaller = world.chair.append(msgspec.structs.replace(entry, cohort=["bank-a", "bank-b"]))
    distort_task(
        world,
        lambda task: msgspec.structs.replace(
            task,
            cohort=["bank-a", "bank-b"],
            intent=world.chair.logged(smaller),
            checkpoint=world.chair.update(0),
        ),
    )
    world.banks["bank-b"].consortium.catch_up()
    assert end_with_veto(world, asking, "bank-b") == {"bank-b": "the cohort is not all members of the roll"}


def test_a_stale_checkpoint_denies_and_nothing_is_sent(world):
    asking = Asking(world)
    bank = world.banks["bank-b"]
    old = world.chair.update(0)
    world.clock.now += 100  # the policy allows 50 seconds for this test
    for each in world.banks.values():
        each.consortium._max_age = lambda: 50
    distort_task(world, lambda task: msgspec.structs.replace(task, checkpoint=old))
    assert bank.participation.poll(0) is True
    (identifier,) = world.chair.inquiries
    assert bank.questions.inquiry(identifier) is None
    assert the_inquiry(world)["mask_key"] == {}
    world.chair.distort.clear()
    world.take_turns(3)
    np.testing.assert_array_equal(asking.finish(), expected(world))


def test_a_log_that_goes_on_while_the_tasks_are_under_way_is_asked_again(world):
    asking = Asking(world)
    bank = world.banks["bank-b"]
    answers = []

    def from_nowhere(tasks):
        answers.append(tasks)
        if len(answers) > 1:
            return tasks
        unproven = world.chair.update(0)
        return msgspec.structs.replace(
            tasks, tasks=[msgspec.structs.replace(each, checkpoint=unproven) for each in tasks.tasks]
        )

    world.chair.distort["tasks"] = from_nowhere
    assert bank.participation.poll(0) is False
    assert len(answers) == 2
    assert set(the_inquiry(world)["mask_key"]) == {"bank-b"}
    world.take_turns(3)
    np.testing.assert_array_equal(asking.finish(), expected(world))


def test_a_log_that_stays_behind_is_blamed_and_nothing_is_sent(world):
    bank = world.banks["bank-b"]
    before = world.chair.update(0)
    asking = Asking(world)
    bank.consortium.catch_up()
    distort_task(world, lambda task: msgspec.structs.replace(task, checkpoint=before))
    assert bank.participation.poll(0) is True
    assert the_inquiry(world)["mask_key"] == {}
    assert "cannot be followed" in bank.faults.latest()[0].reason
    world.chair.distort.clear()
    world.take_turns(3)
    asking.finish()


def test_a_context_that_is_not_the_inquirys_denies(world):
    asking = Asking(world)
    distort_task(world, lambda task: msgspec.structs.replace(task, context=task.context + b"x"))
    assert "context" in end_with_veto(world, asking, "bank-b")["bank-b"]


def test_a_context_that_is_swapped_once_the_mask_keys_are_there_gets_nothing(world):
    """Whoever owns the key of the context reads the sum: it is checked again just before it is used."""
    asking = Asking(world)
    world.take_turns(1)
    assert the_inquiry(world)["progress"].state == "contributions"
    stranger = RequesterKey.generate().public_context()
    distort_task(
        world, lambda task: msgspec.structs.replace(task, context=stranger) if task.mask_keys else task
    )
    assert "context" in end_with_veto(world, asking, "bank-b")["bank-b"]
    assert the_inquiry(world)["contribution"] == {}
    assert world.banks["bank-b"].statistic.calls == 0
    fault = world.banks["bank-b"].faults.latest()[0]
    assert (fault.party, fault.what) == ("coordinator", "inquiry")
    assert "context" in fault.reason


def test_a_cohort_that_is_swapped_once_the_mask_keys_are_there_gets_nothing(world):
    asking = Asking(world)
    world.take_turns(1)
    distort_task(world, lambda task: msgspec.structs.replace(task, cohort=["bank-a", "bank-b"]))
    assert "cohort" in end_with_veto(world, asking, "bank-b")["bank-b"]
    assert world.banks["bank-b"].faults.latest()[0].party == "coordinator"
    assert world.banks["bank-b"].statistic.calls == 0


@pytest.mark.parametrize("what", ["lifetime", "policy"])
def test_lifetime_and_policy_are_decided_again_before_the_contribution(world, what):
    asking = Asking(world)
    world.take_turns(1)
    bank = world.banks["bank-b"]
    if what == "lifetime":
        world.clock.now += 120
    else:
        denying = world.chair.policy.cedar.replace("context.cells <= resource.max_cells", "context.cells < 0")
        bundle = msgspec.structs.replace(world.chair.policy, cedar=denying)
        object.__setattr__(bank.consortium._belief, "decider", Decider(bundle, world.chair.roll))
    expected_reason = {"lifetime": "lifetime", "policy": "refused by rule"}[what]
    assert expected_reason in end_with_veto(world, asking, "bank-b")["bank-b"]
    assert bank.statistic.calls == 0


def test_the_same_days_for_a_smaller_cohort_are_vetoed_so_that_nobody_subtracts_two_sums(world_of_four):
    world = world_of_four
    answer = ask(world)
    np.testing.assert_array_equal(answer, expected(world))
    world.remove("bank-d")
    computed = world.banks["bank-b"].statistic.calls
    for first, last in ((FIRST, LAST), (LAST, LAST + 2), (FIRST - 3, FIRST)):
        asking = Asking(world, "bank-a", first, last)
        assert end_with_veto(world, asking, "bank-b")["bank-b"].startswith("overlap: day")
    assert world.banks["bank-b"].statistic.calls == computed
    later = ask(world, "bank-a", LAST + 1, LAST + 2)
    np.testing.assert_array_equal(later, expected(world, LAST + 1, LAST + 2))


@pytest.mark.parametrize(("field", "installed"), [("_dataset", "shops"), ("_directory_digest", b"?" * 32)])
def test_a_statistic_is_answered_under_its_own_directory_only(world, field, installed):
    """Under a second name the same days could be asked of a smaller cohort, and the sums be subtracted."""
    setattr(world.banks["bank-b"].participation, field, installed)
    assert "not over the directory" in end_with_veto(world, Asking(world), "bank-b")["bank-b"]
    assert world.banks["bank-b"].statistic.calls == 0


def test_overlapping_windows_agree_on_the_days_they_share(world):
    first = ask(world, "bank-a", FIRST, LAST)
    for bank in world.banks.values():
        bank.statistic.bias += 7
    wider = ask(world, "bank-b", FIRST - 1, LAST + 1)
    np.testing.assert_array_equal(wider[1:-1], first)
    np.testing.assert_array_equal(wider[0], expected(world, FIRST - 1, FIRST - 1)[0])
    np.testing.assert_array_equal(ask(world, "bank-c", LAST, LAST)[0], first[-1])


def test_a_day_is_frozen_for_the_cohort_of_its_first_answer_whatever_comes_later(world):
    store = world.banks["bank-a"].questions
    series = StatisticSeries("confirmed-frauds-per-entity", "terminals", b"p" * 32)
    assert store.freeze(series, b"c" * 32, {7: b"seven"}) == {7: b"seven"}
    assert store.freeze(series, b"c" * 32, {7: b"other", 8: b"eight"}) == {7: b"seven", 8: b"eight"}
    with pytest.raises(OverlapError) as caught:
        store.freeze(series, b"d" * 32, {8: b"x", 9: b"nine"})
    assert caught.value.day == 8
    assert set(store.frozen(series, b"c" * 32, 0, 99)) == {7, 8}
    with pytest.raises(OverlapError):
        store.freeze(StatisticSeries(series.template, series.dataset, b"q" * 32), b"c" * 32, {7: b"x"})


def test_an_inquiry_nobody_signed_is_ignored_and_recorded(world):
    asking = Asking(world)
    bank = world.banks["bank-b"]

    def forge(task):
        forged = msgspec.structs.replace(task.inquiry, signature=bytes(64))
        return msgspec.structs.replace(task, inquiry=forged)

    distort_task(world, forge)
    bank.participation.poll(0)
    assert bank.questions.counts() == {}
    assert "nobody signed" in bank.faults.latest()[0].reason
    world.chair.distort.clear()
    world.take_turns(3)
    asking.finish()


def test_mask_keys_that_are_not_the_cohorts_deny(world):
    """A coordinator that swaps a mask key could strip masks: every member must see what its owner signed."""
    asking = Asking(world)
    world.take_turns(1)
    known = the_inquiry(world)
    original = decode(MaskKey, known["mask_key"]["bank-b"].payload)
    swapped = msgspec.structs.replace(original, public_key=generate_mask_key(secrets.token_bytes).public_key)
    forged = sign_message(swapped, "bank-b", world.banks["bank-b"].key)
    distort_task(
        world,
        lambda task: msgspec.structs.replace(
            task, mask_keys=[forged if each.signer == "bank-b" else each for each in task.mask_keys]
        ),
    )
    world.banks["bank-b"].participation.poll(0)
    assert "not the one we sent" in refusal(world, "bank-b")
    assert world.banks["bank-b"].statistic.calls == 0
    with pytest.raises(InquiryFailedError):
        asking.finish()


@pytest.mark.parametrize("how", ["missing", "twice", "other-inquiry"])
def test_a_set_of_mask_keys_that_is_not_one_for_each_member_denies(world, how):
    asking = Asking(world)
    world.take_turns(1)

    def change(task):
        keys = list(task.mask_keys)
        if how == "missing":
            keys = keys[:-1]
        elif how == "twice":
            keys[1] = keys[0]
        else:
            key = msgspec.structs.replace(decode(MaskKey, keys[0].payload), inquiry_id=bytes(32))
            keys[0] = sign_message(key, "bank-a", world.banks["bank-a"].key)
        return msgspec.structs.replace(task, mask_keys=keys)

    distort_task(world, change)
    vetoes = end_with_veto(world, asking, "bank-c")
    assert "mask key" in vetoes["bank-c"]


def test_the_members_own_policy_and_ledger_decide(world):
    rule = msgspec.structs.replace(world.chair.policy.inquiries[0], max_per_requester_per_day=1)
    world.set_policy(inquiries=[rule])
    ask(world, "bank-a", FIRST, FIRST)
    asking = Asking(world, "bank-a", LAST, LAST)
    assert "spent" in end_with_veto(world, asking, "bank-b")["bank-b"]
    ask(world, "bank-c", LAST, LAST)


def test_a_member_that_does_not_permit_it_vetoes_whatever_the_coordinator_decided(world):
    asking = Asking(world)
    bank = world.banks["bank-b"]
    denying = world.chair.policy.cedar.replace(
        '@id("members-take-part")', '@id("nobody-takes-part")'
    ).replace("context.cells <= resource.max_cells", "context.cells < 0")
    bundle = msgspec.structs.replace(world.chair.policy, cedar=denying)
    belief = bank.consortium._belief
    object.__setattr__(belief, "decider", Decider(bundle, world.chair.roll))
    assert end_with_veto(world, asking, "bank-b")["bank-b"].startswith("refused by rule")


def test_the_requesters_own_policy_denies_before_anything_is_sent(world):
    with pytest.raises(RefusedError):
        world.banks["bank-a"].inquiry.ask(FIRST, FIRST + 40)
    with pytest.raises(RequestError, match="before the first"):
        world.banks["bank-a"].inquiry.ask(LAST, FIRST)
    assert world.chair.inquiries == {}


def test_a_garbled_contribution_is_noticed(world):
    asking = Asking(world)
    world.take_turns(1)
    bank = world.banks["bank-b"]
    (identifier,) = world.chair.inquiries
    for party in ("bank-a", "bank-c"):
        world.banks[party].participation.poll(0)
    # bank-b contributes bank-a's ciphertexts: its masks do not cancel.
    theirs = decode(Contribution, the_inquiry(world)["contribution"]["bank-a"].payload)
    mine = sign_message(msgspec.structs.replace(theirs, member="bank-b"), "bank-b", bank.key)
    bank.port.send_contribution(identifier, mine)
    with pytest.raises(InquiryFailedError, match="do not add up"):
        asking.finish()


@pytest.mark.parametrize("how", ["missing", "twice", "unsigned", "other-digest"])
def test_contributions_that_are_not_the_whole_cohorts_are_never_decrypted(world, how):
    asking_bank = world.banks["bank-a"]
    decrypted = []
    original = asking_bank.inquiry._sum_and_decrypt
    asking_bank.inquiry._sum_and_decrypt = lambda *args: (decrypted.append(args), original(*args))[1]

    def change(status):
        parts = list(status.contributions)
        if not parts:
            return status
        if how == "missing":
            parts = parts[:-1]
        elif how == "twice":
            parts[1] = parts[0]
        elif how == "unsigned":
            parts[1] = msgspec.structs.replace(parts[1], signature=bytes(64))
        else:
            part = msgspec.structs.replace(decode(Contribution, parts[1].payload), mask_keys_digest=bytes(32))
            parts[1] = sign_message(part, "bank-b", world.banks["bank-b"].key)
        return msgspec.structs.replace(status, contributions=parts)

    world.chair.distort["status"] = change
    with pytest.raises(InquiryFailedError):
        ask(world)
    assert decrypted == []


def test_an_outcome_that_was_not_taken_is_sent_by_the_next_ask(world):
    bank = world.banks["bank-a"]
    asking = Asking(world)
    original = bank.port.send_outcome

    def refuse(identifier, envelope):
        raise ProblemError(make_problem("unavailable", "later", "coordinator"), "coordinator")

    bank.port.send_outcome = refuse
    world.take_turns(3)
    answer = asking.finish()
    assert the_inquiry(world)["outcome"] == {}
    bank.port.send_outcome = original
    np.testing.assert_array_equal(bank.inquiry.ask(FIRST, LAST), answer)
    assert set(the_inquiry(world)["outcome"]) == {"bank-a"}


def test_a_directory_that_is_not_the_rolls_stops_the_requester(world):
    world.banks["bank-a"].inquiry._directory_digest = bytes(32)
    with pytest.raises(RequestError, match="directory"):
        world.banks["bank-a"].inquiry.ask(FIRST, LAST)


def test_the_question_of_a_statistic_ignores_who_asks_and_the_aggregate_names_the_cohort(world):
    ask(world, "bank-a")
    ask(world, "bank-b")
    first, second = (
        decode(Inquiry, each["opening"].inquiry.payload) for each in world.chair.inquiries.values()
    )
    assert statistic_question(first) == statistic_question(second)
    other = msgspec.structs.replace(first, first_day=FIRST + 1)
    assert statistic_question(other) != statistic_question(first)
    assert aggregate_question(first, ["bank-a", "bank-b"]) != aggregate_question(first, ["bank-a", "bank-c"])
