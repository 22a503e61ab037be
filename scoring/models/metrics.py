"""How good a score is: ranking metrics, and what a threshold catches and disturbs, in frauds and in money."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

TOP_CARDS = 100
# Thresholds are shown at these shares of flagged transactions: what a fraud desk can work off.
FLAGGED_SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# A precision measured on fewer flagged transactions says nothing.
LEAST_FLAGGED = 20
_DAY_US = 86_400_000_000


class ThresholdRow(msgspec.Struct, frozen=True):
    """What flagging every score at or above ``threshold`` gives; ratios are None where nothing could be counted.

    ``money``: the amounts of flagged frauds; ``money_recall``: their share of all fraud amounts;
    ``genuine_money``: the amounts of genuine payments disturbed.
    """

    threshold: float
    flagged: int
    frauds: int
    precision: float | None
    recall: float | None
    money: float
    money_recall: float | None
    genuine_money: float


class Metrics(msgspec.Struct, frozen=True):
    """A model on rows it has not seen; None where the rows hold no fraud or nothing but fraud.

    ``suggested_threshold``: the lowest threshold at which precision reaches ``target_precision`` (None: none does).
    """

    rows: int
    frauds: int
    roc_auc: float | None
    average_precision: float | None
    card_precision_100: float | None
    thresholds: tuple[ThresholdRow, ...]
    target_precision: float
    suggested_threshold: float | None


def measure(
    score: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    amount: NDArray[np.float64],
    *,
    customer: NDArray[np.int64] | None = None,
    time_us: NDArray[np.int64] | None = None,
    target_precision: float = 0.9,
) -> Metrics:
    """All metrics of scores [n] in [0, 1], rows in time order. ``customer`` and ``time_us`` are for card precision.

    Raises ValueError for a score that is NaN. Imports scikit-learn.
    """
    if np.isnan(score).any():
        raise ValueError("a score is missing: only complete scores are measured")
    rows, frauds = len(fraud), int(fraud.sum())
    auc = average = cards = None
    if 0 < frauds < rows:
        from sklearn.metrics import average_precision_score, roc_auc_score

        auc, average = float(roc_auc_score(fraud, score)), float(average_precision_score(fraud, score))
        if customer is not None and time_us is not None:
            cards = card_precision(score, fraud.astype(np.int8), customer, time_us // _DAY_US)
    suggested = suggested_threshold(score, fraud, target_precision)
    shown = flagging_thresholds(score, FLAGGED_SHARES)
    if suggested is not None:
        shown = sorted({*shown, suggested})
    return Metrics(
        rows=rows,
        frauds=frauds,
        roc_auc=auc,
        average_precision=average,
        card_precision_100=cards,
        thresholds=at_thresholds(score, fraud, amount, shown),
        target_precision=target_precision,
        suggested_threshold=suggested,
    )


def flagging_thresholds(score: NDArray[np.float64], shares: Sequence[float]) -> list[float]:
    """The thresholds that flag about these shares of all rows, ascending and distinct."""
    if not len(score):
        return []
    levels = np.quantile(score, 1 - np.array(shares), method="inverted_cdf")
    return [float(level) for level in np.unique(levels)]


def at_thresholds(
    score: NDArray[np.float64],
    fraud: NDArray[np.bool_],
    amount: NDArray[np.float64],
    thresholds: Sequence[float],
) -> tuple[ThresholdRow, ...]:
    """One row for each threshold, in their order; ``amount`` float64 [n], NaN counts as nothing."""
    money = np.nan_to_num(amount)
    frauds, fraud_money = int(fraud.sum()), float(money[fraud].sum())
    rows = []
    for threshold in thresholds:
        flagged = score >= threshold
        count, hits = int(flagged.sum()), int((flagged & fraud).sum())
        caught = float(money[flagged & fraud].sum())
        rows.append(
            ThresholdRow(
                threshold=float(threshold),
                flagged=count,
                frauds=hits,
                precision=hits / count if count else None,
                recall=hits / frauds if frauds else None,
                money=caught,
                money_recall=caught / fraud_money if fraud_money else None,
                genuine_money=float(money[flagged & ~fraud].sum()),
            )
        )
    return tuple(rows)


def suggested_threshold(
    score: NDArray[np.float64], fraud: NDArray[np.bool_], precision: float
) -> float | None:
    """The lowest score that, as a threshold, flags with at least ``precision``; None if no score does.

    A threshold that flags fewer than ``LEAST_FLAGGED`` rows is not considered.
    """
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    flagged = np.arange(1, len(ranked) + 1)
    # Equal scores are flagged together: only the last of them is a threshold.
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    reached = np.cumsum(fraud[order]) >= precision * flagged
    good = np.flatnonzero(last & reached & (flagged >= LEAST_FLAGGED))
    return float(ranked[good[-1]]) if len(good) else None


def card_precision(
    score: NDArray[np.float64],
    fraud: NDArray[np.int8],
    customer: NDArray[np.int64],
    day: NDArray[np.int64],
    top: int = TOP_CARDS,
) -> float | None:
    """Card precision@k (Fraud Detection Handbook, chapter 4): mean over days of the share of frauds among the ``top``
    customers by highest score of the day.

    Customers found on an earlier day are dropped. Equal scores rank by first appearance on the day, so rows must be in
    time order. ``None`` without rows.
    """
    shares = []
    found = np.empty(0, customer.dtype)
    for today in np.unique(day):
        rows = np.flatnonzero((day == today) & ~np.isin(customer, found))
        if not len(rows):
            shares.append(0.0)
            continue
        names, first, position = np.unique(customer[rows], return_index=True, return_inverse=True)
        highest = np.full(len(names), -np.inf)
        np.maximum.at(highest, position, score[rows])
        is_fraud = np.zeros(len(names), bool)
        np.logical_or.at(is_fraud, position, fraud[rows] == 1)
        by_appearance = np.argsort(first, kind="stable")
        ranked = by_appearance[np.argsort(-highest[by_appearance], kind="stable")][:top]
        caught = ranked[is_fraud[ranked]]
        found = np.concatenate([found, names[caught]])
        shares.append(len(caught) / top)
    return float(np.mean(shares)) if shares else None
