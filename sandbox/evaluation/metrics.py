"""Ranking metrics of the Fraud Detection Handbook (chapter 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from sandbox.evaluation.results import Quality
from scoring.models.metrics import card_precision


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
