"""The values a feature spec is made of. ``scoring.features.spec`` describes the language and re-exports these."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum

from scoring.schema import ENTITIES, Channel

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

SpecPath = tuple[str | int, ...]  # into the TOML document: ("feature", 3, "window")


class SpecError(ValueError):
    """A feature spec that cannot be used.

    ``where`` names the feature or filter, ``reason`` says what is wrong, ``path`` is the place in the document;
    ``line`` and ``column`` (from 1) are known when the spec came from TOML text.
    """

    def __init__(
        self,
        where: str,
        reason: str,
        *,
        path: SpecPath = (),
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(f"{where}: {reason}" if line is None else f"line {line}: {where}: {reason}")
        self.where = where
        self.reason = reason
        self.path = path
        self.line = line
        self.column = column


class Aggregation(StrEnum):
    """What is made of the events in a window; the formulas are in ``scoring.features.spec``."""

    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    VARIANCE = "variance"
    STD = "std"
    SKEWNESS = "skewness"
    KURTOSIS = "kurtosis"
    MOMENT = "moment"
    MIN = "min"
    MAX = "max"
    RANGE = "range"
    FIRST = "first"
    LAST = "last"
    RATE = "rate"
    DISTINCT = "distinct"
    ENTROPY = "entropy"
    QUANTILE = "quantile"
    RUN_UP = "run_up"
    RUN_DOWN = "run_down"
    LONGEST_UP = "longest_up"
    LONGEST_DOWN = "longest_down"
    SLOPE = "slope"
    VELOCITY = "velocity"
    TIME_SINCE_FIRST = "time_since_first"
    TIME_SINCE_LAST = "time_since_last"


class Calendar(StrEnum):
    """A property of an event's local time."""

    WEEKEND = "weekend"
    NIGHT = "night"
    HOUR = "hour"
    WEEKDAY = "weekday"


class Derivation(StrEnum):
    """What is made of two other features of the same row."""

    RATIO = "ratio"
    SHARE = "share"
    DIFFERENCE = "difference"
    ZSCORE = "zscore"


@dataclass(frozen=True)
class Clock:
    """Local time: a named zone (IANA), or else a fixed offset from UTC in microseconds."""

    zone: str = ""
    utc_offset_us: int = 0


@dataclass(frozen=True)
class Span:
    """Bounds, both inclusive, on a numeric attribute; NaN lies in none."""

    number: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Filter:
    """Conditions on one transaction, all of which must hold.

    ``spans`` bound further numbers, ``present`` and ``absent`` name entities that must (not) be given, ``hours``
    (0 to 23) and ``weekdays`` (Monday 0) are read off the event's own time on ``clock``; None: any.
    """

    name: str
    channels: tuple[Channel, ...] | None = None
    amount_min: float = -math.inf
    amount_max: float = math.inf
    spans: tuple[Span, ...] = ()
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    hours: tuple[int, ...] | None = None
    weekdays: tuple[int, ...] | None = None
    clock: Clock = Clock()


@dataclass(frozen=True)
class WindowFeature:
    """One aggregate over an entity's events in (T - delay - window, T - delay]; durations in microseconds.

    ``entity`` is an entity or a pair such as ``card+terminal``. ``panes`` > 0: at the resolution of that many equal
    panes (``scoring.features.panes`` says what is covered).
    """

    name: str
    entity: str
    aggregation: Aggregation
    window_us: int
    value: str | None = None
    delay_us: int = 0
    filter: str | None = None
    exclude_current: bool = False
    empty: float = 0.0
    moment: int = 0
    quantile: float = math.nan
    value2: str | None = None
    panes: int = 0

    @property
    def pane_us(self) -> int:
        """Width of a pane in microseconds; 0 for an exact window."""
        return self.window_us // self.panes if self.panes else 0


@dataclass(frozen=True)
class CalendarFeature:
    """A property of the event's own time, ``utc_offset_us`` from UTC or in the IANA zone ``zone``."""

    name: str
    part: Calendar
    utc_offset_us: int = 0
    last_hour: int = 6
    zone: str = ""

    @property
    def clock(self) -> Clock:
        return Clock(self.zone, self.utc_offset_us)


@dataclass(frozen=True)
class FieldFeature:
    """A column of the transaction passed through."""

    name: str
    field: str


@dataclass(frozen=True)
class DerivedFeature:
    """Made of two other features of the row: ``first`` and ``second`` are their names."""

    name: str
    derivation: Derivation
    first: str
    second: str
    empty: float = math.nan


Feature = WindowFeature | CalendarFeature | FieldFeature | DerivedFeature


@dataclass(frozen=True)
class FeatureSpec:
    """A checked spec. ``digest`` identifies its meaning: equal specs compute equal features."""

    features: tuple[Feature, ...]
    filters: tuple[Filter, ...] = ()
    lateness_us: int = HOUR_US
    correction_us: int = 7 * DAY_US

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def windows(self) -> tuple[WindowFeature, ...]:
        return tuple(feature for feature in self.features if isinstance(feature, WindowFeature))

    @property
    def entities(self) -> tuple[str, ...]:
        """Entities with windowed features in the order of the schema, then pairs in theirs."""
        used = {feature.entity for feature in self.windows}
        pairs = (f"{one}+{other}" for place, one in enumerate(ENTITIES) for other in ENTITIES[place + 1 :])
        return tuple(entity for entity in (*ENTITIES, *pairs) if entity in used)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()
