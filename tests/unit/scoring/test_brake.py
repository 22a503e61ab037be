"""The brake against a brute-force oracle that recounts the window at every event."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.brake import PANES, Brake, BrakeStateError
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment, in_rollout
from scoring.rules.ruleset import load_ruleset
from scoring.verdicts import Verdict

SCHEMA = ColumnSchema([Column(name, ColumnType.NUMBER) for name in ("a", "b", "c")])
MINUTE = 60_000_000
TEXT = """
name = "brake"
[brake]
window_minutes = 60
min_events = 8
min_customers = 2
challenge = 0.5
review = 0.25
block = 0.25

[[rule]]
id = "first"
when = "a > 0"
verdict = "challenge"
reason = "a"

[[rule]]
id = "second"
when = "b > 0"
verdict = "block"
max_share = 0.4
reason = "b"

[[rule]]
id = "third"
when = "c > 0"
verdict = "review"
reason = "c"
"""
OTHER = TEXT.replace('when = "c > 0"', 'when = "c > 1"')


def ruleset(version, text=TEXT):
    return load_ruleset(text, SCHEMA, version)


def apply(brake, deployment, columns, times, bucket=None, customer=None):
    rows = len(times)
    bucket = np.zeros(rows, np.uint64) if bucket is None else bucket
    judged = deployment.evaluate(columns, rows, None, bucket)
    return brake.apply(deployment, judged, times, customer)


class Oracle:
    """Keeps every event and recounts the window at each."""

    def __init__(self, rules, shares, most, min_events, pane_us):
        self.rules, self.shares, self.most = rules, shares, most
        self.min_events, self.pane_us = min_events, pane_us
        self.events = []
        self.stopped = set()
        self.since = dict.fromkeys(range(len(rules)), 0)

    def event(self, time, given, customer):
        # (pane, what rules said, customer, rules that did not count what they said, rules that did not see it)
        self.events.append((time // self.pane_us, dict(given), customer, frozenset(self.stopped), set()))
        newest = max(pane for pane, *_ in self.events)
        late = time // self.pane_us <= newest - PANES
        stands = {}
        for rule, verdict in sorted(given.items()):
            if rule not in self.stopped and not late:
                window = [
                    each
                    for each in self.events[self.since[rule] :]
                    if each[0] > newest - PANES and rule not in each[4]
                ]
                counted = [each for each in window if rule in each[1] and rule not in each[3]]
                if customer and sum(each[2] == customer for each in counted) > self.most[rule]:
                    self.events[-1][4].add(rule)
                    window.pop(), counted.pop()
                declines = sum(each[1][rule] == verdict for each in counted)
                if len(window) >= self.min_events and declines > self.shares[rule][verdict] * len(window):
                    self.stopped.add(rule)
            if rule not in self.stopped:
                stands[rule] = verdict
        if late:
            # It never entered the window.
            self.events.pop()
            self.since = {rule: min(since, len(self.events)) for rule, since in self.since.items()}
        return stands

    def release(self, rule):
        self.stopped.discard(rule)
        self.since[rule] = len(self.events)


EVENTS = st.lists(
    st.tuples(
        st.integers(-70, 90).filter(lambda minutes: abs(minutes) < 5 or minutes % 7 == 0),
        st.tuples(st.booleans(), st.booleans(), st.booleans()),
        st.sampled_from([None] * 12 + [0, 1, 2, "restart"]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, cuts=st.lists(st.integers(1, 30), max_size=6))
def test_the_brake_equals_recounting_the_window(events, cuts):
    version = ruleset(1)
    releases = {}
    deployment = Deployment(1, version)
    brake, oracle = Brake(), None
    shares = [
        {int(Verdict.CHALLENGE): 0.5},
        {int(Verdict.BLOCK): 0.4},
        {int(Verdict.REVIEW): 0.25},
    ]
    # Half of what it takes at 8 events: 0.5 * 8 / 2, 0.4 * 8 / 2 and 0.25 * 8 / 2, rounded down.
    oracle = Oracle(version.rules, shares, (2, 1, 1), 8, MINUTE)
    times, hits, whose, wanted = [], [], [], []
    now = 100_000 * MINUTE

    def flush():
        """Judge the waiting rows, cut as ``cuts`` says, and compare."""
        start = 0
        for size in [*cuts, len(times)]:
            part = slice(start, start + size)
            start += size
            if not times[part]:
                continue
            matrix = np.array(hits[part], np.float64)
            columns = {name: matrix[:, place].copy() for place, name in enumerate("abc")}
            customer = np.array(whose[part], np.uint64)
            judged, _ = apply(brake, deployment, columns, np.array(times[part], np.int64), customer=customer)
            stands = [
                {int(rule): int(row[rule]) for rule in np.flatnonzero(row)} for row in judged.live.effective
            ]
            assert stands == wanted[part]
            assert judged.live.verdict.tolist() == [max(w.values(), default=0) for w in wanted[part]]
            np.testing.assert_array_equal(judged.live.hits, matrix > 0)
        times.clear(), hits.clear(), whose.clear(), wanted.clear()

    for step, spoke, released, customer in events:
        moment = now + step * MINUTE
        now = max(now, moment)
        given_here = {rule: int(version.rules[rule].verdict) for rule, hit in enumerate(spoke) if hit}
        times.append(moment)
        hits.append(spoke)
        whose.append(customer * 0x9E3779B97F4A7C15 % 2**64)
        wanted.append(oracle.event(moment, given_here, customer))
        if released == "restart":
            flush()
            saved, brake = brake.state(), Brake()
            brake.restore(saved, deployment)
            assert all(np.array_equal(brake.state()[name], saved[name]) for name in saved)
        elif released is not None:
            flush()
            key = version.rules[released].key
            releases = {**releases, key: releases.get(key, 0) + 1}
            deployment = Deployment(deployment.number + 1, version, releases=releases)
            oracle.release(released)
    flush()
    # A release is taken up with the next batch; with none left the brake still shows the state before.
    apply(brake, deployment, {name: np.zeros(0) for name in "abc"}, np.zeros(0, np.int64))
    assert {c.rule for c in brake.counts() if c.braked} == {version.rules[r].id for r in oracle.stopped}


def one_rule(rows, every):
    return {
        "a": np.zeros(rows),
        "b": (np.arange(rows) % every == 0).astype(np.float64),
        "c": np.zeros(rows),
    }


def test_a_trip_takes_effect_at_its_own_row_and_alarms_once():
    brake, deployment = Brake(), Deployment(1, ruleset(1))
    times = np.arange(100, dtype=np.int64) * 1000
    judged, alarms = apply(brake, deployment, one_rule(100, 2), times)
    # 8 events with 4 declines are above 0.4; the declines come at rows 0, 2, 4, ..., so row 8 is the first to judge.
    assert [(alarm.rule, alarm.row, alarm.declines, alarm.events) for alarm in alarms] == [
        ("second", 8, 5, 9)
    ]
    assert np.flatnonzero(judged.live.verdict).tolist() == [0, 2, 4, 6]
    assert judged.live.hits[:, 1].sum() == 50
    assert (judged.live.rule[8:] == -1).all()
    judged, alarms = apply(brake, deployment, one_rule(100, 2), times + 100_000)
    assert (alarms, judged.live.verdict.any()) == ([], False)


def flood(rows, customers, every=2):
    """Every second row is a decline, of so many customers in turn; the others are of nobody in particular."""
    declined = np.arange(rows) % every == 0
    customer = np.where(declined, np.arange(rows) // every % customers + 1, 0).astype(np.uint64)
    return one_rule(rows, every), customer


@pytest.mark.parametrize(
    ("customers", "stopped"), [(1, False), (4, False), (50, False), (51, True), (300, True)]
)
def test_few_customers_cannot_stop_a_rule_for_everybody(customers, stopped):
    """With 1,000 events and a share of 0.25 it takes 251 declines that count, five of a customer."""
    text = TEXT.replace("min_events = 8", "min_events = 1000").replace("max_share = 0.4", "max_share = 0.25")
    brake, deployment = Brake(), Deployment(1, ruleset(1, text))
    columns, customer = flood(4000, customers)
    judged, alarms = apply(
        brake, deployment, columns, np.arange(4000, dtype=np.int64) * 1000, customer=customer
    )
    assert bool(alarms) == stopped
    assert judged.live.verdict.astype(bool).sum() == (2000 if not stopped else alarms[0].row // 2)
    if not stopped:
        told = brake.counts()[1]
        # What does not count has not been seen either: it thins nothing out.
        assert (told.block, told.events) == (5 * customers, 2000 + 5 * customers)
        # Others can still stop it.
        columns, customer = flood(2000, 1000)
        times = 4_000_000 + np.arange(2000, dtype=np.int64) * 1000
        _, alarms = apply(brake, deployment, columns, times, customer=customer + np.uint64(customers))
        assert [alarm.rule for alarm in alarms] == ["second"]


@pytest.mark.parametrize(("customers", "stopped"), [(50, False), (51, True)])
def test_it_takes_as_many_customers_as_the_limits_say(customers, stopped):
    text = TEXT.replace("min_events = 8", "min_events = 1000").replace("max_share = 0.4", "max_share = 0.25")
    declines = 5 * customers
    columns = {name: np.zeros(1000) for name in "abc"}
    columns["b"][1000 - declines :] = 1.0
    customer = np.zeros(1000, np.uint64)
    customer[1000 - declines :] = np.arange(declines) % customers + 1
    times = np.arange(1000, dtype=np.int64) * 1000
    _, alarms = apply(Brake(), Deployment(1, ruleset(1, text)), columns, times, customer=customer)
    assert [(alarm.row, alarm.declines) for alarm in alarms] == ([(999, 255)] if stopped else [])


def test_a_customer_counts_again_when_the_window_has_passed():
    brake, deployment = Brake(), Deployment(1, ruleset(1, TEXT.replace("min_events = 8", "min_events = 100")))
    declined = {name: np.full(10, float(name == "b")) for name in "abc"}
    for hour in range(3):
        times = np.full(10, (100 + hour) * 60 * MINUTE)
        apply(brake, deployment, declined, times, customer=np.full(10, 7, np.uint64))
        assert brake.counts()[1].block == 5
    # Many customers come and go: only those of the window are held.
    rows = 20_000
    columns = {name: np.full(rows, float(name == "b")) for name in "abc"}
    for hour in range(5):
        times = np.full(rows, (200 + hour) * 60 * MINUTE)
        customer = np.arange(1, rows + 1).astype(np.uint64) + np.uint64(hour * rows)
        brake = Brake() if hour == 0 else brake
        limits = ruleset(1, TEXT.replace("min_events = 8", "min_events = 1000000"))
        apply(brake, Deployment(1, limits), columns, times, customer=customer)
        assert len(brake.state()["1.counted"]) == rows


def test_a_state_of_before_customers_were_counted_is_taken_up():
    deployment = Deployment(1, ruleset(1))
    brake, again = Brake(), Brake()
    apply(brake, deployment, one_rule(5, 2), np.arange(5, dtype=np.int64))
    saved = brake.state()
    old = {name: values for name, values in saved.items() if name not in ("form", "1.counted")}
    again.restore(old, deployment)
    assert again.counts() == brake.counts()
    with pytest.raises(BrakeStateError, match="lacks"):
        again.restore({**old, "form": saved["form"]}, deployment)
    with pytest.raises(BrakeStateError, match="form"):
        again.restore({**saved, "form": np.array([3])}, deployment)
    with pytest.raises(BrakeStateError, match="shape"):
        again.restore({**saved, "1.counted": np.zeros((1, 3), np.int64)}, deployment)


def test_read_only_columns_are_the_same_to_the_brake():
    deployment, times = Deployment(1, ruleset(1)), np.arange(100, dtype=np.int64) * 1000
    wanted, _ = apply(Brake(), deployment, one_rule(100, 2), times)
    times.flags.writeable = False
    got, _ = apply(Brake(), deployment, one_rule(100, 2), times)
    np.testing.assert_array_equal(got.live.verdict, wanted.live.verdict)


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    deployment = Deployment(1, ruleset(1))
    whole, first = Brake(), Brake()
    times = np.arange(200, dtype=np.int64) * MINUTE
    rng = np.random.default_rng(3)
    columns = {
        name: (rng.random(200) < share).astype(float)
        for name, share in zip("abc", (0.5, 0.35, 0.2), strict=True)
    }
    wanted, _ = apply(whole, deployment, columns, times)
    head = {name: values[:77] for name, values in columns.items()}
    tail = {name: values[77:] for name, values in columns.items()}
    apply(first, deployment, head, times[:77])
    second = Brake()
    second.restore(first.state(), deployment)
    got, _ = apply(second, deployment, tail, times[77:])
    np.testing.assert_array_equal(got.live.verdict, wanted.live.verdict[77:])
    for name, values in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], values)
    assert second.stopped
    # Under another version the windows begin anew, what is stopped stays so.
    third, other = Brake(), Deployment(2, ruleset(2))
    third.restore(second.state(), other)
    assert third.stopped == second.stopped
    assert {each.key for each in third.counts() if each.braked} == second.stopped
    assert {each.events for each in third.counts()} == {0}
    damaged = {name: values for name, values in first.state().items() if name != "1.events"}
    with pytest.raises(BrakeStateError, match="lacks"):
        second.restore(damaged, deployment)


def test_a_stopped_rule_stays_stopped_in_later_versions_that_hold_it():
    brake = Brake()
    times = np.arange(100, dtype=np.int64)
    apply(brake, Deployment(1, ruleset(1)), one_rule(100, 2), times)
    changed = Deployment(2, ruleset(2, OTHER))
    judged, _ = apply(brake, changed, one_rule(100, 2), times)
    assert not judged.live.verdict.any()
    fixed = Deployment(3, ruleset(3, TEXT.replace('when = "b > 0"', 'when = "b > 0 and a >= 0"')))
    judged, alarms = apply(brake, fixed, one_rule(100, 3), times)
    assert (judged.live.verdict.sum() // Verdict.BLOCK, alarms) == (34, [])
    # Back to a version whose rule tripped: still stopped, until somebody releases it.
    judged, _ = apply(brake, dataclasses.replace(changed, number=4), one_rule(100, 3), times)
    assert not judged.live.verdict.any()
    key = changed.active.rules[1].key
    judged, _ = apply(brake, Deployment(5, changed.active, releases={key: 1}), one_rule(100, 3), times)
    assert judged.live.verdict.sum() // Verdict.BLOCK == 34


def test_versions_side_by_side_are_counted_apart():
    brake = Brake()
    active, candidate = ruleset(1), ruleset(2, OTHER)
    deployment = Deployment(1, active, rollout=(candidate, 30.0))
    rng = np.random.default_rng(5)
    bucket = rng.integers(1, 2**63, 400).astype(np.uint64)
    chosen = in_rollout(bucket, 2, 30.0)
    # The candidate's customers are all blocked, the others seldom.
    columns = {
        "a": np.zeros(400),
        "b": (chosen | (np.arange(400) % 10 == 0)).astype(float),
        "c": np.zeros(400),
    }
    judged, alarms = apply(brake, deployment, columns, np.arange(400, dtype=np.int64), bucket)
    assert [(alarm.version, alarm.events) for alarm in alarms] == [(2, 8)]
    counts = {(each.version, each.rule): each for each in brake.counts()}
    assert counts[1, "second"].events == (~chosen).sum()
    assert not counts[1, "second"].braked
    assert counts[2, "second"].braked
    late = np.flatnonzero(chosen)[8:]
    assert not judged.live.verdict[late].any()
    others = ~chosen & (columns["b"] > 0)
    assert (judged.live.verdict[others] == Verdict.BLOCK).all()
