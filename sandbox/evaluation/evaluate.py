"""One call from scored histories and truth to everything the report shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sandbox.evaluation.calendar import Weeks
from sandbox.evaluation.comparison import Comparison
from sandbox.evaluation.daily import BankDayCounts
from sandbox.evaluation.growth import exactness, growth_steps
from sandbox.evaluation.pooling import engine_check, model_features, pooled_features, pooled_matrix
from sandbox.evaluation.results import (
    ALONE,
    CONSORTIUM,
    FOREST,
    LOGISTIC,
    POOLED,
    ExactnessCheck,
    GrowthStep,
    ModelRow,
    TierRow,
    VerdictTable,
)
from sandbox.evaluation.stream import ScoredStream
from sandbox.evaluation.verdicts import tier_rows, verdict_tables
from scoring.features.spec import DAY_US, FeatureSpec

DEFAULT_TIERS: Mapping[str, int] = {"watch": 1, "challenge": 2, "block": 4}
COUNT_DELAY_DAYS = 7
LEAST_COHORT = 3


@dataclass(frozen=True)
class BankFacts:
    """One bank's stream: how much was scored, and how much of that in degraded mode."""

    bank: str
    events: int
    unscored: int
    frauds: int
    money: float
    fraud_money: float
    customers: int
    degraded: int


@dataclass(frozen=True)
class Evaluation:
    """Everything measured. ``features``: model inputs every view has; ``consortium_features``: what joining adds."""

    banks: tuple[BankFacts, ...]
    weeks: Weeks
    first_day: int
    last_day: int
    models: tuple[ModelRow, ...]
    verdicts: tuple[VerdictTable, ...]
    tiers: tuple[TierRow, ...]
    growth: tuple[GrowthStep, ...]
    exactness: tuple[ExactnessCheck, ...]
    features: tuple[str, ...]
    consortium_features: tuple[str, ...]
    pooled_features: tuple[str, ...]
    test_rows: int
    test_frauds: int
    seconds: float

    def model(self, model: str, view: str) -> ModelRow | None:
        """One row, ``None`` where it was not measured."""
        return next((r for r in self.models if (r.model, r.view) == (model, view)), None)

    def verdict(self, bank: str, view: str) -> VerdictTable | None:
        """One table, ``None`` where there is none."""
        return next((t for t in self.verdicts if (t.bank, t.view) == (bank, view)), None)


def evaluate(
    stream: ScoredStream,
    *,
    weeks: Weeks,
    spec: FeatureSpec,
    tiers: Mapping[str, int] = DEFAULT_TIERS,
    models: Sequence[str] = (FOREST, LOGISTIC),
    count_delay_days: int = COUNT_DELAY_DAYS,
    least_cohort: int = LEAST_COHORT,
    n_jobs: int = 2,
    announce: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure ``stream``.

    ``spec``: the features in the histories; beside them a model sees the amount (and the channel where it varies).
    ``models``: which to train; without the random forest the growth has no model curve. ``count_delay_days``: how long
    until a fraud is known, for the pooled features and for the maturity of the encrypted daily counts.
    ``least_cohort``: the smallest cohort that policy lets ask for encrypted sums.
    """
    began = time.perf_counter()
    inputs = ["amount", *model_features(spec)]
    own = stream.matrix(inputs)
    channel = stream.frame["channel"].rank("dense").cast(float).to_numpy()
    if len(np.unique(channel)) > 1:
        inputs, own = [*inputs, "channel"], np.column_stack([own, channel])
    counts = BankDayCounts(
        stream.bank, stream.cell, stream.day, stream.fraud, len(stream.banks), stream.cells
    )
    names = [c.name for c in stream.consortium]
    with_consortium = np.concatenate([own, stream.matrix(names)], axis=1) if names else own
    announce("features over all banks' rows")
    shared = pooled_features(stream, spec, count_delay_days * DAY_US)
    checked = engine_check(stream, spec, shared)
    pooled = pooled_matrix(inputs, own, shared)
    comparison = Comparison.of(stream, weeks, n_jobs, announce)
    views = ((ALONE, own), (CONSORTIUM, with_consortium), (POOLED, pooled))
    rows = [
        comparison.row(model, view, x) for model in models for view, x in views if view != CONSORTIUM or names
    ]
    measured = [r for r in rows if r.model == FOREST and r.view in (ALONE, CONSORTIUM)] if names else []
    growth = growth_steps(
        comparison,
        counts,
        own=own,
        tiers=tiers,
        delay_days=count_delay_days,
        least_cohort=least_cohort,
        measured=measured,
    )
    return Evaluation(
        banks=_facts(stream),
        weeks=weeks,
        first_day=int(stream.day.min()),
        last_day=int(stream.day.max()),
        models=tuple(rows),
        verdicts=tuple(verdict_tables(stream)),
        tiers=tuple(tier_rows(stream, tiers)),
        growth=tuple(growth),
        exactness=(*exactness(stream, counts, count_delay_days), *([checked] if checked else [])),
        features=tuple(inputs),
        consortium_features=tuple(names),
        pooled_features=tuple(shared),
        test_rows=int(comparison.test.sum()),
        test_frauds=int(stream.fraud[comparison.test].sum()),
        seconds=time.perf_counter() - began,
    )


def _facts(stream: ScoredStream) -> tuple[BankFacts, ...]:
    answer = []
    for number, party in enumerate(stream.banks):
        mine = stream.bank == number
        bad = mine & (stream.fraud == 1)
        answer.append(
            BankFacts(
                bank=party,
                events=int(mine.sum()),
                unscored=stream.unscored[party],
                frauds=int(bad.sum()),
                money=float(stream.amount[mine].sum()),
                fraud_money=float(stream.amount[bad].sum()),
                customers=len(np.unique(stream.customer[mine])),
                degraded=int((mine & stream.degraded).sum()),
            )
        )
    return tuple(answer)
