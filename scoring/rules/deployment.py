"""What judges the stream: an active version, perhaps one for a part of the customers, and versions in shadow.

A deployment is immutable; a batch is judged by one of them as a whole, so that a change takes effect between two
batches and no event is judged twice or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scoring.rules.columns import ColumnValues
from scoring.rules.evaluation import Judgement, Rule, RuleSet, decide
from scoring.schema import TransactionBatch, entity_keys

# Rows that are exempt from rules: rule ids -> bool [n, rules], or None where no row is.
Exemptions = Callable[[Sequence[str]], NDArray[np.bool_] | None]


@dataclass(frozen=True)
class DeploymentJudgement:
    """``live`` judges each row by the version that applies to it (``version`` int16 [n]); ``shadows`` by version.

    The rules of ``live`` are :attr:`Deployment.rules`: those of the active version, then those of the one being rolled
    out; a rule has neither hits nor errors in rows its version did not judge.
    """

    live: Judgement
    version: NDArray[np.int16]
    shadows: Mapping[int, Judgement]


@dataclass(frozen=True)
class Deployment:
    """``rollout``: a rule set and the percentage (0..100) of buckets it judges in place of the active one.

    ``releases`` counts by ``Rule.key`` how often a person has released a rule from the brake.
    """

    number: int
    active: RuleSet
    rollout: tuple[RuleSet, float] | None = None
    shadows: tuple[RuleSet, ...] = ()
    releases: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def live(self) -> tuple[RuleSet, ...]:
        """The rule sets that decide: the active one, then the one being rolled out."""
        return (self.active,) if self.rollout is None else (self.active, self.rollout[0])

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the live judgement, in its order."""
        return tuple(rule for each in self.live for rule in each.rules)

    @cached_property
    def lanes(self) -> NDArray[np.int64]:
        """For each of :attr:`rules` the place of its rule set in :attr:`live`, int64 [r]."""
        return np.repeat(np.arange(len(self.live)), [len(each.rules) for each in self.live])

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every column that any of its rule sets reads, shadows included."""
        return frozenset().union(*(each.columns for each in (*self.live, *self.shadows)))

    def evaluate(
        self,
        columns: Mapping[str, ColumnValues],
        rows: int,
        limits: Mapping[str, NDArray[np.uint8]] | None,
        bucket: NDArray[np.uint64],
        exempt: Exemptions | None = None,
    ) -> DeploymentJudgement:
        """Judge a batch; ``columns`` and ``limits`` as in :meth:`RuleSet.evaluate`.

        ``bucket`` uint64 [n] decides which version judges a row (:func:`rollout_buckets`): the same bucket gets the
        same version at any percentage that once reached it. Without a rollout nobody looks at it.
        """

        def judge(ruleset: RuleSet, only: NDArray[np.bool_] | None = None) -> Judgement:
            exempted = None if exempt is None else exempt(ruleset.ids)
            return ruleset.evaluate(columns, rows, limits, exempted, only)

        version = np.empty(rows, np.int16)
        version.fill(self.active.version)
        if self.rollout is None:
            live = judge(self.active)
        else:
            candidate, percent = self.rollout
            chosen = in_rollout(bucket, candidate.version, percent)
            version[chosen] = candidate.version
            live = _joined(judge(self.active, ~chosen), judge(candidate, chosen))
        return DeploymentJudgement(live, version, {each.version: judge(each) for each in self.shadows})


def in_rollout(bucket: NDArray[np.uint64], version: int, percent: float) -> NDArray[np.bool_]:
    """Which buckets a rollout of ``version`` reaches, bool [n].

    A bucket's place in [0, 1) is its hash with the version (the finaliser of SplitMix64, Steele et al. 2014), so that
    every version begins with other customers, and a greater percentage only adds some.
    """
    salt = np.uint64(version * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = bucket ^ salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)) * 2.0**-53 < percent / 100.0


def rollout_buckets(batch: TransactionBatch) -> NDArray[np.uint64]:
    """The bucket of each row: its customer, or the event itself where no customer is given; uint64 [n]."""
    customers = batch.entities.get("customer")
    if customers is not None and customers.all():
        return customers
    events = entity_keys(batch.event_id, column="event_id")
    return events if customers is None else np.where(customers > 0, customers, events)


def _joined(active: Judgement, candidate: Judgement) -> Judgement:
    """Two judgements of disjoint rows as one over the rules of both."""
    hits = np.concatenate([active.hits.T, candidate.hits.T]).T
    effective = np.concatenate([active.effective.T, candidate.effective.T]).T
    verdict, rule = decide(effective)
    return Judgement(
        verdict,
        rule,
        hits,
        effective,
        np.concatenate([active.errors, candidate.errors]),
        np.concatenate([active.exempted, candidate.exempted]),
    )
