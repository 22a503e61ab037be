"""Inquiries: what may be asked, what binds their messages, and every order of messages that is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance import inquiries
from governance.inquiries import (
    NEXT,
    InquiryError,
    InquiryMessage,
    InquiryOrderError,
    InquiryProgress,
    check_aggregate,
    check_inquiry,
    cohort_digest,
    encode_counts,
    inquiry_id,
    mask_binding,
    mask_keys_digest,
)
from governance.messages.codec import encode
from governance.messages.inquiry import Contribution, Inquiry, MaskKey, Outcome, Veto
from governance.messages.roll import Directory, MembershipRoll, RollEntry
from governance.policy.default import default_bundle

NOW = 1_800_000_000
COHORT = ("bank-a", "bank-b", "bank-c")
CONTEXT = b"public context"
BUNDLE = default_bundle(policy_epoch=3)
ROLL = MembershipRoll(
    version=5,
    epoch=1,
    issued_at=0,
    normal_forms=1,
    parties=[
        RollEntry(
            party=party,
            name=party,
            role=role,
            verify_key=bytes([number]) * 32,
            url="",
            share_index=0,
            joined_epoch=1,
        )
        for number, (party, role) in enumerate(
            [
                *((member, "member") for member in COHORT),
                ("coordinator", "coordinator"),
                ("regulator", "regulator"),
            ]
        )
    ],
    group_keys=[],
    directories=[Directory(dataset="terminals", cells=10, digest=bytes(32))],
)


def make_inquiry(**changes: object) -> Inquiry:
    plain = Inquiry(
        nonce=bytes(16),
        requester="bank-a",
        template="confirmed-frauds-per-entity",
        dataset="terminals",
        purpose="joint-statistics",
        first_day=17_000,
        last_day=17_004,
        cells=50,
        privacy="none",
        mode="strict",
        roll_version=5,
        policy_epoch=3,
        created_at=NOW,
        context_digest=hashlib.sha256(CONTEXT).digest(),
    )
    return msgspec.structs.replace(plain, **changes)


def check(inquiry: Inquiry, *, roll: MembershipRoll = ROLL, context: bytes = CONTEXT, now: int = NOW) -> None:
    check_inquiry(inquiry, bundle=BUNDLE, roll=roll, context=context, now=now)


def test_an_acceptable_inquiry() -> None:
    rule = check_inquiry(make_inquiry(), bundle=BUNDLE, roll=ROLL, context=CONTEXT, now=NOW + 119)
    assert rule == BUNDLE.inquiries[0]
    check(make_inquiry(first_day=17_000, last_day=17_000, cells=10))
    check(make_inquiry(created_at=NOW + 5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"template": "everything"}, "catalogue"),
        ({"dataset": "merchants"}, "no rule"),
        ({"requester": "coordinator"}, "member of the cohort"),
        ({"requester": "bank-z"}, "member of the cohort"),
        ({"roll_version": 4}, "roll version 4"),
        ({"policy_epoch": 2}, "policy epoch 2"),
        ({"nonce": bytes(15)}, "nonce"),
        ({"purpose": "investigation"}, "purpose"),
        ({"privacy": "epsilon=1"}, "privacy"),
        ({"mode": "recovery"}, "mode"),
        ({"last_day": 16_999, "cells": 0}, "asks 0 days"),
        ({"first_day": -1, "last_day": 3}, "from day -1"),
        ({"last_day": 17_031, "cells": 320}, "asks 32 days"),
        ({"cells": 49}, "49 cells"),
        ({"created_at": NOW + 6}, "future"),
        ({"created_at": NOW - 120}, "lifetime"),
        ({"context_digest": bytes(32)}, "context"),
    ],
)
def test_an_unacceptable_inquiry_names_its_requester(changes: dict[str, object], reason: str) -> None:
    inquiry = make_inquiry(**changes)
    with pytest.raises(InquiryError, match=reason) as caught:
        check(inquiry)
    assert caught.value.party == inquiry.requester


def test_the_roll_bounds_the_inquiry_too() -> None:
    two = [entry for entry in ROLL.parties if entry.party != "bank-c"]
    with pytest.raises(InquiryError, match="cohort of 2"):
        check(make_inquiry(), roll=msgspec.structs.replace(ROLL, parties=two))
    with pytest.raises(InquiryError, match="no directory"):
        check(make_inquiry(), roll=msgspec.structs.replace(ROLL, directories=[]))
    wide = [Directory(dataset="terminals", cells=100_001, digest=bytes(32))]
    with pytest.raises(InquiryError, match="500005 cells"):
        check(make_inquiry(cells=500_005), roll=msgspec.structs.replace(ROLL, directories=wide))


def test_digests_bind_what_they_should() -> None:
    payload = encode(make_inquiry())
    identity = inquiry_id(payload)
    assert identity == hashlib.sha256(payload).digest()
    keys = {"bank-a": bytes(32), "bank-b": b"\x01" * 32}
    assert mask_keys_digest(keys) == mask_keys_digest(dict(reversed(keys.items())))
    assert mask_keys_digest(keys) != mask_keys_digest({**keys, "bank-b": bytes(32)})
    assert cohort_digest(["ab", "c"]) != cohort_digest(["a", "bc"])
    bindings = {
        mask_binding(identity, ["bank-a", "bank-b"], keys),
        mask_binding(bytes(32), ["bank-a", "bank-b"], keys),
        mask_binding(identity, ["bank-a"], keys),
        mask_binding(identity, ["bank-a", "bank-b"], {**keys, "bank-a": b"\x02" * 32}),
    }
    assert len(bindings) == 4
    for wrong in (["b", "a"], ["a", "a"]):
        with pytest.raises(ValueError, match="sorted"):
            cohort_digest(wrong)


def test_counts_are_clamped_and_laid_out_day_by_day() -> None:
    counts = np.array([[0, 1, 2], [3, 40, 5]], dtype=np.int32)
    encoded = encode_counts(counts, 6, 10)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [0, 1, 2, 3, 10, 5]
    assert encode_counts(counts[:, ::-1], 6, 10).tolist() == [2, 1, 0, 5, 10, 3]
    assert counts[1, 1] == 40
    for wrong, reason in (
        (np.array([-1, 0]), "negative"),
        (np.array([1.0, 2.0]), "integers"),
        (np.array([1, 2, 3]), "3 counts for 2 cells"),
    ):
        with pytest.raises(ValueError, match=reason):
            encode_counts(wrong, 2, 10)


def test_an_impossible_aggregate_is_noticed() -> None:
    check_aggregate(np.array([0, 30]), 3, 10)
    check_aggregate(np.array([], dtype=np.int64), 3, 10)
    for wrong in ([0, 31], [-1, 0], [2**44, 0]):
        with pytest.raises(ValueError, match="not as agreed"):
            check_aggregate(np.array(wrong), 3, 10)


# ---- the order of messages

IDENTITY = bytes(range(32))
PUBLIC = {member: bytes([number]) * 32 for number, member in enumerate(COHORT, 1)}


def start() -> InquiryProgress:
    return InquiryProgress(inquiry_id=IDENTITY, requester="bank-a", cohort=COHORT, cells=50)


def mask_key(member: str, **changes: object) -> MaskKey:
    plain = MaskKey(
        inquiry_id=IDENTITY, cohort_digest=cohort_digest(COHORT), member=member, public_key=PUBLIC[member]
    )
    return msgspec.structs.replace(plain, **changes)


def contribution(member: str, **changes: object) -> Contribution:
    plain = Contribution(
        inquiry_id=IDENTITY, member=member, mask_keys_digest=mask_keys_digest(PUBLIC), ciphertexts=[b"c"]
    )
    return msgspec.structs.replace(plain, **changes)


def veto(member: str, **changes: object) -> Veto:
    return msgspec.structs.replace(Veto(inquiry_id=IDENTITY, member=member, reason="my ledger"), **changes)


def outcome(requester: str = "bank-a", **changes: object) -> Outcome:
    plain = Outcome(inquiry_id=IDENTITY, requester=requester, commitment=bytes(32), cells=50)
    return msgspec.structs.replace(plain, **changes)


def advanced(*messages: InquiryMessage) -> InquiryProgress:
    progress = start()
    for message in messages:
        sender = message.requester if isinstance(message, Outcome) else message.member
        progress = progress.advance(sender, message)
    return progress


ALL_KEYS = [mask_key(member) for member in COHORT]
ALL_CONTRIBUTIONS = [contribution(member) for member in COHORT]


def test_the_whole_way() -> None:
    progress = start()
    seen = []
    for message in [*ALL_KEYS, *reversed(ALL_CONTRIBUTIONS), outcome()]:
        seen.append((progress.state, progress.waiting_for))
        sender = message.requester if isinstance(message, Outcome) else message.member
        progress = progress.advance(sender, message)
    assert seen == [
        ("keys", ["bank-a", "bank-b", "bank-c"]),
        ("keys", ["bank-b", "bank-c"]),
        ("keys", ["bank-c"]),
        ("contributions", ["bank-a", "bank-b", "bank-c"]),
        ("contributions", ["bank-a", "bank-b"]),
        ("contributions", ["bank-a"]),
        ("complete", ["bank-a"]),
    ]
    assert (progress.state, progress.waiting_for) == ("closed", [])
    assert progress.mask_keys == PUBLIC


@pytest.mark.parametrize(
    ("before", "message", "state"),
    [
        ([], contribution("bank-a"), "keys"),
        ([], outcome(), "keys"),
        (ALL_KEYS[:2], contribution("bank-a"), "keys"),
        (ALL_KEYS, outcome(), "contributions"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS], veto("bank-b"), "complete"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS, outcome()], veto("bank-b"), "closed"),
        ([veto("bank-b")], mask_key("bank-a"), "vetoed"),
        ([*ALL_KEYS, veto("bank-b")], contribution("bank-a"), "vetoed"),
        ([*ALL_KEYS, veto("bank-b")], outcome(), "vetoed"),
    ],
)
def test_out_of_order_is_refused_naming_the_party(
    before: list[InquiryMessage], message: InquiryMessage, state: str
) -> None:
    progress = advanced(*before)
    sender = message.requester if isinstance(message, Outcome) else message.member
    with pytest.raises(InquiryOrderError, match=f"state '{state}'") as caught:
        progress.advance(sender, message)
    assert caught.value.party == sender


@pytest.mark.parametrize(
    ("before", "message", "other"),
    [
        ([mask_key("bank-a")], mask_key("bank-a"), mask_key("bank-a", public_key=b"\x09" * 32)),
        (ALL_KEYS, mask_key("bank-a"), mask_key("bank-a", public_key=b"\x09" * 32)),
        (
            [*ALL_KEYS, *ALL_CONTRIBUTIONS],
            contribution("bank-b"),
            contribution("bank-b", ciphertexts=[b"d"]),
        ),
        ([veto("bank-c")], veto("bank-c"), veto("bank-c", reason="another")),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS, outcome()], outcome(), outcome(commitment=b"\x01" * 32)),
    ],
)
def test_the_same_message_again_changes_nothing_and_a_different_one_is_refused(
    before: list[InquiryMessage], message: InquiryMessage, other: InquiryMessage
) -> None:
    progress = advanced(*before)
    sender = message.requester if isinstance(message, Outcome) else message.member
    assert progress.advance(sender, message) is progress
    with pytest.raises(InquiryOrderError, match="different") as caught:
        progress.advance(sender, other)
    assert caught.value.party == sender


@pytest.mark.parametrize(
    ("before", "signer", "message", "reason"),
    [
        ([], "bank-b", mask_key("bank-a"), "names another party"),
        ([], "bank-a", mask_key("bank-a", inquiry_id=bytes(32)), "another inquiry"),
        ([], "bank-a", mask_key("bank-a", cohort_digest=bytes(32)), "another cohort"),
        ([], "bank-a", mask_key("bank-a", public_key=bytes(31)), "not 32 bytes"),
        ([mask_key("bank-b")], "bank-a", mask_key("bank-a", public_key=PUBLIC["bank-b"]), "another member's"),
        ([], "bank-z", contribution("bank-z"), "not in the cohort"),
        ([], "regulator", veto("regulator"), "not in the cohort"),
        ([], "bank-b", veto("bank-b", reason="x" * 201), "reason is longer"),
        (ALL_KEYS, "bank-a", contribution("bank-a", mask_keys_digest=bytes(32)), "other mask keys"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS], "bank-b", outcome("bank-b"), "only the requester"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS], "bank-a", outcome(commitment=bytes(31)), "another size"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS], "bank-a", outcome(cells=49), "another size"),
    ],
)
def test_a_wrong_message_is_refused_naming_the_party(
    before: list[InquiryMessage], signer: str, message: InquiryMessage, reason: str
) -> None:
    with pytest.raises(InquiryError, match=reason) as caught:
        advanced(*before).advance(signer, message)
    assert caught.value.party == signer
    assert not isinstance(caught.value, InquiryOrderError)


def test_several_members_may_veto() -> None:
    assert advanced(*ALL_KEYS, veto("bank-b"), veto("bank-c")).state == "vetoed"


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ([], "expired"),
        (ALL_KEYS, "expired"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS], "expired"),
        ([*ALL_KEYS, *ALL_CONTRIBUTIONS, outcome()], "closed"),
        ([veto("bank-b")], "vetoed"),
    ],
)
def test_expiry_ends_what_has_not_ended(before: list[InquiryMessage], state: str) -> None:
    progress = advanced(*before).expire()
    assert progress.state == state
    assert progress.expire() is progress
    assert progress.waiting_for == []


def test_the_documentation_draws_the_same_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "protocols" / "policy.md").read_text()
    drawn = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`") and cells[2].strip("`") in {*NEXT.values()}:
            for state in cells[0].split(", "):
                drawn[state.strip("`"), cells[1].strip("`")] = cells[2].strip("`")
    assert drawn == dict(NEXT)


def test_nothing_leaves_a_final_state() -> None:
    for (state, _), following in NEXT.items():
        assert state not in inquiries.FINAL_STATES or following == state


messages = st.lists(st.sampled_from([*ALL_KEYS, *ALL_CONTRIBUTIONS, veto("bank-b"), outcome()]), max_size=14)


@given(messages)
def test_any_order_ends_in_a_state_that_its_accepted_messages_explain(sent: list[InquiryMessage]) -> None:
    progress = start()
    for message in sent:
        sender = message.requester if isinstance(message, Outcome) else message.member
        before = progress
        try:
            progress = progress.advance(sender, message)
        except InquiryOrderError:
            assert progress is before
    kinds = [kind for kind, _ in progress.accepted]
    if progress.state in ("contributions", "complete", "closed"):
        assert set(progress.mask_keys) == set(COHORT)
    if progress.state in ("complete", "closed"):
        assert kinds.count("contribution") == len(COHORT)
    assert (progress.state == "closed") == ("outcome" in kinds)
    assert (progress.state == "vetoed") == ("veto" in kinds)
