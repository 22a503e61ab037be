"""Drift measures against hand computations and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from scoring.drift import (
    FINE_BINS,
    LEAST_SHARE,
    Histogram,
    baseline,
    drift_of,
    drift_report,
    ks,
    ks_critical,
    psi,
)


def histogram(counts: list[int], missing: int = 0) -> Histogram:
    return Histogram(np.arange(len(counts) - 1, dtype=float), np.array(counts), missing)


def test_psi_by_hand() -> None:
    then, now = histogram([50, 30, 20]), histogram([20, 30, 50])
    # (0.2 - 0.5) ln(0.2 / 0.5) + 0 + (0.5 - 0.2) ln(0.5 / 0.2); the empty bins for missing values cancel out
    assert psi(then, now) == pytest.approx(0.6 * math.log(2.5))
    assert psi(then, then) == 0


def test_an_empty_bin_counts_as_the_least_share() -> None:
    then, now = histogram([100, 0]), histogram([90, 0], missing=10)
    by_hand = (0.9 - 1) * math.log(0.9) + (0.1 - LEAST_SHARE) * math.log(0.1 / LEAST_SHARE)
    assert psi(then, now) == pytest.approx(by_hand)


def test_nothing_to_compare_is_nan() -> None:
    assert math.isnan(psi(histogram([0, 0]), histogram([1, 1])))
    assert math.isnan(ks(histogram([3, 4]), histogram([0, 0], missing=2)))
    assert math.isnan(ks_critical(0, 5))


numbers = st.lists(st.integers(-30, 30).map(float) | st.just(math.nan), min_size=1, max_size=120)


@given(numbers, numbers)
def test_ks_is_scipys_while_every_distinct_value_is_an_edge(then: list[float], now: list[float]) -> None:
    # Values of "now" that training never saw lie between edges: take those it saw.
    seen = [each for each in now if each in then or math.isnan(each)]
    found = drift_of("x", baseline(np.array(then)), np.array(seen))
    a, b = (np.array([x for x in each if x == x]) for each in (then, seen))
    if not len(a) or not len(b):
        assert math.isnan(found.ks)
        return
    with np.errstate(all="ignore"):  # its p value of one value
        expected = ks_2samp(a, b, method="asymp").statistic
    assert found.ks == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([1.0, 1.5]))
def test_ks_of_many_values_misses_at_most_one_bin(seed: int, shift: float, scale: float) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=5000), random.normal(shift, scale, size=2000)
    found = drift_of("x", baseline(a), b).ks
    exact = ks_2samp(a, b, method="asymp").statistic
    fine = baseline(a).fine
    resolution = max((fine.counts / 5000).max(), (fine.of(b).counts / 2000).max())
    assert exact - resolution <= found <= exact + 1e-12


def test_the_critical_value_has_a_p_of_one_in_a_hundred() -> None:
    random = np.random.default_rng(1)
    below = above = 0
    for _ in range(60):
        a, b = random.normal(size=400), random.normal(0.17, size=600)
        result = ks_2samp(a, b, method="asymp")
        beyond = result.statistic > ks_critical(400, 600)
        # Two asymptotic formulas agree except very near the border.
        if not 0.007 < result.pvalue < 0.014:
            assert beyond == (result.pvalue < 0.01)
            below, above = below + (not beyond), above + beyond
    assert below > 5
    assert above > 5


def test_bins_are_the_quantiles_of_training_and_hold_what_lies_outside() -> None:
    random = np.random.default_rng(0)
    then = baseline(random.normal(size=10_000))
    # ten bins of a tenth each, and one below everything seen
    assert then.coarse.counts.tolist() == [0, *[1000] * 10]
    assert len(then.fine.counts) == FINE_BINS + 1
    low = drift_of("x", then, np.full(500, -1e9))
    assert low.psi > 5
    assert low.ks == pytest.approx(1.0)
    constant = baseline(np.full(100, 7.0))
    assert drift_of("c", constant, np.full(50, 7.0)).level == "stable"
    for moved in (6.0, 8.0, math.nan, math.inf, -math.inf):
        assert drift_of("c", constant, np.full(50, moved)).level == "major", moved


def test_a_rounding_error_is_no_drift() -> None:
    """Scores of one model on another machine may differ in the last bit."""
    random = np.random.default_rng(0)
    for values in (random.choice([0.1, 0.25, 0.9], 3000), random.choice(random.random(400), 3000)):
        then = baseline(values)
        for moved in (values * (1 + 1e-12), values * (1 - 1e-12)):
            found = drift_of("score", then, moved)
            assert (found.psi, found.ks) == (0, 0)


def test_a_report_puts_the_worst_first() -> None:
    random = np.random.default_rng(0)
    then = {name: random.normal(size=4000) for name in ("same", "moved", "gone")}
    now = {
        "same": random.normal(size=3000),
        "moved": random.normal(0.4, size=3000),
        "gone": np.full(3000, np.nan),
    }
    score = random.random(4000)
    report = drift_report(
        {name: baseline(values) for name, values in then.items()}, baseline(score), now, score[:3000]
    )
    assert [each.name for each in report.features] == ["gone", "moved", "same"]
    assert [each.level for each in report.features] == ["major", "moderate", "stable"]
    assert (report.rows_then, report.rows_now, report.score.level, report.level) == (
        4000,
        3000,
        "stable",
        "major",
    )
    assert math.isnan(report.features[0].ks)
    assert report.features[0].missing_now == 1
    assert report.features[2].ks < report.features[2].critical


@pytest.mark.parametrize(
    ("edges", "counts", "missing"),
    [
        ([1.0, 1.0], [1, 1, 1], 0),
        ([1.0], [1], 0),
        ([1.0], [1, -1], 0),
        ([1.0], [1, 1], -1),
        ([math.nan], [1, 1], 0),
    ],
)
def test_histograms_that_are_none_are_refused(edges: list[float], counts: list[int], missing: int) -> None:
    with pytest.raises(ValueError, match="histogram"):
        Histogram(np.array(edges), np.array(counts), missing)


def test_columns_of_any_values_have_a_baseline_and_do_not_drift_from_themselves():
    # Warnings are errors here: infinities and numbers near the end of the range are values like others.
    for values in (
        np.array([np.inf, -np.inf] * 50),
        np.array([1e308, -1e308] * 50),
        np.array([5e-324, 0.0] * 50),
        np.array([np.nan, 1.0, np.inf] * 30),
        np.full(50, np.nan),
        np.ones(50),
    ):
        found = drift_of("x", baseline(values), values)
        assert (found.psi, found.level) == (0.0, "stable")
        assert found.ks == 0.0 or np.isnan(values).all()
