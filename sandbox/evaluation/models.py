"""The handbook's two reference models: standardised features, ``random_state=0``, otherwise scikit-learn's defaults."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sandbox.evaluation.results import FOREST, LOGISTIC

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def train_and_score(
    model: str, x: Floats, fraud: npt.NDArray[np.int8], train: Mask, test: Mask, n_jobs: int
) -> Floats | None:
    """Scores in [0, 1] of the ``test`` rows of ``x`` by a model of the ``train`` rows.

    Undefined features (NaN, infinite) count as 0. ``None`` when the training rows hold only one class.
    """
    outcome = fraud[train]
    if len(np.unique(outcome)) < 2:
        return None
    scaler = StandardScaler()
    rows = scaler.fit_transform(_defined(x[train]))
    if model == FOREST:
        classifier = RandomForestClassifier(random_state=0, n_jobs=n_jobs)
    elif model == LOGISTIC:
        classifier = LogisticRegression(random_state=0, max_iter=2_000)
    else:
        raise ValueError(f"no model {model!r}: {FOREST!r} or {LOGISTIC!r}")
    classifier.fit(rows, outcome)
    if not test.any():
        return np.empty(0)
    scores: Floats = classifier.predict_proba(scaler.transform(_defined(x[test])))[:, 1]
    return scores


def _defined(x: Floats) -> Floats:
    return np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
