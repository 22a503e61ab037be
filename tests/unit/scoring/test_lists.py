"""Lists: hits against a plain dictionary, expiry by event time, both spellings, effects and exemptions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.lists import (
    FOREVER_US,
    ListEntry,
    ListKind,
    ListSet,
    empty_list,
)
from scoring.lists_table import ABSENT, RECENT, KeyMap
from scoring.lists_values import ListError, list_expiry, list_keys, list_value
from scoring.schema import entity_keys
from scoring.verdicts import Verdict

HOUR = 3_600_000_000


def keys_of(*values):
    return entity_keys(list(values))


def times(*values):
    return np.array(values, dtype=np.int64)


def forever(n):
    return np.full(n, FOREVER_US)


def listing(name, kind, entity, *values):
    return empty_list(name, kind, entity).added(values, forever(len(values)))


class TestKeyMap:
    @given(
        st.lists(
            st.lists(st.tuples(st.integers(0, 40), st.integers(-3, 3) | st.just(int(ABSENT))), max_size=30),
            max_size=12,
        )
    )
    @settings(max_examples=150, deadline=None)
    def test_it_is_a_dictionary_and_old_versions_stay(self, changes):
        probe = np.arange(45, dtype=np.uint64)
        held, versions = {}, []
        table = KeyMap.of(np.zeros(0, np.uint64), np.zeros(0, np.int64))
        for change in changes:
            keys = np.array([key for key, _ in change], dtype=np.uint64)
            values = np.array([value for _, value in change], dtype=np.int64)
            table = table.changed(keys, values)
            for key, value in change:
                if key and value == ABSENT:
                    held.pop(key, None)
                elif key:
                    held[key] = value
            versions.append((table, dict(held)))
        for version, expected in versions:
            assert len(version) == len(expected)
            assert version.find(probe).tolist() == [expected.get(key, ABSENT) for key in range(45)]

    def test_many_keys_over_merges_and_removals(self):
        random = np.random.default_rng(5)
        held = {}
        table = KeyMap.of(np.zeros(0, np.uint64), np.zeros(0, np.int64))
        for size in (1, 3 * RECENT, 7, RECENT - 3, 40 * RECENT, 1, 2 * RECENT):
            keys = random.integers(0, 60_000, size).astype(np.uint64) * np.uint64(2**50 + 1)
            values = random.integers(0, 5, size)
            values[random.random(size) < 0.3] = ABSENT
            table = table.changed(keys, values)
            for key, value in zip(keys.tolist(), values.tolist(), strict=True):
                if value == ABSENT:
                    held.pop(key, None)
                elif key:
                    held[key] = value
        probe = np.arange(60_000, dtype=np.uint64) * np.uint64(2**50 + 1)
        assert len(table) == len(held)
        assert table.find(probe).tolist() == [held.get(key, ABSENT) for key in probe.tolist()]

    def test_hashes_that_crowd_the_end_of_the_table_fit(self):
        # Keys whose hashes are the greatest there are: inverse of the mixing, computed here on its own.
        def unmix(h):
            mask = 2**64 - 1
            h ^= (h >> 31) ^ (h >> 62)
            h = h * pow(0x94D049BB133111EB, -1, 2**64) & mask
            h ^= (h >> 27) ^ (h >> 54)
            h = h * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
            return h ^ (h >> 30) ^ (h >> 60)

        keys = np.array([unmix(2**64 - 1 - i) for i in range(4000)], dtype=np.uint64)
        table = KeyMap.of(keys, np.arange(4000))
        assert table.find(keys).tolist() == list(range(4000))
        assert len(table.changed(keys[:10], np.full(10, ABSENT))) == 3990


class TestValues:
    @pytest.mark.parametrize("value", ["", "  ", "a\x00", "a\nb", "x" * 257, None, True, 1.5, "\ud800"])
    def test_bad_values_are_refused_and_not_repeated(self, value):
        with pytest.raises(ListError) as refusal:
            list_value(value)
        assert (refusal.value.code, refusal.value.field) == ("invalid-value", "value")
        if isinstance(value, str) and value.strip():
            assert value not in str(refusal.value)

    def test_white_space_goes_and_integers_become_text(self):
        assert (list_value("  a b "), list_value(-7)) == ("a b", "-7")

    @pytest.mark.parametrize(
        ("text", "number"), [("0", 0), ("1001", 1001), ("-5", -5), (str(2**63 - 1), 2**63 - 1)]
    )
    def test_integers_hit_in_both_spellings(self, text, number):
        table = listing("l", ListKind.WATCH, "card", text)
        assert table.hits(keys_of(number), times(0)).tolist() == [True]
        assert table.hits(keys_of(text), times(0)).tolist() == [True]
        assert table.hits(keys_of(text + "1"), times(0)).tolist() == [False]

    @pytest.mark.parametrize("text", ["007", "+7", "7.0", "-0", "٧", str(2**63)])
    def test_other_spellings_are_texts_only(self, text):
        keys, places = list_keys([text])
        assert keys.tolist() == keys_of(text).tolist()
        assert places.tolist() == [0]

    def test_the_smallest_integer_is_the_missing_value_of_streams(self):
        table = listing("l", ListKind.BLOCK, "card", str(-(2**63)))
        assert not table.hits(entity_keys(np.array([-(2**63)])), times(0)).any()

    def test_an_entry_does_not_print_its_value(self):
        assert "4929" not in repr(ListEntry("4929", None, "r", "a", 0))

    def test_expiry(self):
        assert list_expiry(None, 5) is None
        assert list_expiry(6, 5) == 6
        for wrong, code in ((5, "expired"), (9_000_000_000_000_000, "bad-time")):
            with pytest.raises(ListError) as refusal:
                list_expiry(wrong, 5)
            assert refusal.value.code == code

    @pytest.mark.parametrize("name", ["", "Big", "1a", "a-b", "a" * 49])
    def test_bad_names(self, name):
        with pytest.raises(ListError, match="bad-name"):
            empty_list(name, ListKind.BLOCK, "card")

    def test_wrong_entity(self):
        with pytest.raises(ListError, match="wrong-entity"):
            empty_list("a", ListKind.BLOCK, "colour")


def test_expiry_counts_in_event_time_for_late_events_too():
    table = empty_list("l", ListKind.BLOCK, "payee").added(["a", "b"], times(10 * HOUR, FOREVER_US))
    hits = table.hits(keys_of("a", "a", "a", "b"), times(10 * HOUR - 1, 10 * HOUR, 0, 2**60))
    assert hits.tolist() == [True, False, True, True]
    longer = table.added(["a"], times(20 * HOUR))
    assert longer.hits(keys_of("a"), times(15 * HOUR)).tolist() == [True]
    assert table.hits(keys_of("a"), times(15 * HOUR)).tolist() == [False], "readers keep their version"
    assert len(longer.expiries) == 2
    assert not longer.removed(["a", "zzz"]).hits(keys_of("a"), times(0)).any()


def test_missing_entities_are_on_no_list():
    lists = ListSet([listing("l", ListKind.BLOCK, "payee", "a")])
    assert lists.probe({"payee": keys_of(None, "a", "")}, times(0, 0, 0))["listed_l"].tolist() == [
        False,
        True,
        False,
    ]
    assert lists.probe({"card": keys_of("a")}, times(0))["listed_l"].tolist() == [False]
    assert [column.name for column in lists.columns()] == ["listed_l"]


def test_block_beats_allow_and_watch_does_nothing():
    lists = ListSet(
        [
            listing("vip", ListKind.ALLOW, "customer", "ann", "bob"),
            listing("mules", ListKind.BLOCK, "payee", "m", "n"),
            listing("burnt", ListKind.BLOCK, "payee", "n"),
            listing("eye", ListKind.WATCH, "payee", "w"),
        ]
    )
    hits = lists.probe(
        {"customer": keys_of("ann", "bob", "cy", "cy", "cy"), "payee": keys_of("x", "m", "n", "w", "x")},
        np.zeros(5, np.int64),
    )
    forced, which = lists.effects(hits, 5)
    assert forced.tolist() == [Verdict.ALLOW, Verdict.BLOCK, Verdict.BLOCK, -1, -1]
    names = [table.name for table in lists.tables]
    assert [names[place] if place >= 0 else "" for place in which] == ["vip", "mules", "burnt", "", ""]


def test_a_cleared_customer_is_exempt_from_a_rule_until_a_date():
    cleared = empty_list("cleared", ListKind.EXEMPTION, "customer").added(
        ["ann", "bob", "cy"], times(10, FOREVER_US, 10), ["velocity", "", "night"]
    )
    lists = ListSet([cleared])
    keys = {"customer": keys_of("ann", "ann", "bob", "dan", "cy")}
    exempt = lists.exempt(keys, times(9, 10, 99, 5, 5), ["night", "velocity", "other"])
    assert exempt.tolist() == [
        [False, True, False],
        [False, False, False],
        [True, True, True],
        [False, False, False],
        [True, False, False],
    ]
    assert lists.exempt({"customer": keys_of("eve")}, times(0), ["night"]) is None
    assert lists.exempt({"customer": keys_of("ann")}, times(10), ["velocity"]) is None
    assert ListSet([]).exempt(keys, times(9, 10, 99, 5, 5), ["night"]) is None
    hits = lists.probe(keys, times(9, 10, 99, 5, 5))
    assert hits["listed_cleared"].tolist() == [False, False, True, False, False]


entries = st.tuples(
    st.booleans(), st.sampled_from(["1", "2", "a"]), st.sampled_from(["", "r1", "r2"]), st.integers(1, 4)
)


@given(st.lists(st.lists(entries, max_size=6), max_size=6), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_exemptions_match_a_plain_model(batches, now):
    table, model = empty_list("x", ListKind.EXEMPTION, "customer"), {}
    for batch in batches:
        adds = [each for each in batch if each[0]]
        gone = [each for each in batch if not each[0]]
        table = table.added(
            [v for _, v, _, _ in adds], times(*(e for *_, e in adds)), [r for _, _, r, _ in adds]
        )
        model |= {(value, rule): expiry for _, value, rule, expiry in adds}
        table = table.removed([v for _, v, _, _ in gone], [r for _, _, r, _ in gone])
        for _, value, rule, _ in gone:
            model.pop((value, rule), None)
    rules = ["r2", "r1"]
    values = ["1", "2", "a", "b"]
    expected = [
        [any(model.get((value, name), 0) > now for name in ("", rule)) for rule in rules] for value in values
    ]
    found = table.exempt(keys_of(*values), np.full(4, now), rules)
    assert (np.zeros((4, 2), bool) if found is None else found).tolist() == expected
    integers = table.exempt(keys_of(1, 2), np.full(2, now), rules)
    assert (np.zeros((2, 2), bool) if integers is None else integers).tolist() == expected[:2]
    assert len(table.holders) == len({v for v, _ in model}) + len({v for v, _ in model if v != "a"})


def test_two_lists_of_one_name_and_unknown_names():
    one = empty_list("a", ListKind.BLOCK, "card")
    with pytest.raises(ValueError, match="one name"):
        ListSet([one, one])
    with pytest.raises(ListError, match="unknown-list"):
        ListSet([one]).table("b")
    assert ListSet([one]).with_table(one.added(["7"], forever(1))).table("a").hits(keys_of(7), times(0)).all()
