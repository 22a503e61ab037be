"""From the tables of a TOML document to the values of ``spec_model``: one table at a time, types and ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from scoring.features.spec_model import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    Aggregation,
    Calendar,
    CalendarFeature,
    Clock,
    Derivation,
    DerivedFeature,
    Feature,
    FieldFeature,
    Filter,
    Span,
    SpecError,
    SpecPath,
    WindowFeature,
)
from scoring.schema import CHANNELS

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_UNITS = {"us": 1, "ms": 1000, "s": SECOND_US, "m": 60 * SECOND_US, "h": HOUR_US, "d": DAY_US}
_DURATION = re.compile(r"(-?)(\d{1,15})(us|ms|s|m|h|d)")
_MAX_SPAN_US = 3660 * DAY_US
_KINDS = ("aggregation", "calendar", "field", *Derivation)
_ZERO_WHEN_EMPTY = {
    Aggregation.COUNT,
    Aggregation.SUM,
    Aggregation.RATE,
    Aggregation.DISTINCT,
    Aggregation.ENTROPY,
    Aggregation.RUN_UP,
    Aggregation.RUN_DOWN,
    Aggregation.LONGEST_UP,
    Aggregation.LONGEST_DOWN,
}
_FILTER_KEYS = {
    "name",
    "channels",
    "amount_min",
    "amount_max",
    "ranges",
    "present",
    "absent",
    "hours",
    "weekdays",
    "zone",
    "utc_offset",
}
_WINDOW_KEYS = {
    "name",
    "entity",
    "aggregation",
    "value",
    "value2",
    "window",
    "delay",
    "filter",
    "exclude_current",
    "empty",
    "moment",
    "quantile",
    "panes",
}
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True)
class Table:
    """One table of the document: its content, what errors call it, and its place."""

    content: Mapping[str, Any]
    where: str
    path: SpecPath

    def error(self, reason: str, *below: str | int) -> SpecError:
        """The error to raise about the entry ``below`` the table (none: the table itself)."""
        return SpecError(self.where, reason, path=(*self.path, *below))

    def refuse_unknown(self, known: set[str]) -> None:
        unknown = sorted(set(self.content) - known)
        if unknown:
            raise self.error(
                f"does not know {', '.join(unknown)}; known here: {', '.join(sorted(known))}", unknown[0]
            )

    def text(self, key: str) -> str:
        return self.name_of(self.content[key], key)

    def name_of(self, value: Any, key: str, *below: int) -> str:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise self.error(f"{key} must be a name", key, *below)
        return value

    def number(self, key: str, default: float) -> float:
        value = self.content.get(key, default)
        if not _is_number(value):
            raise self.error(f"{key} must be a number", key)
        return float(value)

    def whole(self, key: str, low: int, high: int, what: str) -> int:
        value = self.content[key]
        if type(value) is not int or not low <= value <= high:
            raise self.error(f"{key} must be {what} from {low} to {high}", key)
        return value

    def one_of(self, key: str, kind: type[_Choice]) -> _Choice:
        value = self.content[key]
        try:
            return kind(value)
        except ValueError:
            raise self.error(f"{key} {value!r} is unknown; known are {', '.join(kind)}", key) from None

    def sequence(self, key: str, what: str) -> Sequence[Any]:
        value = self.content[key]
        if not isinstance(value, list) or not value:
            raise self.error(f"{key} must be a list of {what}", key)
        return value

    def duration(self, key: str, default: str, *, signed: bool = False) -> int:
        """Microseconds of a duration such as ``"30d"``, ``"90s"`` or, if ``signed``, ``"-5h"``."""
        text = self.content.get(key, default)
        called = "" if key == self.where else f"{key} "
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if match is None or (match[1] and not signed):
            raise self.error(
                f"{called}{text!r} is not a duration: write a whole number and us, ms, s, m, h or d, as in"
                ' "7d"',
                key,
            )
        span = int(match[2]) * _UNITS[match[3]]
        if span > _MAX_SPAN_US:
            raise self.error(f"{called}{text!r} is longer than ten years", key)
        return -span if match[1] else span


def tables(document: Mapping[str, Any], kind: str) -> list[Table]:
    """The tables ``[[kind]]`` in order. Raises SpecError."""
    found = document.get(kind, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise SpecError(kind, f"write each as a table of its own, [[{kind}]]", path=(kind,))
    result = []
    for place, table in enumerate(found):
        name = table.get("name")
        if not isinstance(name, str):
            raise SpecError(f"{kind} number {place + 1}", "has no name", path=(kind, place, "name"))
        result.append(Table(table, f"{kind} {name!r}", (kind, place)))
    return result


def read_filter(table: Table) -> Filter:
    """The conditions of a ``[[filter]]``. Raises SpecError."""
    table.refuse_unknown(_FILTER_KEYS)
    content = table.content
    channels = hours = weekdays = None
    if "channels" in content:
        for place, name in enumerate(table.sequence("channels", "channels")):
            if not isinstance(name, str) or name not in CHANNELS:
                raise table.error(f"channels must be a list out of {', '.join(CHANNELS)}", "channels", place)
        channels = tuple(CHANNELS[name] for name in content["channels"])
    if "hours" in content:
        for place, hour in enumerate(table.sequence("hours", "hours from 0 to 23")):
            if type(hour) is not int or not 0 <= hour <= 23:
                raise table.error("hours must be a list of hours from 0 to 23", "hours", place)
        hours = tuple(sorted(set(content["hours"])))
    if "weekdays" in content:
        for place, day in enumerate(table.sequence("weekdays", "weekdays")):
            if day not in WEEKDAYS:
                raise table.error(f"weekdays must be a list out of {', '.join(WEEKDAYS)}", "weekdays", place)
        weekdays = tuple(sorted({WEEKDAYS.index(day) for day in content["weekdays"]}))
    for key in ("zone", "utc_offset"):
        if key in content and hours is None and weekdays is None:
            raise table.error(f"{key} is for hours and weekdays only", key)
    low, high = table.number("amount_min", -math.inf), table.number("amount_max", math.inf)
    if not low <= high:
        raise table.error("amount_min is above amount_max: nothing could pass", "amount_min")
    return Filter(
        name=content["name"],
        channels=channels,
        amount_min=low,
        amount_max=high,
        spans=_spans(table),
        present=_names(table, "present"),
        absent=_names(table, "absent"),
        hours=hours,
        weekdays=weekdays,
        clock=_clock(table),
    )


def read_feature(table: Table) -> Feature:
    """The feature a ``[[feature]]`` states. Raises SpecError."""
    kinds = [kind for kind in _KINDS if kind in table.content]
    if len(kinds) != 1:
        raise table.error(f"needs exactly one of {', '.join(_KINDS)}", *kinds[1:2])
    kind = str(kinds[0])
    name = table.content["name"]
    if kind == "aggregation":
        return _window_feature(table)
    if kind == "field":
        table.refuse_unknown({"name", "field"})
        return FieldFeature(name, table.text("field"))
    if kind == "calendar":
        table.refuse_unknown({"name", "calendar", "zone", "utc_offset", "last_hour"})
        part = table.one_of("calendar", Calendar)
        if "last_hour" in table.content and part is not Calendar.NIGHT:
            raise table.error("last_hour is for night only", "last_hour")
        last_hour = table.whole("last_hour", 0, 23, "an hour") if "last_hour" in table.content else 6
        clock = _clock(table)
        return CalendarFeature(name, part, clock.utc_offset_us, last_hour, clock.zone)
    table.refuse_unknown({"name", "empty", kind})
    operands = table.content[kind]
    if not isinstance(operands, list) or len(operands) != 2:
        raise table.error(f"{kind} must be a list of two features", kind)
    first, second = (table.name_of(operand, kind, place) for place, operand in enumerate(operands))
    return DerivedFeature(name, Derivation(kind), first, second, table.number("empty", math.nan))


def _window_feature(table: Table) -> WindowFeature:
    table.refuse_unknown(_WINDOW_KEYS)
    content = table.content
    for key in ("entity", "window"):
        if key not in content:
            raise table.error(f"has no {key}")
    aggregation = table.one_of("aggregation", Aggregation)
    exclude = content.get("exclude_current", False)
    if not isinstance(exclude, bool):
        raise table.error("exclude_current must be true or false", "exclude_current")
    entity = content["entity"]
    if not isinstance(entity, str):
        raise table.error("entity must be a name", "entity")
    for key, owner in (("moment", Aggregation.MOMENT), ("quantile", Aggregation.QUANTILE)):
        if (key in content) != (aggregation is owner):
            verb = "needs a" if key not in content else "takes no"
            raise table.error(f"{aggregation} {verb} {key}", key)
    return WindowFeature(
        name=content["name"],
        entity=entity,
        aggregation=aggregation,
        window_us=table.duration("window", ""),
        value=table.text("value") if "value" in content else None,
        delay_us=table.duration("delay", "0s"),
        filter=table.text("filter") if "filter" in content else None,
        exclude_current=exclude,
        empty=table.number("empty", 0.0 if aggregation in _ZERO_WHEN_EMPTY else math.nan),
        moment=table.whole("moment", 2, 6, "a whole number") if "moment" in content else 0,
        quantile=table.number("quantile", math.nan),
        value2=table.text("value2") if "value2" in content else None,
        panes=table.whole("panes", 1, 1000, "a whole number") if "panes" in content else 0,
    )


def _clock(table: Table) -> Clock:
    if "zone" in table.content and "utc_offset" in table.content:
        raise table.error("takes either zone or utc_offset, not both", "utc_offset")
    zone = table.content.get("zone", "")
    if not isinstance(zone, str) or ("zone" in table.content and not zone):
        raise table.error("zone must be the name of a time zone, such as Europe/Madrid", "zone")
    return Clock(zone, table.duration("utc_offset", "0h", signed=True))


def _spans(table: Table) -> tuple[Span, ...]:
    ranges = table.content.get("ranges", {})
    if not isinstance(ranges, dict):
        raise table.error("ranges must be a table of number = [low, high]", "ranges")
    spans = []
    for number, bounds in ranges.items():
        if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
            raise table.error(
                f"ranges.{number} must be [low, high]; inf and -inf are allowed", "ranges", number
            )
        if not NAME.fullmatch(number):
            raise table.error(f"ranges: {number!r} is no name of a number", "ranges", number)
        low, high = map(float, bounds)
        if not low <= high:
            raise table.error(f"ranges.{number}: low is above high: nothing could pass", "ranges", number)
        spans.append(Span(number, low, high))
    return tuple(sorted(spans, key=lambda span: span.number))


def _names(table: Table, key: str) -> tuple[str, ...]:
    if key not in table.content:
        return ()
    values = table.sequence(key, "entities")
    return tuple(sorted({table.name_of(value, key, place) for place, value in enumerate(values)}))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
