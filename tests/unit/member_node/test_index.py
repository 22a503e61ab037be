"""The mirror believes what the log proves and contributors signed, and matches it with what the bank has looked up."""

from __future__ import annotations

import secrets

import msgspec
import pytest

from crypto.merkle import MerkleTree
from governance.log.follow import ForkError, RollbackError, StaleCheckpointError
from governance.log.leaves import entry_leaf_hash
from governance.messages.codec import decode
from governance.messages.index import Label, SealedLabel
from governance.messages.problems import RequestError
from governance.messages.signed import sign_message
from member_node.service.contribution import Finding
from member_node.service.index import FeedError
from member_node.service.labels import SEALED_SIZE, check_sealed, open_label, seal_label

DAY_MS = 86_400_000


def finding(value: str, victims: int = 2) -> Finding:
    return Finding("terminal", value, "compromised-terminal", victims, 1_000, 2_000)


def contribute(world, party: str, *values: str, now_ms: int = 10_000, victims: int = 2) -> int:
    return world.banks[party].contribution.contribute([finding(value, victims) for value in values], now_ms)


def test_an_indicator_that_arrives_later_is_matched_with_what_was_looked_up_before(world):
    reader = world.banks["bank-b"]
    reader.lookup.tags("terminal", ["T1", "T2"])
    assert reader.index.evidence("terminal", ["T1", "T2"]) == {}
    contribute(world, "bank-a", "t-1")
    report = reader.index.sync(0)
    assert (report.deltas, report.labels, report.refused) == (1, 1, ())
    assert [(match.kind, match.value, match.contributor) for match in report.matches] == [
        ("terminal", "T1", "bank-a")
    ]
    assert "T1" not in repr(report)
    evidence = reader.index.evidence("terminal", ["T1", "T2", "never-seen"])
    assert set(evidence) == {"T1"}
    (label,) = evidence["T1"]
    assert (label.contributor, label.distinct_victims, label.grade) == ("bank-a", 2, "confirmed")
    assert (label.issued_at, label.expires_at) == (10_000, 10_000 + 7 * DAY_MS)


def test_a_value_looked_up_after_the_label_arrived_is_opened_too(world):
    contribute(world, "bank-a", "T1")
    reader = world.banks["bank-b"]
    assert reader.index.sync(0).matches == ()
    reader.lookup.tags("terminal", ["T1"])
    assert len(reader.index.evidence("terminal", ["T1"])["T1"]) == 1


def test_the_latest_label_of_each_contributor_counts_and_survives_a_restart(world):
    contribute(world, "bank-a", "T1", now_ms=10_000, victims=2)
    contribute(world, "bank-c", "T1", now_ms=11_000, victims=1)
    contribute(world, "bank-a", "T1", now_ms=20_000, victims=5)
    reader = world.banks["bank-b"]
    reader.lookup.tags("terminal", ["T1"])
    reader.index.sync(0)
    expected = [("bank-a", 5, 20_000), ("bank-c", 1, 11_000)]
    for _ in range(2):
        views = reader.index.evidence("terminal", ["T1"]) or (
            reader.lookup.tags("terminal", ["T1"]) and reader.index.evidence("terminal", ["T1"])
        )
        assert [(v.contributor, v.distinct_victims, v.issued_at) for v in views["T1"]] == expected
        reader.restart()
    assert reader.index.sync(0).deltas == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda page: msgspec.structs.replace(page, deltas=page.deltas[1:]), "where 1 should follow"),
        (lambda page: msgspec.structs.replace(page, deltas=page.deltas[::-1]), "where 1 should follow"),
        (lambda page: msgspec.structs.replace(page, after=5), "another place"),
        (lambda page: with_labels(page, lambda labels: labels[:-1]), "other labels than the log"),
        (lambda page: with_labels(page, lambda labels: labels[::-1]), "other labels than the log"),
        (lambda page: with_labels(page, lambda labels: []), "has 0 labels"),
        (lambda page: with_entry(page, salt=bytes(32)), "not in the log"),
        (lambda page: with_entry(page, body=b"{}"), "not in the log"),
        (lambda page: with_entry(page, index=0, of=1), "not in the log"),
    ],
)
def test_a_feed_that_is_not_the_logged_one_is_refused_and_blamed_on_the_coordinator(world, change, reason):
    contribute(world, "bank-a", "T1", "T2")
    contribute(world, "bank-c", "T3", "T4")
    reader = world.banks["bank-b"]
    world.chair.distort["deltas"] = change
    with pytest.raises(FeedError, match=reason):
        reader.index.sync(0)
    assert reader.index.last_delta() == 0
    assert reader.index.label_count() == 0
    assert reader.faults.latest()[0].party == "coordinator"
    world.chair.distort.clear()
    assert reader.index.sync(0).labels == 4


def served_until(number: int):
    """A feed that ends after delta ``number``, as if there were no more."""
    return lambda page: msgspec.structs.replace(
        page, last=number, deltas=[each for each in page.deltas if each.number <= number]
    )


@pytest.mark.parametrize("served", [0, 1, 2])
def test_a_feed_that_is_cut_short_of_the_log_is_noticed_recorded_once_and_reported(world, served):
    for number in range(3):
        contribute(world, "bank-a", f"T{number}")
    reader = world.banks["bank-b"]
    world.chair.distort["deltas"] = served_until(served)
    for _ in range(2):
        assert reader.index.sync(0).behind == 3 - served
    reader.restart()
    assert reader.index.sync(0).behind == 3 - served
    (fault,) = reader.faults.latest()
    assert (fault.party, fault.what) == ("coordinator", "feed")
    assert f"at delta {served}, the log shows delta 3" in fault.reason
    world.chair.distort.clear()
    report = reader.index.sync(0)
    assert (report.deltas, report.behind) == (3 - served, 0)


def test_a_feed_that_goes_back_is_refused(world):
    contribute(world, "bank-a", "T1")
    reader = world.banks["bank-b"]
    reader.index.sync(0)
    world.chair.distort["deltas"] = lambda page: msgspec.structs.replace(page, last=0)
    with pytest.raises(FeedError, match="ends the feed at delta 0"):
        reader.index.sync(0)
    assert reader.faults.latest()[0].party == "coordinator"


def test_looking_for_hidden_deltas_asks_once_for_what_is_new_and_not_at_all_without_growth(world):
    reader = world.banks["bank-b"]
    asked = []
    world.chair.distort["log"] = lambda page: (asked.append([each.index for each in page.entries]), page)[1]
    contribute(world, "bank-a", "T1")
    assert reader.index.sync(0).behind == 0
    reader.index.sync(0)
    assert asked == [[0, 1, 2]]
    contribute(world, "bank-c", "T2")
    reader.index.sync(0)
    assert asked == [[0, 1, 2], [3]]
    contribute(world, "bank-c", "T3")
    reader.restart()
    reader.index.sync(0)
    assert asked == [[0, 1, 2], [3], [4]]


def test_a_delta_that_is_logged_while_the_pages_are_under_way_is_no_fault(world):
    contribute(world, "bank-a", "T1")
    reader = world.banks["bank-b"]

    def meanwhile(page):
        world.chair.distort.clear()
        contribute(world, "bank-c", "T2")
        return page

    world.chair.distort["deltas"] = meanwhile
    assert reader.index.sync(0).behind == 0
    assert reader.faults.latest() == []
    report = reader.index.sync(0)
    assert (report.deltas, report.behind) == (1, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entries: [msgspec.structs.replace(entries[0], salt=bytes(32))], "not in the log"),
        (lambda entries: entries[::-1], "out of their order"),
    ],
)
def test_a_log_page_that_is_not_the_log_is_refused(world, change, reason):
    contribute(world, "bank-a", "T1")
    reader = world.banks["bank-b"]
    world.chair.distort["log"] = lambda page: msgspec.structs.replace(page, entries=change(page.entries))
    with pytest.raises(FeedError, match=reason):
        reader.index.sync(0)
    world.chair.distort.clear()
    assert reader.index.sync(0).behind == 0


def with_labels(page, change):
    first = msgspec.structs.replace(page.deltas[0], labels=change(page.deltas[0].labels))
    return msgspec.structs.replace(page, deltas=[first, *page.deltas[1:]])


def with_entry(page, of=None, **changes):
    entry = page.deltas[0 if of is None else of].entry
    first = msgspec.structs.replace(page.deltas[0], entry=msgspec.structs.replace(entry, **changes))
    return msgspec.structs.replace(page, deltas=[first, *page.deltas[1:]])


def test_a_forked_rolled_back_or_stale_log_is_refused(world):
    contribute(world, "bank-a", "T1")
    reader = world.banks["bank-b"]
    reader.index.sync(0)
    old = world.chair.update(0)
    contribute(world, "bank-a", "T2")
    reader.index.sync(0)
    world.chair.distort["deltas"] = lambda page: msgspec.structs.replace(page, checkpoint=old)
    with pytest.raises(RollbackError):
        reader.index.sync(0)
    world.clock.now += 400
    world.chair.distort["checkpoint"] = lambda update: update
    fresh_then_stale = world.chair.update(0)
    world.clock.now += 400
    world.chair.distort["deltas"] = lambda page: msgspec.structs.replace(page, checkpoint=fresh_then_stale)
    with pytest.raises(StaleCheckpointError):
        reader.index.sync(0)


def test_another_history_is_a_fork(world):
    contribute(world, "bank-a", "T1")
    world.banks["bank-a"].lookup.tags(
        "terminal", ["T2"]
    )  # later no holder answers: they see the fork as well
    reader = world.banks["bank-b"]
    reader.index.sync(0)
    # The coordinator rewrites its log: the same size, another root.
    chair = world.chair
    _, body = chair.entries[0]
    chair.entries[0] = (secrets.token_bytes(32), body)
    chair.tree = MerkleTree(entry_leaf_hash(s, b) for s, b in chair.entries)
    world.clock.now += 200
    with pytest.raises(RequestError, match="signed two roots"):
        reader.index.sync(0)
    with pytest.raises(ForkError):
        reader.consortium.catch_up()
    contribute(world, "bank-a", "T2")
    with pytest.raises(ForkError):
        reader.consortium.catch_up()


def bad_label(world, **changes):
    """Let the next submitted label of bank-a be another one, signed by ``signer``."""
    bank = world.banks["bank-a"]
    bank.lookup.tags("terminal", ["T1"])
    cached = bank.lookup.cached("terminal", "T1")
    signer = changes.pop("signer", "bank-a")
    key = changes.pop("label_key", cached.label_key)
    fields = {
        "epoch": 1,
        "kind": "terminal",
        "tag": cached.tag,
        "contributor": "bank-a",
        "issued_at": 10_000,
        "expires_at": 10_000 + DAY_MS,
    }
    label = Label(
        typology="x", grade=changes.pop("grade", "confirmed"), distinct_victims=1, first_seen=1, last_seen=2
    )
    sealed = seal_label(label, key, **(fields | changes), random=secrets.token_bytes)
    return sign_message(sealed, signer, world.banks[signer].key)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"signer": "bank-c"}, "is signed by bank-c"),
        ({"contributor": "bank-c"}, "another contributor"),
        ({"epoch": 2}, "another key epoch"),
        ({"kind": "passport"}, "kind the policy does not know"),
        ({"tag": b"short"}, "wrong length"),
        ({"expires_at": 10_000}, "times that cannot be"),
        ({"issued_at": -1}, "times that cannot be"),
        ({"expires_at": 2**63}, "times that cannot be"),
        ({"issued_at": 2**63, "expires_at": 2**63 + 1}, "times that cannot be"),
        ({"expires_at": 10_000 + 8 * DAY_MS}, "lives longer"),
    ],
)
def test_labels_that_must_not_be_used_are_left_out_and_the_good_ones_kept(world, changes, reason):
    good = bad_label(world)
    world.banks["bank-a"].contribution._submit("terminals", [bad_label(world, **changes), good])
    reader = world.banks["bank-b"]
    reader.lookup.tags("terminal", ["T1"])
    report = reader.index.sync(0)
    assert report.labels == 1
    (refused,) = report.refused
    assert "bank-a" in refused
    assert reason in refused
    assert len(reader.index.evidence("terminal", ["T1"])["T1"]) == 1


def test_labels_that_do_not_open_or_say_nonsense_are_no_evidence(world):
    labels = [bad_label(world, label_key=bytes(32))]
    world.banks["bank-a"].contribution._submit("terminals", labels)
    reader = world.banks["bank-b"]
    reader.lookup.tags("terminal", ["T1"])
    assert reader.index.sync(0).labels == 1
    assert reader.index.evidence("terminal", ["T1"]) == {}
    assert reader.index.evidence("terminal", ["T1"]) == {}
    assert [(f.party, f.what) for f in reader.faults.latest()] == [("bank-a", "label")]


def test_all_sealed_labels_have_one_size_and_are_bound_to_their_fields(world):
    signed = [bad_label(world), bad_label(world, grade="suspected")]
    opened = [decode(SealedLabel, each.payload) for each in signed]
    assert {len(each.sealed) for each in opened} == {SEALED_SIZE}
    key = world.banks["bank-a"].lookup.cached("terminal", "T1").label_key
    assert open_label(opened[0], key).grade == "confirmed"
    for changes in (
        {"tag": b"t" * 16},
        {"contributor": "bank-b"},
        {"expires_at": 1},
        {"kind": "merchant"},
        {"epoch": 2},
    ):
        assert open_label(msgspec.structs.replace(opened[0], **changes), key) is None
    kinds = frozenset({"terminal"})
    fine = check_sealed(opened[0], contributor="bank-a", epoch=1, kinds=kinds, max_life_ms=7 * DAY_MS)
    assert fine == ""
