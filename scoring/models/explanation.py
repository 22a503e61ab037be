"""Why a model scored a transaction as it did, in words: the features that spoke loudest for fraud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.models.served import ServedModel

TOP = 3


@dataclass(frozen=True)
class Contribution:
    """One feature's part of a score: ``log_odds`` added to the mean transaction's, ``value`` as the model read it.

    ``share``: of all log odds that speak for fraud in this row.
    """

    feature: str
    value: float
    log_odds: float
    share: float
    text: str


def top_reasons(
    model: ServedModel,
    matrix: NDArray[np.float32],
    *,
    top: int = TOP,
    words: Mapping[str, str] | None = None,
) -> list[tuple[Contribution, ...]]:
    """For each row float32 [n, f] the ``top`` features that raised its score most, greatest first.

    Rows that nothing raised have none. ``words``: what features are called (a feature's own name otherwise).
    """
    phi = model.contributions(matrix)
    order = np.argsort(-phi, axis=1, kind="stable")[:, :top]
    raised = np.where(phi > 0, phi, 0.0).sum(axis=1)
    return [
        tuple(
            _contribution(model, words or {}, int(place), matrix[row], phi[row], float(raised[row]))
            for place in order[row]
            if phi[row, place] > 0
        )
        for row in range(len(matrix))
    ]


def _contribution(
    model: ServedModel,
    words: Mapping[str, str],
    place: int,
    row: NDArray[np.float32],
    phi: NDArray[np.float64],
    raised: float,
) -> Contribution:
    name = model.features[place]
    value, log_odds = float(row[place]), float(phi[place])
    share = log_odds / raised
    text = f"{words.get(name, name)} is {_shown(value)}: {share:.0%} of what speaks for fraud"
    return Contribution(name, value, log_odds, share, text)


def _shown(value: float) -> str:
    if np.isnan(value):
        return "not known"
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
