"""Drift: how far today's values have moved from those a model was trained on, by feature and for its score.

Two measures over histograms that are kept with the model, so that no training row is needed later:

* the population stability index, PSI = sum((a - e) * ln(a / e)) over ten quantile bins of the training values and one
  bin for missing values; e and a are a bin's shares then and now. A share below ``LEAST_SHARE`` counts as that much,
  or an empty bin would make the sum infinite: a bin that was empty adds at most about 9 per unit of mass. The usual
  reading: below 0.1 stable, up to 0.25 moderate, above major.
* the Kolmogorov-Smirnov statistic D = max |F_then - F_now| of the values that are not missing, taken at the edges of
  up to ``FINE_BINS`` quantile bins: exact while every distinct value has its bin, else too small by at most the mass
  of one bin. ``critical`` is the D that two samples of one population exceed once in a hundred times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COARSE_BINS = 10
FINE_BINS = 256
LEAST_SHARE = 1e-4
MODERATE, MAJOR = 0.1, 0.25
_ONE_IN_A_HUNDRED = math.sqrt(-math.log(0.01 / 2) / 2)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values: bin j holds ``edges[j - 1] < x <= edges[j]``, the last one what exceeds all edges.

    edges float64 [b - 1], ascending; counts int64 [b]; missing: how many values were NaN.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    missing: int

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or np.any(np.diff(self.edges) <= 0):
            raise ValueError("a histogram has one count more than it has ascending edges")
        if self.missing < 0 or np.any(self.counts < 0) or np.isnan(self.edges).any():
            raise ValueError("a histogram counts values, so no count is negative and no edge is missing")

    @property
    def total(self) -> int:
        """All values, missing ones too."""
        return int(self.counts.sum()) + self.missing

    def of(self, values: NDArray[Any]) -> Histogram:
        """The histogram of other values over the same bins."""
        return _counted(np.asarray(values, dtype=np.float64), self.edges)


@dataclass(frozen=True, eq=False)
class Baseline:
    """What one column looked like in training: ``coarse`` for the PSI, ``fine`` for the KS statistic."""

    coarse: Histogram
    fine: Histogram


@dataclass(frozen=True)
class ColumnDrift:
    """One column's drift. ``missing_then`` and ``missing_now`` are shares of NaN; ``ks`` is NaN without values."""

    name: str
    psi: float
    ks: float
    critical: float
    missing_then: float
    missing_now: float

    @property
    def level(self) -> str:
        """``stable``, ``moderate`` or ``major`` by the PSI."""
        return "major" if self.psi > MAJOR else "moderate" if self.psi > MODERATE else "stable"


@dataclass(frozen=True)
class DriftReport:
    """Drift of the score and of every feature (greatest PSI first), and how many rows then and now are compared."""

    rows_then: int
    rows_now: int
    score: ColumnDrift
    features: tuple[ColumnDrift, ...]

    @property
    def level(self) -> str:
        """The worst level of all columns."""
        levels = {each.level for each in (self.score, *self.features)}
        return next(level for level in ("major", "moderate", "stable") if level in levels)


def baseline(values: NDArray[Any]) -> Baseline:
    """The baseline of a training column, any numeric dtype [n]."""
    column = np.asarray(values, dtype=np.float64)
    coarse, fine = (_counted(column, _edges(column, bins)) for bins in (COARSE_BINS, FINE_BINS))
    return Baseline(coarse, fine)


def psi(then: Histogram, now: Histogram) -> float:
    """The population stability index of two histograms over the same bins; NaN when either holds nothing."""
    if not then.total or not now.total:
        return math.nan
    expected, actual = (
        np.maximum(np.append(each.counts, each.missing) / each.total, LEAST_SHARE) for each in (then, now)
    )
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def ks(then: Histogram, now: Histogram) -> float:
    """max |F_then - F_now| at the edges of the shared bins, missing values left out; NaN without values."""
    n, m = int(then.counts.sum()), int(now.counts.sum())
    if not n or not m:
        return math.nan
    return float(np.abs(np.cumsum(then.counts) / n - np.cumsum(now.counts) / m).max())


def ks_critical(n: int, m: int) -> float:
    """The D that samples of ``n`` and ``m`` values of one population exceed with probability 0.01 (asymptotic)."""
    return _ONE_IN_A_HUNDRED * math.sqrt((n + m) / (n * m)) if n and m else math.nan


def drift_of(name: str, then: Baseline, values: NDArray[Any]) -> ColumnDrift:
    """The drift of one column's values [n] from its baseline."""
    coarse, fine = then.coarse.of(values), then.fine.of(values)
    return ColumnDrift(
        name=name,
        psi=psi(then.coarse, coarse),
        ks=ks(then.fine, fine),
        critical=ks_critical(int(then.fine.counts.sum()), int(fine.counts.sum())),
        missing_then=then.coarse.missing / max(then.coarse.total, 1),
        missing_now=coarse.missing / max(coarse.total, 1),
    )


def drift_report(
    baselines: Mapping[str, Baseline],
    score_baseline: Baseline,
    columns: Mapping[str, NDArray[Any]],
    score: NDArray[np.float64],
) -> DriftReport:
    """The drift of ``columns`` (name -> [n]) and of a model's ``score`` [n] (NaN: degraded) from their baselines."""
    found = [drift_of(name, then, columns[name]) for name, then in baselines.items()]
    return DriftReport(
        rows_then=max((each.coarse.total for each in baselines.values()), default=0),
        rows_now=len(score),
        score=drift_of("model_score", score_baseline, score),
        features=tuple(sorted(found, key=lambda each: -each.psi if each.psi == each.psi else 0.0)),
    )


def _edges(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Edges half way between neighbouring values: a value that comes out a rounding error higher stays in its bin."""
    distinct = np.unique(values[~np.isnan(values)])
    if not len(distinct):
        return np.empty(0)
    above = np.append(distinct[1:], np.inf)
    # What is not finite has no middle and lies beyond no edge; those results are not used.
    with np.errstate(invalid="ignore", over="ignore"):
        between = np.where(np.isfinite(above) & np.isfinite(distinct), distinct / 2 + above / 2, distinct)
        lowest = np.nextafter(distinct[0], -np.inf)
        if len(distinct) > 1 and np.isfinite(distinct).all():
            lowest = 2 * distinct[0] - between[0]
            between[-1] = 2 * distinct[-1] - between[-2]
    if len(distinct) >= bins:
        levels = np.arange(1, bins) / bins
        quantiles = np.unique(np.nanquantile(values, levels, method="inverted_cdf"))
        between = between[np.searchsorted(distinct, quantiles)]
    # The lowest bin is empty in training: it holds what is below everything seen, which no quantile would notice.
    return np.unique(np.append(between, lowest if np.isfinite(lowest) else between))


def _counted(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Histogram:
    missing = np.isnan(values)
    places = np.searchsorted(edges, values[~missing], side="left")
    return Histogram(edges, np.bincount(places, minlength=len(edges) + 1), int(missing.sum()))
