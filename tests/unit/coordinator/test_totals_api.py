"""The key holders' accounts: one after the other, none missing."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.export import export_log
from governance.log.entries import EvaluationTotalsEntry, decode_entry
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.lookup import EvaluationCount, EvaluationTotals
from governance.messages.signed import sign_message

TOTALS = "/v1/evaluation-totals"
HOUR = 3600
COUNT = EvaluationCount(
    caller="bank-b",
    kind_group="terminals",
    purpose="fraud-prevention",
    quota="lookup",
    refusal="",
    requests=3,
    elements=30,
)


def account(consortium, sequence, holder="bank-a", signer="", /, **changes):
    totals = EvaluationTotals(
        holder=holder,
        sequence=sequence,
        period_start=HOUR * sequence,
        period_end=HOUR * (sequence + 1),
        counts=[COUNT],
    )
    signer = signer or holder
    return sign_message(msgspec.structs.replace(totals, **changes), signer, consortium.keys[signer])


def test_accounts_follow_each_other(consortium, tmp_path):
    for sequence in (1, 2):
        update = consortium.post("bank-a", TOTALS, account(consortium, sequence), CheckpointUpdate)
        trusted = consortium.trusted().advance(update, now=int(consortium.clock.now), max_age=300)
        assert trusted.size == 2 + sequence
    page = consortium.get("bank-a", "/v1/log?first=2", LogPage)
    entry = decode_entry(page.entries[-1].body)
    assert isinstance(entry, EvaluationTotalsEntry)
    assert (entry.holder, entry.sequence, entry.counts[0].elements) == ("bank-a", 2, 30)
    assert consortium.get("bank-b", "/v1/log?first=2", LogPage).entries == []
    assert export_log(consortium.directory, tmp_path / "out").entries["evaluation-totals"] == 2


def test_the_last_account_again_changes_nothing(consortium):
    signed = account(consortium, 1)
    first = consortium.post("bank-a", TOTALS, signed, CheckpointUpdate)
    assert consortium.post("bank-a", TOTALS, signed, CheckpointUpdate) == first


def test_a_holder_cannot_fill_the_log_with_accounts(consortium, tmp_path):
    for sequence in range(1, 61):
        consortium.post("bank-a", TOTALS, account(consortium, sequence), CheckpointUpdate)
    size = consortium.coordinator.log.head.size
    for _ in range(2):
        problem = consortium.refused("bank-a", "POST", TOTALS, account(consortium, 61))
        assert (problem.name, problem.status, problem.party) == ("budget-exceeded", 429, "bank-a")
    consortium.post("bank-a", TOTALS, account(consortium, 60), CheckpointUpdate)
    assert consortium.coordinator.log.head.size == size
    consortium.post("bank-b", TOTALS, account(consortium, 1, "bank-b"), CheckpointUpdate)
    consortium.clock.now += HOUR
    consortium.post("bank-a", TOTALS, account(consortium, 61), CheckpointUpdate)
    assert export_log(consortium.directory, tmp_path / "out").entries["evaluation-totals"] == 62


@pytest.mark.parametrize(
    ("sequence", "changes", "name"),
    [
        (3, {}, "out-of-order"),
        (0, {}, "out-of-order"),
        (1, {"counts": []}, "conflict"),
        (2, {"period_start": 2 * HOUR - 1}, "conflict"),
        (2, {"period_end": 2 * HOUR}, "malformed"),
        (2, {"counts": [msgspec.structs.replace(COUNT, elements=-1)]}, "malformed"),
        (2, {"counts": [msgspec.structs.replace(COUNT, caller="A Bank")]}, "malformed"),
        (2, {"counts": 1025 * [COUNT]}, "too-large"),
        (2, {"holder": "bank-b"}, "refused"),
        (2, {"signer": "bank-b"}, "refused"),
    ],
)
def test_wrong_accounts(consortium, sequence, changes, name):
    consortium.post("bank-a", TOTALS, account(consortium, 1), CheckpointUpdate)
    size = consortium.coordinator.log.head.size
    signer = changes.pop("signer", "bank-a")
    wrong = account(consortium, sequence, "bank-a", signer, **changes)
    problem = consortium.refused("bank-a", "POST", TOTALS, wrong)
    assert (problem.name, problem.party) == (name, "bank-a")
    assert problem.fix
    assert consortium.coordinator.log.head.size == size


def test_only_key_holders_account(consortium):
    wrong = account(consortium, 1, "regulator")
    assert consortium.refused("regulator", "POST", TOTALS, wrong).name == "membership"
