"""Features made of other features of the same row, columnwise, after the windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.features.columns import number_column
from scoring.features.spec import Derivation, DerivedFeature, FeatureSpec, WindowFeature, evaluation_order
from scoring.schema import TransactionBatch

_NOISE = 1e-12  # a spread this much smaller than the mean is rounding


class Derivations:
    """The derived features of a spec, in an order in which each comes after those it refers to."""

    def __init__(self, spec: FeatureSpec) -> None:
        places = {name: place for place, name in enumerate(spec.names)}
        self._steps: list[tuple[int, DerivedFeature, int, int, str | None]] = []
        for place in evaluation_order(spec):
            feature = spec.features[place]
            assert isinstance(feature, DerivedFeature)
            value = None
            if feature.derivation is Derivation.ZSCORE:
                mean = spec.features[places[feature.first]]
                assert isinstance(mean, WindowFeature)
                value = mean.value
            self._steps.append((place, feature, places[feature.first], places[feature.second], value))

    def fill(self, batch: TransactionBatch, values: NDArray[np.float64], applied: NDArray[np.bool_]) -> None:
        """Write the derived columns of ``values`` float64 [n, f]; rows not in ``applied`` bool [n] become NaN."""
        for place, feature, first, second, value in self._steps:
            one, other = values[:, first], values[:, second]
            if value is not None:
                # where all values are equal their spread is rounding, no measure of anything
                other = np.where(other > _NOISE * np.abs(one), other, 0.0)
                one = number_column(batch, value) - one
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                result = one - other if feature.derivation is Derivation.DIFFERENCE else one / other
            result = np.where(np.isfinite(result), result, feature.empty)
            values[:, place] = np.where(applied, result, np.nan)
