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
        self._steps: list[tuple[int, int, int, int, float, str | None]] = []
        for place in evaluation_order(spec):
            feature = spec.features[place]
            assert isinstance(feature, DerivedFeature)
            value = None
            if feature.derivation is Derivation.ZSCORE:
                mean = spec.features[places[feature.first]]
                assert isinstance(mean, WindowFeature)
                value = mean.value
            kind = _KINDS.index(feature.derivation)
            first, second = places[feature.first], places[feature.second]
            self._steps.append((place, first, second, kind, feature.empty, value))

    def fill(self, batch: TransactionBatch, values: NDArray[np.float64], applied: NDArray[np.bool_]) -> None:
        """Write the derived columns of ``values`` float64 [n, f]; rows not in ``applied`` bool [n] become NaN."""
        for place, first, second, kind, empty, value in self._steps:
            number = batch.amount if value is None else number_column(batch, value)
            _derive(values, applied, number, place, first, second, kind, empty)


@compiled
def _derive(
    values: NDArray[np.float64],
    applied: NDArray[np.bool_],
    number: NDArray[np.float64],
    place: int,
    first: int,
    second: int,
    kind: int,
    empty: float,
) -> None:
    for row in range(len(values)):
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
                one = number[row] - one
            result = np.nan if other == 0 else one / other
        values[row, place] = result if np.isfinite(result) else empty
