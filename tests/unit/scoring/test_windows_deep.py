"""Trees of several levels and windows beyond what is scanned: every aggregation against SciPy, NumPy and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import datasketches
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from scoring.features import Aggregation, FeatureEngine, FeatureMatrix, FeatureSpec, WindowFeature
from scoring.features.kernel import SAMPLE, SCAN
from scoring.features.windows import EntityWindows
from scoring.schema import TransactionBatch, transaction_batch

SECOND = 1_000_000
DAY = 86_400 * SECOND
T = 1_700_000_000 * SECOND
VALUED = (
    *(Aggregation.SUM, Aggregation.MEAN, Aggregation.VARIANCE, Aggregation.STD, Aggregation.SKEWNESS),
    *(Aggregation.KURTOSIS, Aggregation.MIN, Aggregation.MAX, Aggregation.RANGE, Aggregation.FIRST),
    *(Aggregation.LAST, Aggregation.RUN_UP, Aggregation.RUN_DOWN, Aggregation.LONGEST_UP),
    *(Aggregation.LONGEST_DOWN, Aggregation.SLOPE, Aggregation.QUANTILE),
)
TIMED = (Aggregation.COUNT, Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST)
CATEGORIES = (Aggregation.DISTINCT, Aggregation.ENTROPY)


def every_aggregation(window_us: int, filter_: str | None = None) -> FeatureSpec:
    """Named after their aggregation; moments m2 .. m6."""

    def feature(kind: Aggregation, value: str | None, name: str = "", **more: float) -> WindowFeature:
        quantile = 0.9 if kind is Aggregation.QUANTILE else math.nan
        return WindowFeature(
            name or str(kind), "customer", kind, window_us, value, filter=filter_, quantile=quantile, **more
        )

    return FeatureSpec(
        (
            *(feature(kind, "amount") for kind in VALUED),
            *(feature(kind, None) for kind in TIMED),
            *(feature(kind, "terminal") for kind in CATEGORIES),
            *(feature(Aggregation.MOMENT, "amount", f"m{k}", moment=k) for k in range(2, 7)),
        ),
        lateness_us=2000 * SECOND,
    )


def rows_of(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    terminals: NDArray[np.int64],
    ids: NDArray[np.int64] | None = None,
    correction: NDArray[np.bool_] | None = None,
) -> TransactionBatch:
    n = len(times)
    return transaction_batch(
        event_id=np.arange(n) if ids is None else ids,
        time_us=times,
        amount=amounts,
        channel="card",
        entities={"customer": np.ones(n, np.int64), "terminal": terminals},
        correction=correction,
    )


def longest_run(x: NDArray[np.float64]) -> int:
    breaks = np.flatnonzero(np.diff(x) <= 0) + 1
    return int(np.diff([0, *breaks, len(x)]).max())


def last_run(x: NDArray[np.float64]) -> int:
    breaks = np.flatnonzero(np.diff(x) <= 0) + 1
    return len(x) - int(breaks[-1] if len(breaks) else 0)


def expected(
    times: NDArray[np.int64], x: NDArray[np.float64], terminals: NDArray[np.int64]
) -> dict[str, float]:
    """All features of a window whose events are given in order; the last is the current one."""
    hours = (times - times[0]) / 3.6e9
    _, counts = np.unique(terminals, return_counts=True)
    return {
        "count": len(x),
        "sum": math.fsum(x),
        "mean": math.fsum(x) / len(x),
        "variance": np.var(x, ddof=1),
        "std": np.std(x, ddof=1),
        "skewness": stats.skew(x),
        "kurtosis": stats.kurtosis(x),
        "min": x.min(),
        "max": x.max(),
        "range": x.max() - x.min(),
        "first": x[0],
        "last": x[-1],
        "run_up": last_run(x),
        "run_down": last_run(-x),
        "longest_up": longest_run(x),
        "longest_down": longest_run(-x),
        "slope": stats.linregress(hours, x).slope,
        "quantile": np.quantile(x, 0.9),
        "time_since_first": (times[-1] - times[0]) / SECOND,
        "time_since_last": (times[-1] - times[-2]) / SECOND,
        "distinct": len(counts),
        "entropy": stats.entropy(counts),
        **{f"m{k}": stats.moment(x, k) for k in range(2, 7)},
    }


def test_every_aggregation_over_thousands_of_events_with_late_ones_and_corrections() -> None:
    events, window = 5000, 2500 * SECOND
    random = np.random.default_rng(7)
    times = T + np.arange(events, dtype=np.int64) * SECOND
    late = random.random(events) < 0.2
    times[late] -= random.integers(0, 1900, late.sum()) * SECOND
    amounts = np.round(random.lognormal(3, 1, events), 2)
    terminals = random.integers(1, 300, events)
    ids = np.arange(events)
    correction = random.random(events) < 0.1
    correction[:400] = False
    for i in np.flatnonzero(correction):
        ids[i] = ids[random.integers(i - 400, i)]
    matrix = FeatureEngine(every_aggregation(window)).update(
        rows_of(times, amounts, terminals, ids, correction)
    )
    current: dict[int, int] = {}
    checked = 0
    for i in range(events):
        current[int(ids[i])] = i
        if i % 23:
            continue
        # the row that stands for each id, in the order of (time, first arrival of the id)
        standing = np.array(list(current.values()))
        order = np.lexsort((ids[standing], times[standing]))
        standing = standing[order]
        inside = (times[standing] > times[i] - window) & (
            (times[standing] < times[i]) | ((times[standing] == times[i]) & (ids[standing] <= ids[i]))
        )
        standing = standing[inside]
        if len(standing) < 3:
            continue
        checked += 1
        for name, wanted in expected(times[standing], amounts[standing], terminals[standing]).items():
            assert matrix.column(name)[i] == pytest.approx(wanted, rel=1e-9, abs=1e-9), (i, name)
    assert checked > 150


@pytest.mark.parametrize("leaves", [32, 32 * 32])
def test_a_late_event_that_splits_the_last_leaf_of_full_nodes_counts_once(leaves: int) -> None:
    """The new half goes to a new sibling of the full node, which no longer has the events in it."""
    events = 64 * leaves
    order = np.append(np.arange(events) * SECOND, [(events - 10) * SECOND + 1, (events + 5) * SECOND])
    spec = FeatureSpec(
        (
            WindowFeature("count", "customer", Aggregation.COUNT, DAY),
            WindowFeature("sum", "customer", Aggregation.SUM, DAY, "amount"),
            WindowFeature("distinct", "customer", Aggregation.DISTINCT, DAY, "terminal"),
        )
    )
    rows = rows_of(T + order, np.ones(events + 2), np.ones(events + 2, np.int64))
    assert FeatureEngine(spec).update(rows).values[-1].tolist() == [events + 2, events + 2, 1]


def hot(events: int, categories: int, seed: int = 3) -> TransactionBatch:
    """One customer with a skewed choice of terminals."""
    random = np.random.default_rng(seed)
    terminals = np.minimum(random.geometric(1 / 80, events), categories)
    return rows_of(
        T + np.arange(events, dtype=np.int64) * SECOND,
        np.round(random.lognormal(3, 1, events), 4),
        np.where(random.random(events) < 0.4, random.integers(1, categories, events), terminals),
    )


def in_pieces(spec: FeatureSpec, batch: TransactionBatch, cuts: list[int]) -> NDArray[np.float64]:
    engine = FeatureEngine(spec)
    return np.concatenate(
        [
            engine.update(batch.take(slice(begin, end))).values
            for begin, end in zip([0, *cuts], [*cuts, len(batch)], strict=True)
        ]
    )


TOLD = FeatureSpec(
    (
        WindowFeature("short", "customer", Aggregation.DISTINCT, 3000 * SECOND, "terminal"),
        WindowFeature("distinct", "customer", Aggregation.DISTINCT, 9000 * SECOND, "terminal"),
        WindowFeature("long", "customer", Aggregation.DISTINCT, DAY, "terminal"),
        WindowFeature("delayed", "customer", Aggregation.DISTINCT, DAY, "terminal", delay_us=500 * SECOND),
        WindowFeature("entropy", "customer", Aggregation.ENTROPY, 9000 * SECOND, "terminal"),
        WindowFeature("median", "customer", Aggregation.QUANTILE, 9000 * SECOND, "amount", quantile=0.5),
        WindowFeature("high", "customer", Aggregation.QUANTILE, 9000 * SECOND, "amount", quantile=0.99),
        WindowFeature(
            "few", "customer", Aggregation.QUANTILE, 9000 * SECOND, "amount", filter="odd", quantile=0.5
        ),
    )
)


def test_windows_beyond_the_scan_are_estimated_within_their_bounds() -> None:
    events = 14_000
    batch = hot(events, 5000)
    odd = np.arange(events) % 7 == 0
    engine = FeatureEngine(TOLD)
    parts: list[FeatureMatrix] = []
    for begin in range(0, events, 1000):
        part = slice(begin, begin + 1000)
        parts.append(engine.update(batch.take(part), filters={"odd": odd[part]}))
    values = np.concatenate([matrix.values for matrix in parts])
    column = {name: values[:, place] for place, name in enumerate(TOLD.names)}
    terminals, amounts = batch.entities["terminal"], batch.amount
    errors = []
    for i in range(400, events, 400):
        window = slice(max(0, i - 8999), i + 1)
        size = window.stop - window.start
        told, counts = np.unique(terminals[window], return_counts=True)
        assert column["short"][i] == len(np.unique(terminals[max(0, i - 2999) : i + 1]))
        passing = amounts[window][odd[window]]  # few pass: exact however many do not
        assert len(passing) < SCAN
        assert column["few"][i] == pytest.approx(np.quantile(passing, 0.5), rel=1e-12)
        if size <= SCAN:
            assert column["distinct"][i] == len(told)
            assert column["entropy"][i] == pytest.approx(stats.entropy(counts), rel=1e-12)
            assert column["median"][i] == pytest.approx(np.quantile(amounts[window], 0.5), rel=1e-12)
            continue
        errors += [column["distinct"][i] / len(told) - 1]
        errors += [column["long"][i] / len(np.unique(terminals[: i + 1])) - 1]
        errors += [column["delayed"][i] / len(np.unique(terminals[: i - 499])) - 1]
        # bias within log(1 + (m - 1) / n), deviation within log(n) / sqrt(n) (Paninski 2003)
        bound = math.log1p((len(told) - 1) / SAMPLE) + 4 * math.log(SAMPLE) / math.sqrt(SAMPLE)
        assert abs(column["entropy"][i] - stats.entropy(counts)) < bound
        for name, q in (("median", 0.5), ("high", 0.99)):
            rank = np.mean(amounts[window] <= column[name][i])
            assert abs(rank - q) < 0.05  # exceeded with probability 2 exp(-2 SAMPLE 0.05^2) = 7e-5
    assert len(errors) > 60
    assert max(abs(error) for error in errors) < 0.1  # 4.3 standard errors
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.04


def test_the_registers_agree_with_the_library() -> None:
    for categories in (900, 30_000):
        batch = hot(20_000, categories, seed=categories)
        spec = FeatureSpec((WindowFeature("d", "customer", Aggregation.DISTINCT, DAY, "terminal"),))
        ours = FeatureEngine(spec).update(batch).column("d")[-1]
        sketch = datasketches.hll_sketch(11)
        for key in batch.entities["terminal"].tolist():
            sketch.update(key)
        assert ours == pytest.approx(sketch.get_estimate(), rel=0.1)
        assert ours == pytest.approx(len(np.unique(batch.entities["terminal"])), rel=0.1)


def test_estimates_do_not_depend_on_batches_or_a_restart() -> None:
    batch = hot(9000, 2000)
    told = FeatureSpec(TOLD.windows[:-1])
    whole = in_pieces(told, batch, [])
    assert in_pieces(told, batch, [1, 4095, 4097, 8000]).tobytes() == whole.tobytes()
    engine = FeatureEngine(told)
    engine.update(batch.take(slice(0, 6000)))
    restored = FeatureEngine(told)
    restored.restore(engine.state())
    assert restored.update(batch.take(slice(6000, 9000))).values.tobytes() == whole[6000:].tobytes()


def test_evicted_keys_leave_the_registers() -> None:
    """Terminals seen only before the window do not count, whatever the registers of inner nodes once held."""
    events = 16_000
    terminals = np.where(np.arange(events) < 8000, np.arange(events) + 10, np.arange(events) % 5)
    batch = rows_of(T + np.arange(events, dtype=np.int64) * SECOND, np.ones(events), terminals)
    spec = FeatureSpec(
        (WindowFeature("d", "customer", Aggregation.DISTINCT, 6000 * SECOND, "terminal"),), lateness_us=0
    )
    distinct = FeatureEngine(spec).update(batch).column("d")
    assert distinct[7000] == pytest.approx(6000, rel=0.1)
    assert distinct[15_000] == 5


def powers(xs: list[float], k: int) -> float:
    exact = [Fraction(x) for x in xs]
    mean = sum(exact) / len(exact)
    return float(sum((x - mean) ** k for x in exact) / len(exact))


@pytest.mark.parametrize("case", ["an outlier has left", "a spread of one on a thousand million"])
def test_moments_hold_their_bound(case: str) -> None:
    window, n = 700, 2200
    random = np.random.default_rng(11)
    if case == "an outlier has left":
        amounts, size = random.normal(100, 1, n), 105.0
        amounts[1000] = 1e9
    else:
        amounts, size = 1e9 + np.where(random.random(n) < 0.3, 1.0, -1.0), 1e9
    spec = every_aggregation(window * SECOND)
    rows = rows_of(T + np.arange(n, dtype=np.int64) * SECOND, amounts, np.ones(n, np.int64))
    matrix = FeatureEngine(spec).update(rows)
    for i in range(1000 + window, n, 61):
        xs = amounts[i - window + 1 : i + 1].tolist()
        for k in range(2, 7):
            # well inside the bound, 1e-9 * size^k: the states are about their own means
            assert matrix.column(f"m{k}")[i] == pytest.approx(powers(xs, k), rel=1e-6)
            assert abs(matrix.column(f"m{k}")[i] - powers(xs, k)) <= 1e-9 * size**k
        variance = powers(xs, 2)
        assert matrix.column("skewness")[i] == pytest.approx(powers(xs, 3) / variance**1.5, rel=1e-5)
        assert matrix.column("kurtosis")[i] == pytest.approx(powers(xs, 4) / variance**2 - 3, rel=1e-5)
        hours = np.arange(window) / 3600
        slope = float(
            sum(Fraction(x) * (2 * j - window + 1) for j, x in enumerate(xs))
            / sum(Fraction(2 * j - window + 1) ** 2 for j in range(window))
            * 2
            * 3600
        )
        assert matrix.column("slope")[i] == pytest.approx(slope, abs=1e-9 * size / hours[-1])


def busy(events: int, seed: int) -> TransactionBatch:
    """Three customers in bursts, most of it one's, with late events, equal times and corrections."""
    random = np.random.default_rng(seed)
    times = T + np.cumsum(random.integers(0, 2, events)) * SECOND
    late = random.random(events) < 0.1
    times[late] -= random.integers(0, 1500, late.sum()) * SECOND
    ids = np.arange(events)
    correction = random.random(events) < 0.05
    correction[:400] = False
    ids[correction] -= random.integers(1, 400, correction.sum())
    bursts = np.repeat(random.choice([1, 1, 1, 2, 3], events // 50 + 1), 50)[:events]
    return transaction_batch(
        event_id=ids,
        time_us=times,
        amount=np.round(random.lognormal(3, 1, events), 2),
        channel="card",
        entities={"customer": bursts, "terminal": random.geometric(1 / 900, events)},
        correction=correction,
    )


CARRIED = FeatureSpec(
    (
        *(
            WindowFeature(
                f"{kind}_{width}_{delay}", "customer", kind, width * SECOND, "terminal", delay_us=delay
            )
            for kind in CATEGORIES
            for width, delay in ((900, 0), (4000, 0), (4000, 300 * SECOND))
        ),
        *(
            WindowFeature(
                f"q{quantile}_{width}_{others}",
                "customer",
                Aggregation.QUANTILE,
                width * SECOND,
                "amount",
                quantile=quantile,
                exclude_current=others,
            )
            for quantile in (0.0, 0.5, 0.99)
            for width, others in ((900, False), (4000, False), (4000, True))
        ),
    ),
    lateness_us=1800 * SECOND,
)


def test_what_is_carried_over_between_events_is_what_collecting_anew_gives() -> None:
    """An engine that forgets what it carries over (as after a restart before every few events) answers the same."""
    events = 16_000
    batch = busy(events, 5)
    whole = FeatureEngine(CARRIED).update(batch).values
    engine = FeatureEngine(CARRIED)
    windows = engine._tables["customer"]
    assert isinstance(windows, EntityWindows)
    pieces = []
    for begin in range(0, events, 2):
        windows.forget()
        pieces.append(engine.update(batch.take(slice(begin, begin + 2))).values)
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert np.nanmax(whole[:, CARRIED.names.index("distinct_4000_0")]) > 700


def test_the_sample_is_the_events_with_the_lowest_lots() -> None:
    events, width = 30_000, 20_000
    batch = hot(events, 3000)
    spec = FeatureSpec(
        (
            WindowFeature("median", "customer", Aggregation.QUANTILE, width * SECOND, "amount", quantile=0.5),
            WindowFeature("entropy", "customer", Aggregation.ENTROPY, width * SECOND, "terminal"),
        )
    )
    values = np.concatenate(
        [FeatureEngine(spec).update(batch).values, in_pieces(spec, batch, list(range(500, events, 500)))]
    ).reshape(2, events, 2)
    assert values[0].tobytes() == values[1].tobytes()
    lots = lots_of(np.arange(events, dtype=np.uint64))
    for i in range(SCAN, events, 777):
        window = np.arange(max(0, i - width + 1), i + 1)
        steps = np.rint(2.0**32 * np.exp2(-np.arange(200) / 32))
        limit = steps[steps >= SAMPLE * 2**32 // len(window)][-1]
        drawn = window[lots[window] < limit]
        assert abs(len(drawn) / SAMPLE - 1) < 0.12
        assert values[0][i, 0] == pytest.approx(np.quantile(batch.amount[drawn], 0.5), rel=1e-12)
        _, counts = np.unique(batch.entities["terminal"][drawn], return_counts=True)
        wanted = stats.entropy(counts) + (len(counts) - 1) / (2 * len(drawn))
        assert values[0][i, 1] == pytest.approx(wanted, rel=1e-12)


def lots_of(arrival: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The upper halves of SplitMix64's numbers."""
    with np.errstate(over="ignore"):
        h = arrival + np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (h ^ (h >> np.uint64(31))) >> np.uint64(32)
