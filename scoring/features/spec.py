"""Feature specs: TOML that says which features a batch gets, checked whole before any event is seen.

    lateness = "1h"                 # optional: how late an event may be and still enter later windows
    correction_horizon = "7d"       # optional: how long an event may be corrected, and its id is remembered

    [[filter]]                      # optional: named conditions on the transaction, all of which must hold
    name = "large-card"
    channels = ["card", "withdrawal"]
    amount_min = 100.0              # inclusive
    amount_max = 5000.0             # inclusive

    [[feature]]                     # a windowed feature
    name = "CARD_COUNT_1D"
    entity = "card"                 # whose events: a name of scoring.schema.ENTITIES
    aggregation = "count"           # count sum mean variance std rate distinct time_since_last
    window = "1d"                   # (T - delay - window, T - delay]; units us ms s m h d
    value = "amount"                # sum mean variance std: "amount" or a numeric attribute; distinct: another entity
    delay = "7d"                    # optional, default 0
    filter = "large-card"           # optional: only events that pass; may also be a boolean column given with a batch
    exclude_current = true          # optional, default false
    empty = 0.0                     # optional: the value when nothing is in the window

    [[feature]]                     # a calendar feature of the event's own time (UTC plus utc_offset)
    name = "WEEKEND"
    calendar = "weekend"            # weekend (Saturday, Sunday) night (hour <= last_hour) hour weekday (Monday 0)
    last_hour = 6                   # night only
    utc_offset = "8h"               # optional, may be negative

    [[feature]]                     # a column of the transaction itself
    name = "TRANSACTION_ID"
    field = "event_id"              # event_id (integers below 2^53), amount, channel, or a numeric attribute

``rate`` is the share of the events in the window that are known to be fraud; an event without an outcome counts as
genuine. ``variance`` is that of a sample (n - 1). ``time_since_last`` is in seconds and never counts the event itself.
Defaults of ``empty``: 0 for count, sum, rate and distinct, NaN for the others (as for a missing value).
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from scoring.schema import CHANNELS, ENTITIES, Channel

US = 1
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
MAX_FEATURES = 1000
MAX_FILTERS = 60
_UNITS = {"us": 1, "ms": 1000, "s": SECOND_US, "m": 60 * SECOND_US, "h": HOUR_US, "d": DAY_US}
_DURATION = re.compile(r"(-?)(\d{1,15})(us|ms|s|m|h|d)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MAX_SPAN_US = 3660 * DAY_US
_Choice = TypeVar("_Choice", bound=StrEnum)


class SpecError(ValueError):
    """A feature spec that cannot be used; ``where`` names the feature or filter."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class Aggregation(StrEnum):
    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    VARIANCE = "variance"
    STD = "std"
    RATE = "rate"
    DISTINCT = "distinct"
    TIME_SINCE_LAST = "time_since_last"


class Calendar(StrEnum):
    WEEKEND = "weekend"
    NIGHT = "night"
    HOUR = "hour"
    WEEKDAY = "weekday"


@dataclass(frozen=True)
class Filter:
    """Conditions on one transaction, all of which must hold."""

    name: str
    channels: tuple[Channel, ...] | None = None
    amount_min: float = -math.inf
    amount_max: float = math.inf


@dataclass(frozen=True)
class WindowFeature:
    """One aggregate over an entity's events in (T - delay - window, T - delay]; durations in microseconds."""

    name: str
    entity: str
    aggregation: Aggregation
    window_us: int
    value: str | None = None
    delay_us: int = 0
    filter: str | None = None
    exclude_current: bool = False
    empty: float = 0.0


@dataclass(frozen=True)
class CalendarFeature:
    """A property of the event's own time at ``utc_offset_us`` from UTC."""

    name: str
    part: Calendar
    utc_offset_us: int = 0
    last_hour: int = 6


@dataclass(frozen=True)
class FieldFeature:
    """A column of the transaction passed through."""

    name: str
    field: str


Feature = WindowFeature | CalendarFeature | FieldFeature


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
        """Entities with windowed features, in the order of the schema."""
        used = {feature.entity for feature in self.windows}
        return tuple(entity for entity in ENTITIES if entity in used)

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


def parse_spec(text: str) -> FeatureSpec:
    """The spec that the TOML ``text`` states. Raises SpecError naming the feature or filter at fault."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError("spec", f"is not TOML: {error}") from error
    _refuse_unknown("spec", document, {"lateness", "correction_horizon", "filter", "feature"})
    filters = tuple(_filter(number, table) for number, table in _tables(document, "filter"))
    features = tuple(_feature(number, table) for number, table in _tables(document, "feature"))
    return checked(
        FeatureSpec(
            features,
            filters,
            duration_us("lateness", document.get("lateness", "1h")),
            duration_us("correction_horizon", document.get("correction_horizon", "7d")),
        )
    )


def checked(spec: FeatureSpec) -> FeatureSpec:
    """The same spec if it is usable as a whole. Raises SpecError."""
    if not spec.features:
        raise SpecError("spec", "has no [[feature]]")
    if len(spec.features) > MAX_FEATURES:
        raise SpecError("spec", f"has {len(spec.features)} features; the limit is {MAX_FEATURES}")
    for what, names in (("feature", spec.names), ("filter", tuple(f.name for f in spec.filters))):
        for name in names:
            if not _NAME.fullmatch(name):
                raise SpecError(
                    f"{what} {name!r}", "is not a name: a letter, then letters, digits, _ . - up to 64"
                )
            if names.count(name) > 1:
                raise SpecError(f"{what} {name!r}", "is defined twice")
    named = {f.filter for f in spec.windows if f.filter} | {f.name for f in spec.filters}
    if len(named) > MAX_FILTERS:
        raise SpecError("spec", f"uses {len(named)} filters; the limit is {MAX_FILTERS}")
    if not 0 <= spec.lateness_us <= spec.correction_us:
        raise SpecError("lateness", "must be between 0 and the correction horizon")
    for feature in spec.windows:
        _check_window(feature)
    return spec


def duration_us(where: str, text: Any, *, signed: bool = False) -> int:
    """Microseconds of a duration such as ``"30d"``, ``"90s"`` or, if ``signed``, ``"-5h"``. Raises SpecError."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[1] and not signed):
        raise SpecError(
            where, f'{text!r} is not a duration: write a whole number and us, ms, s, m, h or d, as in "7d"'
        )
    span = int(match[2]) * _UNITS[match[3]]
    if span > _MAX_SPAN_US:
        raise SpecError(where, f"{text!r} is longer than ten years")
    return -span if match[1] else span


def _tables(document: Mapping[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SpecError(name, f"write each as a table of its own, [[{name}]]")
    return list(enumerate(tables, 1))


def _refuse_unknown(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise SpecError(where, f"does not know {', '.join(unknown)}; known here: {', '.join(sorted(known))}")


def _where(kind: str, number: int, table: Mapping[str, Any]) -> str:
    name = table.get("name")
    if not isinstance(name, str):
        raise SpecError(f"{kind} number {number}", "has no name")
    return f"{kind} {name!r}"


def _filter(number: int, table: dict[str, Any]) -> Filter:
    where = _where("filter", number, table)
    _refuse_unknown(where, table, {"name", "channels", "amount_min", "amount_max"})
    channels: tuple[Channel, ...] | None = None
    if "channels" in table:
        names = table["channels"]
        if not isinstance(names, list) or not names or any(name not in CHANNELS for name in names):
            raise SpecError(where, f"channels must be a list out of {', '.join(CHANNELS)}")
        channels = tuple(CHANNELS[name] for name in names)
    low = _number(where, "amount_min", table.get("amount_min", -math.inf))
    high = _number(where, "amount_max", table.get("amount_max", math.inf))
    if low > high:
        raise SpecError(where, "amount_min is above amount_max: nothing could pass")
    return Filter(table["name"], channels, low, high)


def _feature(number: int, table: dict[str, Any]) -> Feature:
    where = _where("feature", number, table)
    kinds = [kind for kind in ("aggregation", "calendar", "field") if kind in table]
    if len(kinds) != 1:
        raise SpecError(where, "needs exactly one of aggregation, calendar, field")
    if kinds == ["field"]:
        _refuse_unknown(where, table, {"name", "field"})
        return FieldFeature(table["name"], _text(where, "field", table["field"]))
    if kinds == ["calendar"]:
        _refuse_unknown(where, table, {"name", "calendar", "utc_offset", "last_hour"})
        part = _one_of(where, "calendar", table["calendar"], Calendar)
        offset = duration_us(where, table.get("utc_offset", "0h"), signed=True)
        last_hour = table.get("last_hour", 6)
        if "last_hour" in table and part is not Calendar.NIGHT:
            raise SpecError(where, "last_hour is for night only")
        if type(last_hour) is not int or not 0 <= last_hour <= 23:
            raise SpecError(where, "last_hour must be an hour from 0 to 23")
        if abs(offset) >= DAY_US:
            raise SpecError(where, "utc_offset must be less than a day")
        return CalendarFeature(table["name"], part, offset, last_hour)
    return _window_feature(where, table)


def _window_feature(where: str, table: dict[str, Any]) -> WindowFeature:
    known = {
        "name",
        "entity",
        "aggregation",
        "value",
        "window",
        "delay",
        "filter",
        "exclude_current",
        "empty",
    }
    _refuse_unknown(where, table, known)
    for key in ("entity", "window"):
        if key not in table:
            raise SpecError(where, f"has no {key}")
    aggregation = _one_of(where, "aggregation", table["aggregation"], Aggregation)
    zero = aggregation in (Aggregation.COUNT, Aggregation.SUM, Aggregation.RATE, Aggregation.DISTINCT)
    exclude = table.get("exclude_current", False)
    if not isinstance(exclude, bool):
        raise SpecError(where, "exclude_current must be true or false")
    return WindowFeature(
        name=table["name"],
        entity=_text(where, "entity", table["entity"]),
        aggregation=aggregation,
        window_us=duration_us(where, table["window"]),
        value=_text(where, "value", table["value"]) if "value" in table else None,
        delay_us=duration_us(where, table.get("delay", "0s")),
        filter=_text(where, "filter", table["filter"]) if "filter" in table else None,
        exclude_current=exclude,
        empty=_number(where, "empty", table.get("empty", 0.0 if zero else math.nan)),
    )


def _check_window(feature: WindowFeature) -> None:
    where = f"feature {feature.name!r}"
    if feature.entity not in ENTITIES:
        raise SpecError(where, f"{feature.entity!r} is no entity; entities are {', '.join(ENTITIES)}")
    if feature.window_us <= 0 or feature.delay_us < 0:
        raise SpecError(where, "the window must be longer than nothing and the delay not negative")
    moments = (Aggregation.SUM, Aggregation.MEAN, Aggregation.VARIANCE, Aggregation.STD)
    if feature.aggregation is Aggregation.DISTINCT:
        if feature.value not in ENTITIES or feature.value == feature.entity:
            raise SpecError(where, "distinct needs as value another entity, the one to be told apart")
    elif feature.aggregation in moments:
        if feature.value is None:
            raise SpecError(where, f"{feature.aggregation} needs a value, such as amount")
    elif feature.value is not None:
        raise SpecError(where, f"{feature.aggregation} takes no value")
    if feature.aggregation is Aggregation.TIME_SINCE_LAST and feature.delay_us:
        raise SpecError(where, "time_since_last takes no delay")


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SpecError(where, f"{key} must be a name")
    return value


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(where, f"{key} must be a number")
    return float(value)


def _one_of(where: str, key: str, value: Any, kind: type[_Choice]) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise SpecError(where, f"{key} {value!r} is unknown; known are {', '.join(kind)}") from None
