"""Private lookup: right tags, a cache that survives, and wrong, silent or refusing holders."""

from __future__ import annotations

import pickle
import threading
import time

import msgspec
import pytest

from crypto.signing import SigningKey
from crypto.threshold import KeyShare
from governance.indicators import InvalidIndicatorError, normalise, oprf_input
from governance.messages.codec import decode
from governance.messages.lookup import EvaluateResponse
from governance.messages.signed import Signed, sign_message
from governance.policy.decision import RefusedError
from member_node.client.ports import Patience
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.tag_cache import CachedTag

VALUES = [f"T{number:04d}" for number in range(20)]


def change_answer(world, liar, **changes):
    """Let ``liar`` sign an answer with other fields than it computed."""

    def change(signed: Signed) -> Signed:
        answer = decode(EvaluateResponse, signed.payload)
        fields = {name: getattr(answer, name) for name in EvaluateResponse.__struct_fields__}
        made = {name: value(answer) if callable(value) else value for name, value in changes.items()}
        return sign_message(EvaluateResponse(**(fields | made)), liar, world.banks[liar].key)

    return change


def swap_two(answer: EvaluateResponse) -> bytes:
    return answer.elements[32:64] + answer.elements[:32] + answer.elements[64:]


def test_all_banks_derive_the_same_tag_and_different_values_differ(world):
    for bank in world.banks.values():
        report = bank.lookup.tags("terminal", VALUES)
        assert (report.cached, report.evaluated, report.invalid) == (0, 20, {})
    tags = [[bank.lookup.tag_of("terminal", value) for value in VALUES] for bank in world.banks.values()]
    assert tags[0] == tags[1] == tags[2]
    assert len(set(tags[0])) == 20
    assert all(len(tag) == 16 for tag in tags[0])


def test_spellings_share_one_evaluation_and_kinds_do_not_share_tags(world):
    lookup = world.banks["bank-a"].lookup
    report = lookup.tags("terminal", ["ab 12", "AB12", "ab-12"])
    assert report.evaluated == 1
    assert lookup.tag_of("terminal", "ab 12") == lookup.tag_of("terminal", "AB12")
    lookup.tags("merchant", ["AB12"])
    assert lookup.tag_of("merchant", "AB12") != lookup.tag_of("terminal", "AB12")


def test_a_repeated_value_costs_no_network_even_after_a_restart(world):
    bank = world.banks["bank-a"]
    bank.lookup.tags("terminal", VALUES)
    before = bank.lookup.tag_of("terminal", VALUES[0])
    bank.restart()
    for other in ("bank-b", "bank-c"):
        world.banks[other].down = True
    report = bank.lookup.tags("terminal", [*VALUES, VALUES[0].lower()])
    assert report.evaluated == 0
    assert bank.lookup.tag_of("terminal", VALUES[0]) == before


def test_the_cache_on_disk_holds_no_value_no_tag_and_no_normal_form(world, tmp_path):
    bank = world.banks["bank-a"]
    bank.lookup.tags("terminal", ["VERYSECRET77"])
    tag = bank.lookup.tag_of("terminal", "VERYSECRET77")
    bank.close()
    bank.database = None
    content = b"".join(path.read_bytes() for path in tmp_path.glob("bank-a.sqlite3*"))
    assert b"VERYSECRET77" not in content
    assert tag not in content
    assert oprf_input(normalise("terminal", "VERYSECRET77")) not in content


def test_invalid_values_are_reported_and_the_others_looked_up(world):
    lookup = world.banks["bank-a"].lookup
    report = lookup.tags("iban", ["DE89370400440532013000", "DE00370400440532013000", "nonsense"])
    assert report.evaluated == 1
    assert set(report.invalid) == {"DE00370400440532013000", "nonsense"}
    assert all("nonsense" not in reason for reason in report.invalid.values())
    assert "nonsense" not in repr(report)
    with pytest.raises(InvalidIndicatorError):
        lookup.tags("passport", ["X"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"elements": swap_two}, "wrong evaluation"),
        ({"proof": bytes(64)}, "wrong evaluation"),
        ({"elements": lambda answer: answer.elements[:-32]}, "does not answer"),
        ({"generation": 2}, "does not answer"),
        ({"epoch": 2}, "does not answer"),
        ({"request_digest": bytes(32)}, "does not answer"),
        ({"share_index": 1}, "does not answer"),
    ],
)
def test_a_wrong_answer_is_attributed_excluded_and_another_holder_asked(world, changes, reason):
    asker = world.banks["bank-a"]
    world.banks["bank-b"].distort["evaluate"] = change_answer(world, "bank-b", **changes)
    for start in range(0, 20, 5):  # the turn changes, so the liar is asked at some point
        asker.lookup.tags("terminal", VALUES[start : start + 5])
    honest = world.banks["bank-c"]
    honest_tags = change_free_tags(world, honest)
    assert [asker.lookup.tag_of("terminal", value) for value in VALUES] == honest_tags
    assert set(asker.lookup.excluded()) == {"bank-b"}
    (fault,) = asker.faults.latest()
    assert (fault.party, fault.what) == ("bank-b", "evaluation")
    assert reason in fault.reason
    assert decode(Signed, fault.evidence).signer == "bank-b"


def change_free_tags(world, bank):
    world.banks["bank-b"].distort.clear()
    bank.lookup.tags("terminal", VALUES)
    return [bank.lookup.tag_of("terminal", value) for value in VALUES]


def test_an_answer_signed_by_somebody_else_is_refused(world):
    asker = world.banks["bank-a"]
    stranger = SigningKey(b"s" * 32)

    def forge(signed: Signed) -> Signed:
        return Signed(
            signer="bank-b",
            payload=signed.payload,
            signature=stranger.sign(EvaluateResponse.CONTEXT, signed.payload),
        )

    world.banks["bank-b"].distort["evaluate"] = forge
    world.banks["bank-c"].down = True
    with pytest.raises(ConsortiumUnavailableError, match="bank-b"):
        asker.lookup.tags("terminal", VALUES)
    assert asker.lookup.tag_of("terminal", VALUES[0]) is None


def slow(end: threading.Event, seconds: float):
    """Answer rightly, but only after ``seconds`` (or when the test ends)."""

    def change(signed: Signed) -> Signed:
        end.wait(seconds)
        return signed

    return change


def test_a_slow_holder_is_helped_out_and_asked_last_but_not_excluded(world):
    asker, end = world.banks["bank-a"], threading.Event()
    asker.lookup._rounds._patience = Patience(seconds=0.4, seconds_per_element=0, late_share=0.25)
    world.banks["bank-b"].distort["evaluate"] = slow(end, 20)
    try:
        took = []
        for value in ("X1", "X2", "X3", "X4", "X5"):
            began = time.monotonic()
            assert asker.lookup.tags("terminal", [value]).evaluated == 1
            took.append(time.monotonic() - began)
        # Late once: from then on the other one is asked first.
        assert max(took) < 5
        assert asker.lookup._rounds._holders["bank-b"].requests == 1
        assert asker.lookup.excluded() == {}
        assert asker.faults.count() == 0
    finally:
        end.set()


def test_when_all_are_slow_their_answers_still_count(world):
    asker, end = world.banks["bank-a"], threading.Event()
    asker.lookup._rounds._patience = Patience(seconds=0.2, seconds_per_element=0, late_share=0.25)
    for name in ("bank-b", "bank-c"):
        world.banks[name].distort["evaluate"] = slow(end, 0.5)
    for value in ("X1", "X2"):
        assert asker.lookup.tags("terminal", [value]).evaluated == 1
    assert asker.lookup.excluded() == {}


def test_latencies_tell_cold_from_warm_and_the_share_of_hits(world):
    lookup = world.banks["bank-a"].lookup
    lookup.tags("terminal", VALUES)
    lookup.tags("terminal", VALUES)
    lookup.tags("terminal", [*VALUES, "NEW1"])
    rows = {row["operation"]: row for row in lookup._latencies.report()}
    assert {name: (row["count"], row["items"]) for name, row in rows.items()} == {
        "lookup cold": (2, 21),
        "lookup cold, per new value": (2, 2),
        "lookup warm": (1, 20),
    }
    assert 0 < rows["lookup warm"]["p50_ms"] <= rows["lookup warm"]["p99_ms"] < rows["lookup cold"]["p99_ms"]
    assert lookup._latencies.hit_rate.report() == {"asked": 61, "hits": 40, "share": 40 / 61}


def test_too_few_holders_names_each_of_them(world_of_four):
    asker = world_of_four.banks["bank-a"]
    world_of_four.banks["bank-b"].down = True
    asker.lookup.tags("terminal", ["X1"])
    world_of_four.banks["bank-c"].down = True
    with pytest.raises(ConsortiumUnavailableError) as caught:
        asker.lookup.tags("terminal", ["X2"])
    assert set(caught.value.reasons) == {"bank-b", "bank-c"}
    world_of_four.banks["bank-c"].down = False
    assert asker.lookup.tags("terminal", ["X2"]).evaluated == 1


def test_big_batches_are_cut_and_all_values_arrive(world):
    lookup = world.banks["bank-a"].lookup
    values = [f"B{number:05d}" for number in range(1200)]
    assert lookup.tags("terminal", values).evaluated == 1200
    assert all(lookup.tag_of("terminal", value) for value in values)
    counts = {
        bank: sum(row.elements for row in world.banks[bank].evaluations.counts()) for bank in world.names
    }
    assert counts["bank-a"] == 1200
    assert counts["bank-b"] + counts["bank-c"] == 1200


def test_the_own_policy_denies_before_anybody_is_asked(world):
    with pytest.raises(RefusedError):
        world.banks["bank-a"].lookup.tags("terminal", ["X"], purpose="oversight")
    assert world.banks["bank-b"].evaluations.counts() == []


def test_a_caller_with_an_old_generation_refreshes_and_succeeds(world):
    asker = world.banks["bank-a"]
    keys = [
        msgspec.structs.replace(each, generation=2) if each.kind_group == "terminals" else each
        for each in world.chair.roll.group_keys
    ]
    world.chair.roll = msgspec.structs.replace(world.chair.roll, version=2, group_keys=keys)
    world.chair.publish()
    for bank in world.banks.values():
        bank.shares = [
            *bank.shares,
            *(
                KeyShare(each.epoch, each.kind_group, 2, each.index, each.secret)
                for each in bank.shares
                if each.kind_group == "terminals"
            ),
        ]
        bank.restart()
    for name in ("bank-b", "bank-c"):
        world.banks[name].consortium.refresh()
    assert asker.consortium.roll.version == 1
    assert asker.lookup.tags("terminal", ["X1"]).evaluated == 1
    assert asker.consortium.roll.version == 2


def test_only_a_big_job_is_handed_to_the_banks_other_processes(world, monkeypatch):
    bank = world.banks["bank-a"]
    handed: list[str] = []

    def spread(function, chunks):
        handed.append(function.__name__)
        return [pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(chunk))) for chunk in chunks]

    bank.lookup._map_chunks = spread
    bank.lookup.tags("terminal", [f"S{number:05d}" for number in range(600)])
    assert handed == []
    monkeypatch.setattr("member_node.service.lookup.SPREAD_FROM", 600)
    values = [f"C{number:05d}" for number in range(600)]
    bank.lookup.tags("terminal", values)
    assert set(handed) == {"_blind", "_combine"}
    monkeypatch.undo()
    other = world.banks["bank-b"]
    other.lookup.tags("terminal", values)
    assert all(bank.lookup.tag_of("terminal", v) == other.lookup.tag_of("terminal", v) for v in values)


def test_cached_tags_do_not_print():
    assert repr(CachedTag("terminal", "secret", b"t" * 16, b"k" * 32)) == "CachedTag(...)"
