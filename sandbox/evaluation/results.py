"""What an evaluation found: plain values, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALONE, CONSORTIUM, POOLED = "alone", "consortium", "pooled"
FOREST, LOGISTIC = "random forest", "logistic regression"


@dataclass(frozen=True)
class Quality:
    """Ranking quality on test rows; ``None`` where the rows hold only one class (``why`` says so)."""

    rows: int
    frauds: int
    roc_auc: float | None
    average_precision: float | None
    card_precision_100: float | None
    why: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """One model under one view. ``joint``: the scores of all banks together; ``banks``: each bank's own rows.

    ``untrained``: banks whose training rows hold no fraud, whose model therefore says nothing.
    """

    model: str
    view: str
    joint: Quality
    banks: Mapping[str, Quality]
    train_rows: int
    train_frauds: int
    seconds: float
    untrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerdictRow:
    """How many transactions got one verdict; money in the stream's currency units."""

    verdict: str
    frauds: int
    fraud_money: float
    genuine: int
    genuine_money: float


@dataclass(frozen=True)
class VerdictTable:
    """One bank (or ``all``) under one view; rows in order of severity, allow first."""

    bank: str
    view: str
    rows: tuple[VerdictRow, ...]

    def sum_of(self, field: str, verdicts: tuple[str, ...] | None = None) -> float:
        """Sum of one column over ``verdicts`` (``None``: all)."""
        return float(sum(getattr(r, field) for r in self.rows if verdicts is None or r.verdict in verdicts))


@dataclass(frozen=True)
class TierRow:
    """Transactions whose indicator of ``kind`` counts at least ``min_victims`` distinct victims.

    ``evidence``: ``own`` (the bank's own victims only) or ``all`` (every contributor's).
    """

    kind: str
    tier: str
    min_victims: int
    evidence: str
    hits: int
    frauds: int
    fraud_money: float
    genuine_money: float

    @property
    def precision(self) -> float | None:
        """Frauds among hits."""
        return self.frauds / self.hits if self.hits else None


@dataclass(frozen=True)
class GrowthStep:
    """A consortium of ``members``: each bank with the first ``members - 1`` others, all banks' rows together.

    ``frauds_flagged``, ``fraud_money_flagged``, ``genuine_flagged``: transactions at or above the challenge tier,
    exact (from the contributors named in the labels). ``average_precision``, ``roc_auc``: random forest.
    ``counterfactual``: no such consortium ran; computed from what only the sandbox knows of each bank.
    ``refused_by_policy``: why such a consortium would not be served encrypted sums.
    """

    members: int
    frauds_flagged: int
    fraud_money_flagged: float
    genuine_flagged: int
    average_precision: float | None
    roc_auc: float | None
    counterfactual: bool
    refused_by_policy: str | None


@dataclass(frozen=True)
class ExactnessCheck:
    """What the protocol returned against what the sandbox, which sees all rows, computes in the clear.

    ``left_out``: rows not compared because the bank knew that it had no up-to-date answer (degraded mode).
    """

    what: str
    rows: int
    different: int
    left_out: int = 0
