"""The life of versions as a state machine, and deployments: who is judged by what."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scoring.reasons import reasons
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment, in_rollout, rollout_buckets
from scoring.rules.ruleset import load_ruleset
from scoring.rules.versions import DEPLOYING, NEXT, Action, Book, Code, LifecycleError, State
from scoring.schema import Channel, transaction_batch
from scoring.verdicts import Verdict

PEOPLE = st.sampled_from(["ann", "bob", "cem"])
ACTS = [action for action in Action if action not in (Action.DISPLACE, Action.RESTORE)]
DECIDING = (State.ACTIVE, State.ROLLOUT)


class Lifecycle(RuleBasedStateMachine):
    """Any acts by anyone: refused or not, the book stays sound."""

    def __init__(self):
        super().__init__()
        self.book = Book()
        self.approvals = {}
        self.authors = {}

    @rule(author=PEOPLE)
    @precondition(lambda self: len(self.book.versions) < 6)
    def save(self, author):
        self.book, number = self.book.save(author)
        self.authors[number] = author
        assert self.book.versions[number].state is State.DRAFT

    @rule(author=PEOPLE)
    def bootstrap(self, author):
        empty = not self.book.versions
        try:
            self.book = self.book.bootstrap(author)
            assert empty
            self.authors[1] = author
            self.approvals[1] = None
        except LifecycleError as error:
            self.explain(error.code, Action.ACTIVATE, 1, author, stale=False, percent=1.0)
            assert not empty

    @rule(
        action=st.sampled_from(ACTS),
        number=st.integers(1, 6),
        actor=PEOPLE,
        stale=st.integers(0, 9).map(lambda n: n == 0),
        percent=st.sampled_from([0.5, 10.0, 100.0, 0.0, -1.0, 101.0, math.nan]),
    )
    def act(self, action, number, actor, stale, percent):
        before = self.book
        seen = before.deployed.number - stale
        try:
            after = before.act(action, number, actor, seen=seen, percent=percent)
        except LifecycleError as error:
            self.explain(error.code, action, number, actor, stale, percent)
            return
        was = before.versions[number].state
        assert (was, action) in NEXT
        assert after.versions[number].state is NEXT[was, action]
        assert not (action in DEPLOYING and stale)
        assert after.deployed.number == before.deployed.number + (action in DEPLOYING)
        if action is Action.APPROVE:
            assert actor != self.authors[number]
            self.approvals[number] = actor
        if action is Action.ACTIVATE and before.deployed.active:
            assert after.versions[before.deployed.active].state is State.REPLACED
            assert (
                after.act(Action.ROLLBACK, number, actor, seen=after.deployed.number).deployed.active
                == before.deployed.active
            )
        self.book = after

    def explain(self, code, action, number, actor, stale, percent):
        """Every refusal has the reason its code names."""
        book = self.book
        version = book.versions.get(number)
        if code is Code.NOT_EMPTY:
            assert book.versions
        elif code is Code.UNKNOWN_VERSION:
            assert version is None
        elif code is Code.STALE:
            assert stale
            assert action in DEPLOYING
        elif code is Code.SAME_PERSON:
            assert version.author == actor
            assert action is Action.APPROVE
        elif code is Code.BAD_PERCENT:
            assert not 0 < percent <= 100
        elif code is Code.NOTHING_BEFORE:
            assert not book.deployed.before
        elif code is Code.TOO_MANY:
            assert len(book.deployed.shadows) == 4
        else:
            assert code is Code.WRONG_STATE
            assert (version.state, action) not in NEXT or (
                action is Action.ROLLOUT and (book.deployed.rollout or not book.deployed.active)
            )

    @rule(key=st.sampled_from(["x@1", "y@2"]))
    def release(self, key):
        before = self.book.deployed.releases.get(key, 0)
        self.book = self.book.release(key, seen=self.book.deployed.number)
        assert self.book.deployed.releases[key] == before + 1

    @invariant()
    def what_is_deployed_is_what_the_states_say(self):
        states = {number: version.state for number, version in self.book.versions.items()}
        deployed = self.book.deployed

        def those(state):
            return {number for number, each in states.items() if each is state}

        assert those(State.ACTIVE) == ({deployed.active} if deployed.active else set())
        assert those(State.ROLLOUT) == ({deployed.rollout} if deployed.rollout else set())
        assert those(State.SHADOW) == set(deployed.shadows)
        assert len(set(deployed.before)) == len(deployed.before)
        assert deployed.active not in deployed.before
        assert not {states[number] for number in deployed.before} & {
            State.RETIRED,
            State.ACTIVE,
            State.REJECTED,
        }
        assert bool(deployed.rollout) == bool(deployed.percent)

    @invariant()
    def nothing_decides_that_two_persons_did_not_approve(self):
        for number, version in self.book.versions.items():
            if version.state in (*DECIDING, State.SHADOW, State.APPROVED, State.REPLACED):
                assert number in self.approvals
                assert self.approvals[number] != self.authors[number]


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


SCHEMA = ColumnSchema([Column("amount", ColumnType.NUMBER), Column("listed_vip", ColumnType.BOOLEAN)])


def ruleset(version, limit, verdict="block"):
    text = f"""
    name = "n"
    [[rule]]
    id = "large"
    when = "amount > {limit}"
    verdict = "{verdict}"
    reason = "{{amount}}"
    [[rule]]
    id = "ratio"
    when = "100 / amount > 50"
    verdict = "review"
    reason = "small"
    """
    return load_ruleset(text, SCHEMA, version)


COLUMNS = {"amount": np.tile([0.0, 1.0, 150.0, 250.0], 500), "listed_vip": np.zeros(2000, bool)}
BUCKETS = np.repeat(np.arange(500, dtype=np.uint64), 4)


def test_a_rollout_judges_its_customers_and_no_others():
    active, candidate = ruleset(1, 200), ruleset(2, 100, "challenge")
    deployment = Deployment(1, active, rollout=(candidate, 25.0), shadows=(ruleset(3, 0),))
    judged = deployment.evaluate(COLUMNS, 2000, None, BUCKETS)
    chosen = in_rollout(BUCKETS, 2, 25.0)
    assert 0.18 < chosen.mean() < 0.32
    assert len(set(map(tuple, chosen.reshape(500, 4).tolist()))) == 2
    np.testing.assert_array_equal(judged.version, np.where(chosen, 2, 1))
    alone, other = active.evaluate(COLUMNS, 2000), candidate.evaluate(COLUMNS, 2000)
    np.testing.assert_array_equal(judged.live.verdict, np.where(chosen, other.verdict, alone.verdict))
    for index, each in enumerate(deployment.rules):
        from_candidate = index >= 2
        whole = (other if from_candidate else alone).hits[:, index % 2]
        mine = chosen if from_candidate else ~chosen
        np.testing.assert_array_equal(judged.live.hits[:, index], whole & mine)
        rows = np.flatnonzero(judged.live.rule == index)
        assert (mine[rows] & whole[rows]).all(), each.id
    # One row in four divides by zero, in the version that judges it.
    divided = chosen[::4].sum()
    assert judged.live.errors.tolist() == [0, 500 - divided, 0, divided]
    np.testing.assert_array_equal(judged.shadows[3].verdict, ruleset(3, 0).evaluate(COLUMNS, 2000).verdict)
    explained = reasons(deployment, judged.live, COLUMNS)
    assert explained[3][0].verdict is (Verdict.CHALLENGE if chosen[3] else Verdict.BLOCK)


def test_a_rollout_only_grows_and_single_rows_agree():
    buckets = np.arange(20_000, dtype=np.uint64)
    reached = np.zeros(20_000, bool)
    for percent in (0.0, 0.1, 1.0, 10.0, 50.0, 99.9, 100.0):
        now = in_rollout(buckets, 7, percent)
        assert (now | ~reached).all()
        assert abs(now.mean() - percent / 100) < 0.012
        reached = now
    assert reached.all()
    deployment = Deployment(1, ruleset(1, 200), rollout=(ruleset(2, 100), 50.0))
    batch = deployment.evaluate(COLUMNS, 2000, None, BUCKETS)
    for row in range(40):
        one = {name: values[row : row + 1] for name, values in COLUMNS.items()}
        single = deployment.evaluate(one, 1, None, BUCKETS[row : row + 1])
        assert single.version[0] == batch.version[row]
        assert single.live.verdict[0] == batch.live.verdict[row]
        assert single.live.rule[0] == batch.live.rule[row]
        np.testing.assert_array_equal(single.live.hits[0], batch.live.hits[row])


def test_exemptions_are_asked_for_by_rule():
    deployment = Deployment(1, ruleset(1, 200), shadows=(ruleset(2, 100),))

    def exempt(ids):
        matrix = np.zeros((2000, len(ids)), bool)
        matrix[:1000, ids.index("large")] = True
        return matrix

    judged = deployment.evaluate(COLUMNS, 2000, None, BUCKETS, exempt)
    assert judged.live.exempted.tolist() == [250, 0]
    assert judged.shadows[2].exempted.tolist() == [500, 0]
    assert not judged.live.hits[:1000, 0].any()
    assert judged.live.hits[1000:, 0].sum() == 250
    assert deployment.evaluate(COLUMNS, 2000, None, BUCKETS, lambda ids: None).live.exempted.sum() == 0


def test_a_row_without_a_customer_has_the_bucket_of_its_event():
    batch = transaction_batch(
        event_id=[7, 8, 9], time_us=[1, 2, 3], amount=[1.0] * 3, channel=Channel.CARD,
        entities={"customer": [5, None, 5]},
    )  # fmt: skip
    buckets = rollout_buckets(batch)
    assert buckets[0] == buckets[2] == batch.entities["customer"][0]
    assert buckets[1] not in (0, buckets[0])
    without = transaction_batch(
        event_id=[7, 8, 9], time_us=[1, 2, 3], amount=[1.0] * 3, channel=Channel.CARD, entities={}
    )
    assert rollout_buckets(without)[1] == buckets[1]
