"""Features made of other features of the same row, columnwise, after the windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features.columns import number_column
from scoring.features.spec import Derivation, DerivedFeature, FeatureSpec, WindowFeature, evaluation_order
from scoring.schema import TransactionBatch

_KINDS = list(Derivation)
_DIFFERENCE, _ZSCORE = _KINDS.index(Derivation.DIFFERENCE), _KINDS.index(Derivation.ZSCORE)
_NOISE = 1e-12  # a spread this much smaller than the mean is rounding


class Derivations:
    """The derived features of a spec, in an order in which each comes after those it refers to."""

    def __init__(self, spec: FeatureSpec) -> None:
        places = {name: place for place, name in enumerate(spec.names)}
        steps: list[tuple[int, int, int, int, int]] = []
        empty: list[float] = []
        numbers: dict[str, int] = {"amount": 0}
        for place in evaluation_order(spec):
            feature = spec.features[place]
            assert isinstance(feature, DerivedFeature)
            value = None
            if feature.derivation is Derivation.ZSCORE:
                mean = spec.features[places[feature.first]]
                assert isinstance(mean, WindowFeature)
                value = mean.value
            number = numbers.setdefault(value or "amount", len(numbers))
            kind = _KINDS.index(feature.derivation)
            steps.append((place, places[feature.first], places[feature.second], kind, number))
            empty.append(feature.empty)
        self._numbers = tuple(numbers)
        self._steps = np.array(steps, np.int64).reshape(-1, 5)
        self._empty = np.array(empty, np.float64)

    def fill(self, batch: TransactionBatch, values: NDArray[np.float64], applied: NDArray[np.bool_]) -> None:
        """Write the derived columns of ``values`` float64 [n, f]; rows not in ``applied`` bool [n] become NaN."""
        if not len(self._steps):
            return
        numbers = np.empty((len(self._numbers), len(batch)))
        for place, name in enumerate(self._numbers):
            numbers[place] = number_column(batch, name)
        _derive(values, applied, numbers, self._steps, self._empty)


@compiled
def _derive(
    values: NDArray[np.float64],
    applied: NDArray[np.bool_],
    numbers: NDArray[np.float64],
    steps: NDArray[np.int64],
    empty: NDArray[np.float64],
) -> None:
    for row in range(len(values)):
        for step in range(len(steps)):
            place, first, second, kind, number = steps[step]
            if not applied[row]:
                values[row, place] = np.nan
                continue
            one, other = values[row, first], values[row, second]
            if kind == _DIFFERENCE:
                result = one - other
            else:
                if kind == _ZSCORE:
                    # where all values are equal their spread is rounding, no measure of anything
                    if not other > _NOISE * abs(one):
                        other = 0.0
                    one = numbers[number, row] - one
                result = np.nan if other == 0 else one / other
            values[row, place] = result if np.isfinite(result) else empty[step]
