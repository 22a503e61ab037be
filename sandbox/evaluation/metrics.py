"""Ranking metrics of the Fraud Detection Handbook (chapter 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from sandbox.evaluation.results import Quality

TOP = 100


def card_precision(
    score: npt.NDArray[np.float64],
    fraud: npt.NDArray[np.int8],
    customer: npt.NDArray[np.int64],
    day: npt.NDArray[np.int64],
    top: int = TOP,
) -> float | None:
    """Mean over days of the share of frauds among the ``top`` customers by highest score of the day.

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


def quality(
    score: npt.NDArray[np.float64],
    fraud: npt.NDArray[np.int8],
    customer: npt.NDArray[np.int64],
    day: npt.NDArray[np.int64],
) -> Quality:
    """ROC AUC, average precision and card precision@100 of rows in time order."""
    rows, frauds = len(fraud), int((fraud == 1).sum())
    if frauds in (0, rows):
        why = "no test rows" if not rows else "no fraud in the test rows" if not frauds else "only fraud"
        return Quality(rows, frauds, None, None, None, why)
    return Quality(
        rows=rows,
        frauds=frauds,
        roc_auc=float(roc_auc_score(fraud, score)),
        average_precision=float(average_precision_score(fraud, score)),
        card_precision_100=card_precision(score, fraud, customer, day),
    )
