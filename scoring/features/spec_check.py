"""What makes a whole spec usable: names, references, and what each aggregation needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from scoring.features.calendar import is_zone
from scoring.features.spec_model import (
    DAY_US,
    Aggregation,
    CalendarFeature,
    Clock,
    Derivation,
    DerivedFeature,
    Feature,
    FeatureSpec,
    Filter,
    SpecError,
    SpecPath,
    WindowFeature,
)
from scoring.features.spec_tables import NAME
from scoring.schema import ENTITIES

MAX_FEATURES = 1000
MAX_FILTERS = 60
MIN_PANE_US = 60_000_000
NO_VALUE = {
    Aggregation.COUNT,
    Aggregation.RATE,
    Aggregation.TIME_SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST,
}
OF_A_CATEGORY = {Aggregation.DISTINCT, Aggregation.ENTROPY}
PANED = {
    Aggregation.COUNT,
    Aggregation.SUM,
    Aggregation.MEAN,
    Aggregation.VARIANCE,
    Aggregation.STD,
    Aggregation.SKEWNESS,
    Aggregation.KURTOSIS,
    Aggregation.MOMENT,
    Aggregation.MIN,
    Aggregation.MAX,
    Aggregation.RANGE,
    Aggregation.RATE,
    Aggregation.DISTINCT,
    Aggregation.TIME_SINCE_FIRST,
    Aggregation.TIME_SINCE_LAST,
}
_WITHOUT_DELAY = {Aggregation.TIME_SINCE_FIRST, Aggregation.TIME_SINCE_LAST, Aggregation.VELOCITY}
_ADDITIVE = {Aggregation.COUNT, Aggregation.SUM}


def checked(spec: FeatureSpec) -> FeatureSpec:
    """The same spec if it is usable as a whole. Raises SpecError with the path of what is at fault."""
    if not spec.features:
        raise SpecError("spec", "has no [[feature]]")
    if len(spec.features) > MAX_FEATURES:
        raise SpecError("spec", f"has {len(spec.features)} features; the limit is {MAX_FEATURES}")
    _check_names("feature", spec.names)
    _check_names("filter", tuple(f.name for f in spec.filters))
    named = {f.filter for f in spec.windows if f.filter} | {f.name for f in spec.filters}
    if len(named) > MAX_FILTERS:
        raise SpecError("spec", f"uses {len(named)} filters; the limit is {MAX_FILTERS}")
    if not 0 <= spec.lateness_us <= spec.correction_us:
        raise SpecError("lateness", "must be between 0 and the correction horizon", path=("lateness",))
    for place, condition in enumerate(spec.filters):
        _Subject("filter", place, condition.name).check_filter(condition)
    by_name = {feature.name: feature for feature in spec.features}
    for place, feature in enumerate(spec.features):
        subject = _Subject("feature", place, feature.name)
        if isinstance(feature, WindowFeature):
            subject.check_window(feature)
        elif isinstance(feature, CalendarFeature):
            subject.check_clock(feature.clock)
        elif isinstance(feature, DerivedFeature):
            subject.check_derived(feature, by_name)
        elif feature.field in ENTITIES:
            raise subject.error(f"field {feature.field!r} is an entity, which is no number", "field")
    evaluation_order(spec)
    return spec


def evaluation_order(spec: FeatureSpec) -> tuple[int, ...]:
    """Places of the derived features, each after those it refers to. Raises SpecError for a circle."""
    places = {feature.name: place for place, feature in enumerate(spec.features)}
    order: list[int] = []
    open_names: list[str] = []

    def visit(place: int) -> None:
        feature = spec.features[place]
        if not isinstance(feature, DerivedFeature) or place in order:
            return
        if feature.name in open_names:
            circle = " -> ".join([*open_names[open_names.index(feature.name) :], feature.name])
            raise _Subject("feature", place, feature.name).error(
                f"is made of itself: {circle}", feature.derivation
            )
        open_names.append(feature.name)
        for name in (feature.first, feature.second):
            visit(places[name])
        open_names.pop()
        order.append(place)

    for place in range(len(spec.features)):
        visit(place)
    return tuple(order)


def _check_names(kind: str, names: tuple[str, ...]) -> None:
    counts = Counter(names)
    seen: set[str] = set()
    for place, name in enumerate(names):
        path: SpecPath = (kind, place, "name")
        if not NAME.fullmatch(name):
            raise SpecError(
                f"{kind} {name!r}", "is not a name: a letter, then letters, digits, _ . - up to 64", path=path
            )
        if counts[name] > 1 and name in seen:
            raise SpecError(f"{kind} {name!r}", "is defined twice", path=path)
        seen.add(name)


class _Subject:
    """A feature or filter under examination, for errors."""

    def __init__(self, kind: str, place: int, name: str) -> None:
        self._where = f"{kind} {name!r}"
        self._path: SpecPath = (kind, place)

    def error(self, reason: str, *below: str | int) -> SpecError:
        return SpecError(self._where, reason, path=(*self._path, *below))

    def check_clock(self, clock: Clock) -> None:
        if abs(clock.utc_offset_us) >= DAY_US:
            raise self.error("utc_offset must be less than a day", "utc_offset")
        if clock.zone and not is_zone(clock.zone):
            raise self.error(f"zone {clock.zone!r} is not in the time zone database", "zone")

    def check_filter(self, condition: Filter) -> None:
        self.check_clock(condition.clock)
        for key, names in (("present", condition.present), ("absent", condition.absent)):
            for name in names:
                if name not in ENTITIES:
                    raise self.error(f"{key}: {name!r} is no entity; entities are {', '.join(ENTITIES)}", key)
        both = set(condition.present) & set(condition.absent)
        if both:
            raise self.error(f"{min(both)} is both present and absent: nothing could pass", "absent")
        for span in condition.spans:
            if not _is_numeric(span.number):
                raise self.error(f"ranges: {span.number!r} is no number", "ranges", span.number)

    def check_window(self, feature: WindowFeature) -> None:
        self._check_entity(feature.entity)
        if feature.window_us <= 0 or feature.delay_us < 0:
            raise self.error("the window must be longer than nothing and the delay not negative", "window")
        self._check_value(feature)
        kind = feature.aggregation
        if feature.delay_us and kind in _WITHOUT_DELAY:
            raise self.error(f"{kind} takes no delay", "delay")
        if feature.exclude_current and kind is Aggregation.VELOCITY:
            raise self.error(
                "velocity is about the event itself: it takes no exclude_current", "exclude_current"
            )
        if (kind is Aggregation.MOMENT) != (2 <= feature.moment <= 6) or (
            kind is not Aggregation.MOMENT and feature.moment
        ):
            raise self.error("moment must be from 2 to 6, and is for moment only", "moment")
        if kind is Aggregation.QUANTILE and not 0.0 <= feature.quantile <= 1.0:
            raise self.error("quantile must be from 0 to 1", "quantile")
        if kind is not Aggregation.QUANTILE and not math.isnan(feature.quantile):
            raise self.error("quantile is for quantile only", "quantile")
        if feature.panes:
            self._check_panes(feature)

    def _check_entity(self, entity: str) -> None:
        parts = entity.split("+")
        for part in parts:
            if part not in ENTITIES:
                raise self.error(
                    f"{part!r} is no entity; entities are {', '.join(ENTITIES)}, or two of them as in card+terminal",
                    "entity",
                )
        ordered = sorted(set(parts), key=ENTITIES.index)
        if len(parts) > 2 or len(ordered) < len(parts):
            raise self.error(f"{entity!r}: a pair has two different entities", "entity")
        if parts != ordered:
            raise self.error(f"write the pair {entity!r} as {'+'.join(ordered)}", "entity")

    def _check_value(self, feature: WindowFeature) -> None:
        kind, value = feature.aggregation, feature.value
        if kind in NO_VALUE:
            if value is not None:
                raise self.error(f"{kind} takes no value", "value")
        elif kind in OF_A_CATEGORY:
            if value not in (*ENTITIES, "channel") or value in feature.entity.split("+"):
                raise self.error(
                    f"{kind} needs as value another entity or channel, the one to be told apart", "value"
                )
        elif value is None:
            example = "latitude" if kind is Aggregation.VELOCITY else "amount"
            raise self.error(f"{kind} needs a value, such as {example}", "value")
        else:
            self._check_number("value", value)
        if kind is Aggregation.VELOCITY:
            if feature.value2 is None:
                raise self.error("velocity needs a value2, such as longitude", "value2")
            self._check_number("value2", feature.value2)
        elif feature.value2 is not None:
            raise self.error(f"{kind} takes no value2", "value2")

    def _check_number(self, key: str, value: str) -> None:
        if value == "fraud":
            raise self.error("fraud is no value; use aggregation rate", key)
        if not _is_numeric(value):
            raise self.error(f"{key} {value!r} is no number", key)

    def _check_panes(self, feature: WindowFeature) -> None:
        if feature.aggregation not in PANED:
            known = ", ".join(kind for kind in Aggregation if kind in PANED)
            raise self.error(f"{feature.aggregation} cannot be had from panes; {known} can", "panes")
        if feature.window_us % feature.panes:
            raise self.error(f"the window is not {feature.panes} panes of whole microseconds", "panes")
        if feature.pane_us < MIN_PANE_US:
            raise self.error("a pane must be at least a minute", "panes")

    def check_derived(self, feature: DerivedFeature, by_name: Mapping[str, Feature]) -> None:
        kind = feature.derivation
        for place, name in enumerate((feature.first, feature.second)):
            if name not in by_name:
                raise self.error(f"{kind} refers to {name!r}, which is no feature of this spec", kind, place)
        first, second = by_name[feature.first], by_name[feature.second]
        if kind is Derivation.SHARE and not _is_part_of(first, second):
            raise self.error(
                f"share needs a part and its whole: counts or sums of one entity and value, where every event of"
                f" {feature.first!r} is also one of {feature.second!r}; else use ratio",
                kind,
            )
        if kind is Derivation.ZSCORE and not _are_mean_and_spread(first, second):
            raise self.error(
                "zscore needs the mean and then the std of one entity, value, window, delay, filter and panes, both"
                " without the event itself (exclude_current or a delay)",
                kind,
            )


def _is_part_of(part: Feature, whole: Feature) -> bool:
    if not isinstance(part, WindowFeature) or not isinstance(whole, WindowFeature):
        return False
    return (
        part.aggregation in _ADDITIVE
        and (part.aggregation, part.entity, part.value) == (whole.aggregation, whole.entity, whole.value)
        and part.delay_us >= whole.delay_us
        and part.delay_us + part.window_us <= whole.delay_us + whole.window_us
        and whole.filter in (None, part.filter)
        and (part.exclude_current or part.delay_us > 0 or not whole.exclude_current)
        # the whole's panes must not begin after, or end before, those of the part
        and (part.panes == 0 or (whole.panes > 0 and whole.pane_us % part.pane_us == 0))
    )


def _are_mean_and_spread(mean: Feature, spread: Feature) -> bool:
    if not isinstance(mean, WindowFeature) or not isinstance(spread, WindowFeature):
        return False

    def events(f: WindowFeature) -> tuple[object, ...]:
        return (f.entity, f.value, f.window_us, f.delay_us, f.filter, f.panes)

    return (
        mean.aggregation is Aggregation.MEAN
        and spread.aggregation is Aggregation.STD
        and events(mean) == events(spread)
        and all(f.exclude_current or f.delay_us > 0 for f in (mean, spread))
    )


def _is_numeric(name: str) -> bool:
    """Whether a batch could have a numeric attribute of this name."""
    return bool(NAME.fullmatch(name)) and name not in ENTITIES and name not in ("channel", "fraud")
