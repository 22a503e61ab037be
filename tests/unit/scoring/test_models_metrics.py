"""Metrics of scores, and the windows a model is trained on, against slow and obvious versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from scoring.models.dataset import NEVER, DatasetError, DataWindow, LabelledRows, split
from scoring.models.metrics import (
    LEAST_FLAGGED,
    at_thresholds,
    flagging_thresholds,
    measure,
    suggested_threshold,
)

DAY = 86_400_000_000
scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 1.0]), st.booleans(), st.integers(0, 50)),
    min_size=1,
    max_size=90,
)


def columns(rows: list[tuple[float, bool, int]]) -> tuple[NDArray, NDArray, NDArray]:
    score, fraud, amount = zip(*rows, strict=True)
    return np.array(score), np.array(fraud), np.array(amount, float)


@given(scored, st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_the_suggested_threshold_is_the_lowest_that_is_precise_enough(
    rows: list[tuple[float, bool, int]], target: float
) -> None:
    score, fraud, _ = columns(rows)
    good = [
        level
        for level in sorted(set(score.tolist()))
        if (score >= level).sum() >= LEAST_FLAGGED and fraud[score >= level].mean() >= target
    ]
    assert suggested_threshold(score, fraud, target) == (good[0] if good else None)


@given(scored)
def test_a_threshold_is_counted_row_by_row(rows: list[tuple[float, bool, int]]) -> None:
    score, fraud, amount = columns(rows)
    (row,) = at_thresholds(score, fraud, amount, [0.5])
    flagged = [each for each in rows if each[0] >= 0.5]
    hits = [each for each in flagged if each[1]]
    frauds = [each for each in rows if each[1]]
    assert (row.flagged, row.frauds) == (len(flagged), len(hits))
    assert row.precision == (len(hits) / len(flagged) if flagged else None)
    assert row.recall == (len(hits) / len(frauds) if frauds else None)
    assert row.money == sum(each[2] for each in hits)
    assert row.genuine_money == sum(each[2] for each in flagged if not each[1])
    total = sum(each[2] for each in frauds)
    assert row.money_recall == (pytest.approx(row.money / total) if total else None)


def test_all_metrics_of_one_score() -> None:
    random = np.random.default_rng(3)
    fraud = random.random(4000) < 0.05
    score = np.clip(0.3 * fraud + random.random(4000) * 0.7, 0, 1)
    amount = random.lognormal(3, 1, 4000)
    found = measure(
        score,
        fraud,
        amount,
        customer=random.integers(0, 900, 4000),
        time_us=np.sort(random.integers(0, 5 * DAY, 4000)),
        target_precision=0.4,
    )
    assert found.roc_auc == pytest.approx(roc_auc_score(fraud, score))
    assert found.average_precision == pytest.approx(average_precision_score(fraud, score))
    assert found.card_precision_100 is not None
    assert 0 < found.card_precision_100 < 1
    assert found.suggested_threshold in [each.threshold for each in found.thresholds]
    suggested = next(each for each in found.thresholds if each.threshold == found.suggested_threshold)
    assert suggested.precision >= 0.4
    for share in (0.01, 0.05):
        assert any(abs(each.flagged - share * 4000) <= 1 for each in found.thresholds)


def test_metrics_say_none_where_nothing_can_be_measured() -> None:
    nothing = measure(np.zeros(30), np.zeros(30, bool), np.ones(30))
    assert (nothing.roc_auc, nothing.average_precision, nothing.suggested_threshold) == (None, None, None)
    assert flagging_thresholds(np.empty(0), [0.1]) == []
    with pytest.raises(ValueError, match="missing"):
        measure(np.array([0.5, np.nan]), np.array([True, False]), np.ones(2))


def labelled(times: list[int], known: list[int], value: float = 0.0) -> LabelledRows:
    n = len(times)
    return LabelledRows(
        names=("a",),
        features=np.full((n, 1), value),
        fraud_known_us=np.array(known, np.int64),
        time_us=np.array(times, np.int64),
        amount=np.ones(n),
        customer=np.zeros(n, np.int64),
        weight=np.ones(n),
    )


WINDOW = DataWindow(0, 10 * DAY, 7 * DAY, 24 * DAY)


def test_a_label_known_after_the_gap_does_not_reach_training() -> None:
    rows = labelled(
        [1, 2 * DAY, 9 * DAY, 12 * DAY, 17 * DAY, 20 * DAY, 24 * DAY],
        [16 * DAY, 17 * DAY, 17 * DAY + 1, 13 * DAY, 30 * DAY, NEVER, NEVER],
    )
    parts = split(rows, WINDOW)
    # 9 d became known a microsecond after the model could have gone to work; 12 d lies in the gap; 24 d after the end
    assert parts.train_fraud.tolist() == [True, True, False]
    assert parts.valid.time_us.tolist() == [17 * DAY, 20 * DAY]
    assert parts.valid_fraud.tolist() == [True, False]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=60),
    st.integers(0, 12),
    st.integers(1, 10),
    st.integers(0, 8),
    st.integers(1, 10),
)
def test_no_row_and_no_label_of_the_future_is_in_training(
    events: list[tuple[int, int]], first: int, train: int, delay: int, valid: int
) -> None:
    events = sorted(events)
    rows = labelled([time for time, _ in events], [time + wait for time, wait in events])
    window = DataWindow(first, first + train, delay, first + train + delay + valid)
    try:
        parts = split(rows, window)
    except DatasetError:
        return
    start = parts.valid.time_us.min()
    assert parts.train.time_us.max() + delay < start + 1
    assert (parts.train.time_us < window.train_until_us).all()
    assert (parts.train.fraud_known_us[parts.train_fraud] <= window.valid_first_us).all()
    assert (parts.valid.time_us >= window.valid_first_us).all()
    assert (parts.valid.time_us < window.valid_until_us).all()


@pytest.mark.parametrize(
    ("rows", "window", "words"),
    [
        (labelled([1], [NEVER]), WINDOW, "no fraud"),
        (labelled([1, 2], [3, 4]), WINDOW, "nothing but fraud"),
        (labelled([20 * DAY], [NEVER]), WINDOW, "no transaction"),
        (labelled([1, 2], [3, NEVER]), WINDOW, "validation window holds no"),
        (labelled([1], [1]), DataWindow(5, 5, 0, 9), "training window is empty"),
        (labelled([1], [1]), DataWindow(0, 5, 9, 14), "nothing is left"),
        (labelled([1], [1]), DataWindow(0, 5, -1, 14), "negative"),
    ],
)
def test_windows_that_allow_no_training_say_why(rows: LabelledRows, window: DataWindow, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        split(rows, window)


def test_windows_counted_back_from_an_end() -> None:
    window = DataWindow.ending(100, train_us=30, valid_us=10, label_delay_us=7)
    assert (window.train_first_us, window.train_until_us, window.valid_first_us) == (53, 83, 90)


def test_rows_that_contradict_themselves_are_refused() -> None:
    good = labelled([1, 2], [NEVER, NEVER])
    with pytest.raises(DatasetError, match="time order"):
        labelled([2, 1], [NEVER, NEVER])
    with pytest.raises(DatasetError, match="weight"):
        LabelledRows(**{**good.__dict__, "weight": np.array([1.0, 0.0])})
    with pytest.raises(DatasetError, match="names"):
        LabelledRows(**{**good.__dict__, "names": ("a", "a"), "features": np.zeros((2, 2))})
    with pytest.raises(DatasetError, match="float64"):
        LabelledRows(**{**good.__dict__, "features": np.zeros((2, 1), np.float32)})
    with pytest.raises(DatasetError, match="amount has 1"):
        LabelledRows(**{**good.__dict__, "amount": np.ones(1)})
