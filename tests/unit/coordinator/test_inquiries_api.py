"""Joint statistics through the coordinator's endpoints: the whole life, and every way to get it wrong."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import msgspec
import pytest

from coordinator.export import export_log
from governance.log.entries import (
    InquiryExpiredEntry,
    InquiryIntentEntry,
    InquiryOutcomeEntry,
    InquiryRefusalEntry,
    InquiryVetoEntry,
    decode_entry,
)
from governance.messages.codec import encode
from governance.messages.inquiry import InquiryStatus, InquiryTask, InquiryTasks, OpenInquiry
from governance.messages.log import LogPage
from governance.policy.default import default_bundle

BANKS = ("bank-a", "bank-b", "bank-c")


def collect(consortium, task, members=BANKS):
    for member in BANKS:
        consortium.step(task, "mask-key", consortium.mask_key(task, member))
    for member in members:
        consortium.step(task, "contribution", consortium.contribution(task, member))


def status(consortium, task, party="bank-a", wait="0"):
    target = f"/v1/inquiries/{task.inquiry_id.hex()}?wait={wait}"
    return consortium.get(party, target, InquiryStatus)


def last_entry(consortium):
    page = consortium.get("regulator", "/v1/log?first=0&count=500", LogPage)
    return decode_entry(page.entries[-1].body)


def test_whole_life(consortium, tmp_path: Path):
    opened = consortium.inquiry()
    task = consortium.post("bank-a", "/v1/inquiries", opened, InquiryTask)
    assert task.inquiry_id == hashlib.sha256(opened.inquiry.payload).digest()
    assert task.cohort == list(BANKS)
    trusted = consortium.trusted().advance(task.checkpoint, now=int(consortium.clock.now), max_age=300)
    intent = trusted.verify_entry(task.intent)
    assert isinstance(intent, InquiryIntentEntry)
    assert intent.rule == "members-inquire"

    [waiting] = consortium.get("bank-b", "/v1/inquiries/tasks?wait=0", InquiryTasks).tasks
    assert waiting.context == b"public context"
    assert waiting.mask_keys == []
    for member in BANKS:
        consortium.step(task, "mask-key", consortium.mask_key(task, member))
    [waiting] = consortium.get("bank-b", "/v1/inquiries/tasks", InquiryTasks).tasks
    assert [key.signer for key in waiting.mask_keys] == list(BANKS)
    assert status(consortium, task).waiting_for == list(BANKS)
    for member in BANKS:
        consortium.step(task, "contribution", consortium.contribution(task, member))
    assert consortium.get("bank-b", "/v1/inquiries/tasks", InquiryTasks).tasks == []
    complete = status(consortium, task, wait="5")
    assert (complete.state, complete.waiting_for) == ("complete", ["bank-a"])
    assert [item.signer for item in complete.contributions] == list(BANKS)
    assert status(consortium, task, "bank-b").contributions == []

    update = consortium.step(task, "outcome", consortium.outcome(task))
    assert update.first_size == 0
    closed = status(consortium, task, wait="5")
    assert (closed.state, closed.contributions) == ("closed", [])
    assert isinstance(last_entry(consortium), InquiryOutcomeEntry)
    report = export_log(consortium.directory, tmp_path / "export")
    assert report.inquiries["closed"] == 1


def test_repetitions_change_nothing(consortium):
    opened = consortium.inquiry()
    task = consortium.post("bank-a", "/v1/inquiries", opened, InquiryTask)
    assert consortium.post("bank-a", "/v1/inquiries", opened, InquiryTask).inquiry_id == task.inquiry_id
    collect(consortium, task)
    size = consortium.coordinator.log.head.size
    consortium.step(task, "mask-key", consortium.mask_key(task, "bank-b"))
    consortium.step(task, "contribution", consortium.contribution(task, "bank-b"))
    assert consortium.coordinator.log.head.size == size
    consortium.step(task, "outcome", consortium.outcome(task))
    consortium.step(task, "outcome", consortium.outcome(task))
    consortium.step(task, "contribution", consortium.contribution(task, "bank-c"))
    assert consortium.coordinator.log.head.size == size + 1


def refuse(consortium, task, name, envelope, party=""):
    before = consortium.coordinator.log.head.size
    state = status(consortium, task)
    target = f"/v1/inquiries/{task.inquiry_id.hex()}/{name}"
    problem = consortium.refused(party or envelope.signer, "POST", target, envelope)
    assert consortium.coordinator.log.head.size == before
    assert status(consortium, task) == state
    assert problem.fix
    return problem


def test_out_of_order(consortium):
    task = consortium.ask()
    problem = refuse(consortium, task, "contribution", consortium.contribution(task, "bank-b"))
    assert (problem.name, problem.status, problem.party) == ("out-of-order", 409, "bank-b")
    problem = refuse(consortium, task, "outcome", consortium.outcome(task))
    assert (problem.name, problem.party) == ("out-of-order", "bank-a")


def test_a_different_repetition_is_refused(consortium):
    task = consortium.ask()
    consortium.step(task, "mask-key", consortium.mask_key(task, "bank-b"))
    problem = refuse(
        consortium, task, "mask-key", consortium.mask_key(task, "bank-b", public_key=bytes(range(32)))
    )
    assert (problem.name, problem.party) == ("out-of-order", "bank-b")
    for member in ("bank-a", "bank-c"):
        consortium.step(task, "mask-key", consortium.mask_key(task, member))
    consortium.step(task, "contribution", consortium.contribution(task, "bank-b"))
    other = consortium.contribution(task, "bank-b", ciphertexts=[b"another"])
    problem = refuse(consortium, task, "contribution", other)
    assert (problem.name, problem.party) == ("out-of-order", "bank-b")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ciphertexts": []}, "inquiry-refused"),
        ({"ciphertexts": [b"1", b"2"]}, "inquiry-refused"),
        ({"ciphertexts": [b""]}, "too-large"),
        ({"ciphertexts": [bytes(1_000_000)]}, "too-large"),
        ({"mask_keys_digest": bytes(32)}, "inquiry-refused"),
        ({"inquiry_id": bytes(32)}, "inquiry-refused"),
    ],
)
def test_wrong_contributions(consortium, changes, name):
    task = consortium.ask()
    collect(consortium, task, members=())
    problem = refuse(consortium, task, "contribution", consortium.contribution(task, "bank-b", **changes))
    assert (problem.name, problem.party) == (name, "bank-b")


def test_messages_of_others_are_refused(consortium):
    task = consortium.ask()
    problem = refuse(consortium, task, "mask-key", consortium.mask_key(task, "bank-b"), party="bank-c")
    assert (problem.name, problem.party) == ("refused", "bank-c")
    problem = refuse(consortium, task, "mask-key", consortium.mask_key(task, "bank-b", member="bank-c"))
    assert (problem.name, problem.party) == ("refused", "bank-b")
    wrong = msgspec.structs.replace(consortium.mask_key(task, "bank-b"), signature=bytes(64))
    problem = refuse(consortium, task, "mask-key", wrong)
    assert (problem.name, problem.party) == ("invalid-signature", "bank-b")
    problem = refuse(consortium, task, "veto", consortium.mask_key(task, "bank-b"))
    assert problem.name == "invalid-signature"
    target = f"/v1/inquiries/{task.inquiry_id.hex()}"
    assert consortium.refused("regulator", "GET", target).name == "refused"
    assert consortium.refused("bank-a", "GET", f"/v1/inquiries/{'0' * 64}").name == "not-found"
    assert consortium.refused("bank-a", "GET", "/v1/inquiries/zz").name == "not-found"
    assert (
        consortium.refused("bank-a", "POST", f"{target}/nothing", consortium.veto(task, "bank-a")).name
        == "not-found"
    )


def test_veto(consortium):
    task = consortium.ask()
    consortium.step(task, "veto", consortium.veto(task, "bank-c"))
    entry = last_entry(consortium)
    assert isinstance(entry, InquiryVetoEntry)
    assert (entry.member, entry.reason, entry.parties) == ("bank-c", "not-matured", list(BANKS))
    vetoed = status(consortium, task, wait="5")
    assert (vetoed.state, vetoed.waiting_for) == ("vetoed", [])
    assert [envelope.signer for envelope in vetoed.vetoes] == ["bank-c"]
    problem = refuse(consortium, task, "mask-key", consortium.mask_key(task, "bank-b"))
    assert (problem.name, problem.party) == ("out-of-order", "bank-b")
    assert "veto" in problem.detail


def test_expiry_names_who_is_missing(consortium):
    task = consortium.ask()
    collect(consortium, task, members=("bank-a",))
    consortium.clock.now += 121
    problem = consortium.refused(
        "bank-b",
        "POST",
        f"/v1/inquiries/{task.inquiry_id.hex()}/contribution",
        consortium.contribution(task, "bank-b"),
    )
    assert problem.name == "out-of-order"
    entry = last_entry(consortium)
    assert isinstance(entry, InquiryExpiredEntry)
    assert (entry.state, entry.missing) == ("contributions", ["bank-b", "bank-c"])
    assert status(consortium, task).state == "expired"


def test_time_passes_without_requests(consortium):
    task = consortium.ask()
    consortium.clock.now += 121
    deadline = time.monotonic() + 5
    while consortium.coordinator.inquiries.status("bank-a", task.inquiry_id, 0).state != "expired":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("changes", "name", "rule"),
    [
        ({"purpose": "curiosity"}, "refused", "default-deny"),
        ({"privacy": "weak"}, "inquiry-refused", "inquiry-bounds"),
        ({"cells": 7}, "inquiry-refused", "inquiry-bounds"),
        ({"last_day": 17_800}, "refused", "inquiry-size"),
        ({"nonce": b"short"}, "inquiry-refused", "inquiry-bounds"),
        ({"context_digest": bytes(32)}, "inquiry-refused", "inquiry-bounds"),
        ({"created_at": 1_799_999_000}, "inquiry-refused", "inquiry-bounds"),
        ({"template": "everything"}, "refused", "evaluation-failed"),
        ({"template": "a\n" + 500 * "long ü"}, "refused", "evaluation-failed"),
    ],
)
def test_refusals_are_logged(consortium, changes, name, rule):
    opened = consortium.inquiry(**changes)
    problem = consortium.refused("bank-a", "POST", "/v1/inquiries", opened)
    assert (problem.name, problem.party) == (name, "bank-a")
    entry = last_entry(consortium)
    assert isinstance(entry, InquiryRefusalEntry)
    assert (entry.requester, entry.rule, entry.parties) == ("bank-a", rule, ["bank-a"])
    assert consortium.get("bank-b", "/v1/inquiries/tasks", InquiryTasks).tasks == []
    size = consortium.coordinator.log.head.size
    again = consortium.refused("bank-a", "POST", "/v1/inquiries", opened)
    assert "before" in again.detail
    assert consortium.coordinator.log.head.size == size


def test_a_regulator_may_not_ask(consortium, tmp_path: Path):
    problem = consortium.refused("regulator", "POST", "/v1/inquiries", consortium.inquiry("regulator"))
    assert (problem.name, problem.party) == ("refused", "regulator")
    assert isinstance(last_entry(consortium), InquiryRefusalEntry)
    assert export_log(consortium.directory, tmp_path / "export").refusals() == 1


def test_what_is_out_of_date_or_forged_is_not_logged(consortium):
    size = consortium.coordinator.log.head.size
    cases = [
        (consortium.inquiry(roll_version=2), "membership"),
        (consortium.inquiry(policy_epoch=2), "stale-policy"),
        (consortium.inquiry(requester="bank-b"), "refused"),
        (consortium.inquiry(signer="bank-b"), "refused"),
        (OpenInquiry(inquiry=consortium.inquiry().inquiry, context=bytes(600_000)), "too-large"),
    ]
    for opened, name in cases:
        problem = consortium.refused("bank-a", "POST", "/v1/inquiries", opened)
        assert (problem.name, problem.party) == (name, "bank-a")
    assert consortium.coordinator.log.head.size == size


def test_daily_budget(tmp_path: Path, start, set_up_with):
    bundle = default_bundle()
    rule = msgspec.structs.replace(bundle.inquiries[0], max_per_requester_per_day=2)
    consortium = start(set_up_with(tmp_path / "c", msgspec.structs.replace(bundle, inquiries=[rule])))
    consortium.ask()
    consortium.ask()
    problem = consortium.refused("bank-a", "POST", "/v1/inquiries", consortium.inquiry())
    assert (problem.name, problem.status, problem.party) == ("budget-exceeded", 429, "bank-a")
    entry = last_entry(consortium)
    assert isinstance(entry, InquiryRefusalEntry)
    assert entry.rule == "inquiry-budget"
    consortium.ask("bank-b")
    consortium.clock.now += 86_400
    consortium.ask()


def test_a_restart_goes_on_where_it_was(consortium, start):
    task = consortium.ask()
    collect(consortium, task, members=("bank-b",))
    start(consortium)
    resumed = status(consortium, task)
    assert (resumed.state, resumed.waiting_for) == ("contributions", ["bank-a", "bank-c"])
    consortium.step(task, "contribution", consortium.contribution(task, "bank-b"))
    for member in ("bank-a", "bank-c"):
        consortium.step(task, "contribution", consortium.contribution(task, member))
    assert status(consortium, task).state == "complete"


def test_long_polls_wake_up(consortium):
    inquiries = consortium.coordinator.inquiries
    results = {}

    def wait_for_task():
        results["tasks"] = inquiries.tasks("bank-b", 10.0, 0)

    thread = threading.Thread(target=wait_for_task)
    began = time.monotonic()
    thread.start()
    time.sleep(0.1)
    task = consortium.ask()
    thread.join()
    assert time.monotonic() - began < 5
    assert [item.inquiry_id for item in results["tasks"].tasks] == [task.inquiry_id]

    def wait_for_state():
        results["status"] = inquiries.status("bank-a", task.inquiry_id, 10.0)

    thread = threading.Thread(target=wait_for_state)
    thread.start()
    for member in BANKS:
        consortium.step(task, "mask-key", consortium.mask_key(task, member))
    thread.join()
    assert results["status"].state == "contributions"
    assert time.monotonic() - began < 8


def test_closing_ends_long_polls(consortium):
    coordinator = consortium.coordinator
    threads = [
        threading.Thread(target=coordinator.inquiries.tasks, args=("bank-b", 20.0, 0)) for _ in range(3)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert all(thread.is_alive() for thread in threads)
    coordinator.release_waiting()
    for thread in threads:
        thread.join()
    coordinator.inquiries.tasks("bank-b", 20.0, 0)
    assert time.monotonic() - began < 5


def test_a_party_cannot_hold_every_thread(consortium):
    inquiries = consortium.coordinator.inquiries
    limit = consortium.coordinator.settings.waits_per_party
    threads = [threading.Thread(target=inquiries.tasks, args=("bank-b", 20.0, 0)) for _ in range(limit)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    inquiries.tasks("bank-b", 20.0, 0)
    assert time.monotonic() - began < 1
    consortium.coordinator.release_waiting()
    for thread in threads:
        thread.join()


def test_a_message_is_stored_as_it_was_signed(consortium):
    task = consortium.ask()
    collect(consortium, task)
    [first, *_] = status(consortium, task).contributions
    assert encode(first) == encode(consortium.contribution(task, "bank-a"))
