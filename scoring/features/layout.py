"""The features of one entity arranged as the kernel wants them: shared lanes, groups of nested windows, tellings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.features import kernel
from scoring.features.spec_model import Aggregation, WindowFeature

FRAUD = "fraud"  # the value column that outcomes fill; no attribute may have this name
_NEVER_MISSING = ("amount", FRAUD)
_CATEGORIES = (Aggregation.DISTINCT, Aggregation.ENTROPY)
_KINDS = {
    Aggregation.COUNT: kernel.COUNT,
    Aggregation.SUM: kernel.SUM,
    Aggregation.MEAN: kernel.MEAN,
    Aggregation.RATE: kernel.MEAN,
    Aggregation.VARIANCE: kernel.VARIANCE,
    Aggregation.STD: kernel.STD,
    Aggregation.SKEWNESS: kernel.SKEWNESS,
    Aggregation.KURTOSIS: kernel.KURTOSIS,
    Aggregation.MOMENT: kernel.MOMENT,
    Aggregation.MIN: kernel.MIN,
    Aggregation.MAX: kernel.MAX,
    Aggregation.RANGE: kernel.RANGE,
    Aggregation.FIRST: kernel.FIRST,
    Aggregation.LAST: kernel.LAST,
    Aggregation.RUN_UP: kernel.RUN_UP,
    Aggregation.RUN_DOWN: kernel.RUN_DOWN,
    Aggregation.LONGEST_UP: kernel.LONGEST_UP,
    Aggregation.LONGEST_DOWN: kernel.LONGEST_DOWN,
    Aggregation.SLOPE: kernel.SLOPE,
    Aggregation.VELOCITY: kernel.VELOCITY,
    Aggregation.TIME_SINCE_FIRST: kernel.SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST: kernel.SINCE_LAST,
    Aggregation.DISTINCT: kernel.DISTINCT,
    Aggregation.ENTROPY: kernel.ENTROPY,
    Aggregation.QUANTILE: kernel.QUANTILE,
}
# What a lane's state needs beyond its count: the highest power sum, and parts. The parts in the order of their floats:
_SIZES = {"extremes": 2, "clock": 2, "ends": 2, "last_second": 1, "runs": kernel.RUNS, "trend": 3}
_ORDERS = {
    Aggregation.VARIANCE: 2,
    Aggregation.STD: 2,
    Aggregation.SKEWNESS: 3,
    Aggregation.KURTOSIS: 4,
}
_RUNS = ("ends", "runs")
_PARTS: Mapping[Aggregation, tuple[str, ...]] = {
    Aggregation.SKEWNESS: ("extremes",),
    Aggregation.KURTOSIS: ("extremes",),
    Aggregation.MIN: ("extremes",),
    Aggregation.MAX: ("extremes",),
    Aggregation.RANGE: ("extremes",),
    Aggregation.FIRST: ("ends",),
    Aggregation.LAST: ("ends",),
    Aggregation.RUN_UP: _RUNS,
    Aggregation.RUN_DOWN: _RUNS,
    Aggregation.LONGEST_UP: _RUNS,
    Aggregation.LONGEST_DOWN: _RUNS,
    Aggregation.SLOPE: ("clock", "trend"),
    Aggregation.VELOCITY: ("clock", "ends", "last_second"),
    Aggregation.TIME_SINCE_FIRST: ("clock",),
    Aggregation.TIME_SINCE_LAST: ("clock",),
}
# These are about the events before the current one, whatever the spec says.
_ABOUT_OTHERS = (Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST, Aggregation.VELOCITY)


@dataclass(frozen=True)
class LaneKey:
    """Which events a lane counts, and what of them: columns (-1: none), flag bit of the filter (0: none)."""

    value: int = -1
    second: int = -1
    category: int = -1
    bit: int = 0


@dataclass
class _Lane:
    order: int
    parts: set[str] = field(default_factory=set)


class Layout:
    """Lanes, groups and columns of the ``features`` of one entity.

    values      value columns stored with each event, by name
    categories  key columns stored with each event, by name
    sketches    lanes with a distinct count
    lists       lanes with an entropy or a quantile
    width       floats of all lanes of one node
    """

    def __init__(
        self, features: Sequence[WindowFeature], columns: Sequence[int], bits: Mapping[str, int]
    ) -> None:
        """``columns``: where each feature goes in the matrix; ``bits``: the flag bit of each filter name."""
        self.values: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        self._lanes: dict[LaneKey, _Lane] = {}
        self._features = list(zip(features, columns, strict=True))
        self._bits = bits
        for feature in features:
            self._claim(feature)
        self.sketches = list(
            dict.fromkeys(self.lane(f) for f in features if f.aggregation is Aggregation.DISTINCT)
        )
        self.lists = list(dict.fromkeys(self.lane(f) for f in features if f.aggregation in _DRAWN))
        told = bool(self.sketches or self.lists)
        self.total_lane = self._place(self._count_key(0)) if told else -1
        for feature in features:  # counts last: they share a lane whose values are never missing
            if feature.aggregation is Aggregation.COUNT:
                self._place(self._count_key(self._bit(feature)))
        self.width = sum(self._size(lane) for lane in self._lanes.values())

    @property
    def lanes(self) -> int:
        return len(self._lanes)

    @property
    def has_flags(self) -> bool:
        """Whether any lane has a filter."""
        return any(key.bit for key in self._lanes)

    def lane(self, feature: WindowFeature) -> int:
        """The lane a feature reads."""
        return list(self._lanes).index(self._key(feature))

    def plan(self) -> dict[int, NDArray[Any]]:
        """The plan's entries of the kernel's table."""
        groups: dict[tuple[int, bool], dict[int, list[tuple[WindowFeature, int]]]] = {}
        for feature, column in self._features:
            # a delayed window never reaches the event
            exclude = feature.delay_us > 0 or feature.exclude_current or feature.aggregation in _ABOUT_OTHERS
            windows = groups.setdefault((feature.delay_us, exclude), {})
            windows.setdefault(feature.window_us, []).append((feature, column))
        group_windows, group_lanes, group_tellings, window_features = [0], [0], [0], [0]
        lanes_used: list[int] = []
        tellings: list[tuple[int, bool, bool]] = []
        widths: list[int] = []
        shelves: list[dict[int, _Shelf]] = []  # per window, by the place of the telling in its group
        placed: list[tuple[WindowFeature, int, int, int]] = []  # feature, column, lane, telling
        for windows in groups.values():
            within = [feature for width in sorted(windows) for feature, _ in windows[width]]
            told = _tellings((feature, self.lane(feature)) for feature in within)
            for width in sorted(windows):
                for feature, column in windows[width]:
                    lane = self.lane(feature)
                    telling = list(told).index(lane) if feature.aggregation in _TOLD else -1
                    placed.append((feature, column, lane, telling))
                widths.append(width)
                wanted = _tellings((feature, self.lane(feature)) for feature, _ in windows[width])
                shelves.append(
                    {list(told).index(lane): _Shelf(lane, *which) for lane, which in wanted.items()}
                )
                window_features.append(len(placed))
            lanes_used += dict.fromkeys(self.lane(feature) for feature in within)
            tellings += [(lane, *which) for lane, which in told.items()]
            group_windows.append(len(widths))
            group_lanes.append(len(lanes_used))
            group_tellings.append(len(tellings))
        return (
            self._lane_plan()
            | _shelf_plan(shelves, int(np.diff(group_tellings).max(initial=0)))
            | {
                kernel.SKETCH_LANE: _int32(self.sketches),
                kernel.GROUP_DELAY: np.array([delay for delay, _ in groups], np.int64),
                kernel.GROUP_EXCLUDE: np.array([exclude for _, exclude in groups], np.bool_),
                kernel.GROUP_WINDOWS: _int32(group_windows),
                kernel.GROUP_LANES: _int32(group_lanes),
                kernel.LANES_USED: _int32(lanes_used),
                kernel.GROUP_TELLINGS: _int32(group_tellings),
                kernel.TELLING_LANE: _int32([lane for lane, _, _ in tellings]),
                kernel.TELLING_SKETCH: _int32(
                    [self.sketches.index(lane) if distinct else -1 for lane, distinct, _ in tellings]
                ),
                kernel.TELLING_LIST: _int32(
                    [self.lists.index(lane) if drawn else -1 for lane, _, drawn in tellings]
                ),
                kernel.LIST_LANE: _int32(self.lists),
                kernel.WINDOW_WIDTH: np.array(widths, np.int64),
                kernel.WINDOW_FEATURES: _int32(window_features),
                kernel.FEATURE_KIND: _int32([_KINDS[feature.aggregation] for feature, _, _, _ in placed]),
                kernel.FEATURE_LANE: _int32([lane for _, _, lane, _ in placed]),
                kernel.FEATURE_TELLING: _int32([telling for _, _, _, telling in placed]),
                kernel.FEATURE_PARAMETER: np.array([_parameter(feature) for feature, _, _, _ in placed]),
                kernel.FEATURE_COLUMN: _int32([column for _, column, _, _ in placed]),
                kernel.FEATURE_EMPTY: np.array([feature.empty for feature, _, _, _ in placed], np.float64),
                kernel.COUNT_LOGS: _count_logs(),
                kernel.LIMITS: _limits(),
            }
        )

    def _lane_plan(self) -> dict[int, NDArray[Any]]:
        names = {place: name for name, place in self.values.items()}
        keys, lanes = list(self._lanes), list(self._lanes.values())
        sizes = [self._size(lane) for lane in lanes]
        plain = [
            key.bit == 0
            and key.second < 0
            and key.category < 0
            and (key.value < 0 or names[key.value] in _NEVER_MISSING)
            for key in keys
        ]
        entries = {
            kernel.LANE_EXTREMES: "extremes",
            kernel.LANE_CLOCK: "clock",
            kernel.LANE_ENDS: "ends",
            kernel.LANE_LAST_SECOND: "last_second",
            kernel.LANE_RUNS: "runs",
            kernel.LANE_TREND: "trend",
        }
        return {
            kernel.LANE_VALUE: _int32([key.value for key in keys]),
            kernel.LANE_SECOND: _int32([key.second for key in keys]),
            kernel.LANE_KEY: _int32([key.category for key in keys]),
            kernel.LANE_BIT: _int32([key.bit for key in keys]),
            kernel.LANE_PLAIN: np.array(plain, np.bool_),
            kernel.LANE_RICH: np.array([lane.order > 2 or bool(lane.parts) for lane in lanes], np.bool_),
            kernel.LANE_AT: _int32(np.cumsum([0, *sizes[:-1]]).tolist()),
            kernel.LANE_SIZE: _int32(sizes),
            kernel.LANE_ORDER: _int32([lane.order for lane in lanes]),
        } | {entry: _int32([_offset(lane, part) for lane in lanes]) for entry, part in entries.items()}

    def _bit(self, feature: WindowFeature) -> int:
        return 0 if feature.filter is None else self._bits[feature.filter]

    def _claim(self, feature: WindowFeature) -> None:
        """Make the lane and the columns of a feature that is no plain count."""
        if feature.aggregation is Aggregation.COUNT:
            return
        if feature.aggregation in _CATEGORIES:
            self.categories.setdefault(str(feature.value), len(self.categories))
        else:
            rated = FRAUD if feature.aggregation is Aggregation.RATE else feature.value
            for name in (rated, feature.value2):
                if name is not None:
                    self.values.setdefault(name, len(self.values))
        key = self._key(feature)
        lane = self._lanes.setdefault(key, _Lane(0 if key.value < 0 else 1))
        order = (
            feature.moment
            if feature.aggregation is Aggregation.MOMENT
            else _ORDERS.get(feature.aggregation, 0)
        )
        lane.order = max(lane.order, order)
        lane.parts.update(_PARTS.get(feature.aggregation, ()))

    def _key(self, feature: WindowFeature) -> LaneKey:
        bit = self._bit(feature)
        if feature.aggregation is Aggregation.COUNT:
            return self._count_key(bit)
        if feature.aggregation is Aggregation.RATE:
            return LaneKey(value=self.values[FRAUD], bit=bit)
        if feature.aggregation in _CATEGORIES:
            return LaneKey(category=self.categories[str(feature.value)], bit=bit)
        if feature.value is None:
            return LaneKey(bit=bit)
        second = -1 if feature.value2 is None else self.values[feature.value2]
        return LaneKey(value=self.values[feature.value], second=second, bit=bit)

    def _count_key(self, bit: int) -> LaneKey:
        for always in _NEVER_MISSING:
            key = LaneKey(value=self.values.get(always, -2), bit=bit)
            if key in self._lanes:
                return key
        return LaneKey(bit=bit)

    def _place(self, key: LaneKey) -> int:
        self._lanes.setdefault(key, _Lane(0))
        return list(self._lanes).index(key)

    @staticmethod
    def _size(lane: _Lane) -> int:
        return 1 + lane.order + sum(_SIZES[part] for part in lane.parts)


@dataclass(frozen=True)
class _Shelf:
    """What a window tells of a lane: whether its distinct values, and whether what is drawn beyond the scan."""

    lane: int
    distinct: bool
    drawn: bool


def _shelf_plan(windows: Sequence[Mapping[int, _Shelf]], tellings: int) -> dict[int, NDArray[Any]]:
    """Each window's shelves numbered, and what they are for."""
    shelves = [shelf for window in windows for shelf in window.values()]
    numbers = np.full((len(windows), tellings), -1, np.int32)
    number = 0
    for place, window in enumerate(windows):
        for telling in window:
            numbers[place, telling] = number
            number += 1
    return {
        kernel.WINDOW_SHELF: numbers,
        kernel.SHELF_LANE: _int32([shelf.lane for shelf in shelves]),
        kernel.SHELF_DISTINCT: np.array([shelf.distinct for shelf in shelves], np.bool_),
        kernel.SHELF_DRAWN: np.array([shelf.drawn for shelf in shelves], np.bool_),
    }


def _count_logs() -> NDArray[np.int64]:
    counts = np.arange(1, kernel.SCAN + 1)
    logs: NDArray[np.int64] = np.rint(counts * np.log(counts) * kernel.LOG_UNIT).astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), logs])


def _limits() -> NDArray[np.int64]:
    steps = np.arange(kernel.MOST_STEPS)
    limits: NDArray[np.int64] = np.rint(kernel.ALL * np.exp2(-steps / kernel.STEPS)).astype(np.int64)
    return limits


_DRAWN = (Aggregation.ENTROPY, Aggregation.QUANTILE)
_TOLD = (Aggregation.DISTINCT, *_DRAWN)


def _tellings(features: Any) -> dict[int, tuple[bool, bool]]:
    """Per lane that a group must tell or order: whether for a distinct count, and whether for what is drawn."""
    told: dict[int, tuple[bool, bool]] = {}
    for feature, lane in features:
        if feature.aggregation in _TOLD:
            distinct = feature.aggregation is Aggregation.DISTINCT
            before = told.get(lane, (False, False))
            told[lane] = (before[0] or distinct, before[1] or not distinct)
    return told


def _offset(lane: _Lane, wanted: str) -> int:
    offset = 1 + lane.order
    for part, size in _SIZES.items():
        if part == wanted:
            return offset if part in lane.parts else -1
        offset += size if part in lane.parts else 0
    raise KeyError(wanted)


def _parameter(feature: WindowFeature) -> float:
    return float(feature.moment) if feature.aggregation is Aggregation.MOMENT else feature.quantile


def _int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)
