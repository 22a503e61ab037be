"""Paned features of one entity kind arranged for ``pane_kernel``: shared lanes and tellings, groups, nested windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features import pane_kernel as kernel
from scoring.features.spec import Aggregation, SpecError, WindowFeature

TIME = "\0time"  # the value column of event times, which no attribute can be called
_KINDS = {
    Aggregation.COUNT: kernel.COUNT,
    Aggregation.SUM: kernel.SUM,
    Aggregation.MEAN: kernel.MEAN,
    Aggregation.VARIANCE: kernel.VARIANCE,
    Aggregation.STD: kernel.STD,
    Aggregation.SKEWNESS: kernel.SKEWNESS,
    Aggregation.KURTOSIS: kernel.KURTOSIS,
    Aggregation.MOMENT: kernel.MOMENT,
    Aggregation.MIN: kernel.MIN,
    Aggregation.MAX: kernel.MAX,
    Aggregation.RANGE: kernel.RANGE,
    Aggregation.RATE: kernel.RATE,
    Aggregation.DISTINCT: kernel.DISTINCT,
    Aggregation.TIME_SINCE_FIRST: kernel.SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST: kernel.SINCE_LAST,
}
_ORDERS = {
    Aggregation.SUM: 1,
    Aggregation.MEAN: 1,
    Aggregation.VARIANCE: 2,
    Aggregation.STD: 2,
    Aggregation.SKEWNESS: 3,
    Aggregation.KURTOSIS: 4,
}
_SINCE = (Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST)
_EXTREMES = (*_SINCE, Aggregation.MIN, Aggregation.MAX, Aggregation.RANGE)


@dataclass
class _Lane:
    """What a row keeps of one value column (None: of events as such) under one filter."""

    order: int = 0
    extremes: bool = False
    fraud: bool = False


class PaneLayout:
    """``values``: value columns by name; ``tellers``: key columns by category; lanes and tellings by column and bit."""

    def __init__(
        self, features: Sequence[WindowFeature], columns: Sequence[int], bits: Mapping[str, int]
    ) -> None:
        """Raises SpecError when the features use more filters than an event has flags."""
        self._features = list(zip(features, columns, strict=True))
        used = dict.fromkeys(feature.filter for feature in features if feature.filter)
        if len(used) >= kernel.FRAUD_BIT:
            raise SpecError(
                f"entity {features[0].entity!r}",
                f"its paned features use more than {kernel.FRAUD_BIT - 1} filters",
            )
        self._bits = {None: 0} | {name: bit for bit, name in enumerate(used, 1)}
        self._outer = [(bits[name], self._bits[name]) for name in used]
        self.values: dict[str, int] = {}
        self.tellers: dict[str, int] = {}
        self.lanes: dict[tuple[str | None, int], _Lane] = {}
        self.tellings: dict[tuple[str, int], int] = {}
        for feature in features:
            bit = self._bits[feature.filter]
            if feature.aggregation is Aggregation.DISTINCT:
                category = str(feature.value)
                self.tellers.setdefault(category, len(self.tellers))
                self.tellings.setdefault((category, bit), len(self.tellings))
                continue
            value = _value_of(feature)
            if value is not None:
                self.values.setdefault(value, len(self.values))
            lane = self.lanes.setdefault((value, bit), _Lane())
            lane.order = max(lane.order, feature.moment or _ORDERS.get(feature.aggregation, 0))
            lane.extremes |= feature.aggregation in _EXTREMES
            lane.fraud |= feature.aggregation is Aggregation.RATE

    @property
    def has_outcomes(self) -> bool:
        return any(lane.fraud for lane in self.lanes.values())

    @property
    def count_width(self) -> int:
        """Counts of a row."""
        return sum(1 + lane.fraud for lane in self.lanes.values())

    @property
    def float_width(self) -> int:
        """Sums, moments and extremes of a row."""
        return sum(lane.order + 2 * lane.extremes for lane in self.lanes.values())

    @property
    def distincts(self) -> int:
        """Features that may need an estimate."""
        return sum(feature.aggregation is Aggregation.DISTINCT for feature, _ in self._features)

    @property
    def narrowed(self) -> list[tuple[int, int]]:
        """The engine's flag bit of each filter used here, and the bit it has here."""
        return list(self._outer)

    def plan(self) -> dict[int, NDArray[Any]]:
        """The arrays of ``pane_kernel``'s plan, by entry."""
        groups: dict[tuple[int, bool], dict[int, list[tuple[WindowFeature, int]]]] = {}
        for feature, column in self._features:
            # a delayed window never reaches the event; the time since another event is about the others
            exclude = feature.delay_us > 0 or feature.exclude_current or feature.aggregation in _SINCE
            windows = groups.setdefault((feature.delay_us, exclude), {})
            windows.setdefault(feature.window_us, []).append((feature, column))
        lane_places = {key: place for place, key in enumerate(self.lanes)}
        group_windows, group_lanes, group_tellings, window_features = [0], [0], [0], [0]
        lanes_used: list[int] = []
        tellings_used: list[int] = []
        widths: list[int] = []
        placed: list[tuple[WindowFeature, int, int]] = []
        for windows in groups.values():
            lanes: dict[int, None] = {}
            tellings: dict[int, None] = {}
            for width in sorted(windows):
                for feature, column in windows[width]:
                    bit = self._bits[feature.filter]
                    if feature.aggregation is Aggregation.DISTINCT:
                        place = self.tellings[str(feature.value), bit]
                        tellings[place] = None
                    else:
                        place = lane_places[_value_of(feature), bit]
                        lanes[place] = None
                    placed.append((feature, place, column))
                widths.append(width)
                window_features.append(len(placed))
            lanes_used += lanes
            tellings_used += tellings
            group_windows.append(len(widths))
            group_lanes.append(len(lanes_used))
            group_tellings.append(len(tellings_used))
        lanes_in_order = list(self.lanes.values())
        return {
            kernel.LANE_VALUE: _int32(
                [-1 if value is None else self.values[value] for value, _ in self.lanes]
            ),
            kernel.LANE_BIT: _int32([bit for _, bit in self.lanes]),
            kernel.LANE_ORDER: _int32([lane.order for lane in lanes_in_order]),
            kernel.LANE_EXTREMES: _int32([lane.extremes for lane in lanes_in_order]),
            kernel.LANE_FRAUD: _int32([lane.fraud for lane in lanes_in_order]),
            kernel.LANE_COUNT_AT: _before([1 + lane.fraud for lane in lanes_in_order]),
            kernel.LANE_FLOAT_AT: _before([lane.order + 2 * lane.extremes for lane in lanes_in_order]),
            kernel.GROUP_DELAY: np.array([delay for delay, _ in groups], np.int64),
            kernel.GROUP_EXCLUDE: np.array([exclude for _, exclude in groups], np.bool_),
            kernel.GROUP_WINDOWS: _int32(group_windows),
            kernel.GROUP_LANES: _int32(group_lanes),
            kernel.LANES_USED: _int32(lanes_used),
            kernel.GROUP_TELLINGS: _int32(group_tellings),
            kernel.TELLINGS_USED: _int32(tellings_used),
            kernel.TELLING_KEY: _int32([self.tellers[category] for category, _ in self.tellings]),
            kernel.TELLING_BIT: _int32([bit for _, bit in self.tellings]),
            kernel.WINDOW_WIDTH: np.array(widths, np.int64),
            kernel.WINDOW_FEATURES: _int32(window_features),
            kernel.FEATURE_KIND: _int32([_KINDS[feature.aggregation] for feature, _, _ in placed]),
            kernel.FEATURE_LANE: _int32([place for _, place, _ in placed]),
            kernel.FEATURE_COLUMN: _int32([column for _, _, column in placed]),
            kernel.FEATURE_EMPTY: np.array([feature.empty for feature, _, _ in placed], np.float64),
            kernel.FEATURE_MOMENT: _int32([feature.moment for feature, _, _ in placed]),
        }


def _value_of(feature: WindowFeature) -> str | None:
    return TIME if feature.aggregation in _SINCE else feature.value


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _before(widths: Sequence[int]) -> NDArray[np.int32]:
    """Where each of several adjacent fields begins."""
    return np.concatenate([[0], np.cumsum(widths)])[: len(widths)].astype(np.int32)
