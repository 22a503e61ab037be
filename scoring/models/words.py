"""What features are called in a reason that a person reads: their definitions, said in words."""

from __future__ import annotations

from scoring.features.spec_model import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    Aggregation,
    Calendar,
    CalendarFeature,
    Derivation,
    DerivedFeature,
    Feature,
    FeatureSpec,
    FieldFeature,
    WindowFeature,
)

_UNITS = ((DAY_US, "day"), (HOUR_US, "hour"), (60 * SECOND_US, "minute"), (SECOND_US, "second"))
# {value}: what is aggregated, {events}: "events", or which of them.
_AGGREGATIONS = {
    Aggregation.COUNT: "number of {events}",
    Aggregation.SUM: "sum of {value}",
    Aggregation.MEAN: "mean {value}",
    Aggregation.VARIANCE: "variance of {value}",
    Aggregation.STD: "standard deviation of {value}",
    Aggregation.SKEWNESS: "skewness of {value}",
    Aggregation.KURTOSIS: "kurtosis of {value}",
    Aggregation.MOMENT: "central moment {moment} of {value}",
    Aggregation.MIN: "least {value}",
    Aggregation.MAX: "greatest {value}",
    Aggregation.RANGE: "range of {value}",
    Aggregation.FIRST: "first {value}",
    Aggregation.LAST: "last {value}",
    Aggregation.RATE: "share of frauds among {events}",
    Aggregation.DISTINCT: "number of different values of {value}",
    Aggregation.ENTROPY: "entropy of {value}",
    Aggregation.QUANTILE: "{quantile:g} quantile of {value}",
    Aggregation.RUN_UP: "length of the present rise of {value}",
    Aggregation.RUN_DOWN: "length of the present fall of {value}",
    Aggregation.LONGEST_UP: "length of the longest rise of {value}",
    Aggregation.LONGEST_DOWN: "length of the longest fall of {value}",
    Aggregation.SLOPE: "trend of {value} per hour",
    Aggregation.VELOCITY: "speed in km/h since the last place",
    Aggregation.TIME_SINCE_FIRST: "seconds since the first of {events}",
    Aggregation.TIME_SINCE_LAST: "seconds since the last of {events}",
}
_CALENDAR = {
    Calendar.WEEKEND: "weekend",
    Calendar.NIGHT: "night",
    Calendar.HOUR: "hour of the day",
    Calendar.WEEKDAY: "day of the week (Monday is 0)",
}
_DERIVATIONS = {
    Derivation.RATIO: "{first}, divided by {second}",
    Derivation.SHARE: "{first}, as a share of {second}",
    Derivation.DIFFERENCE: "{first}, less {second}",
    Derivation.ZSCORE: "the event's own value, in standard deviations from {first}",
}
# What the linker tells of a device (``devices.linker.NUMBERS``).
DEVICE_WORDS = {
    "device_new": "first event of the device (1: yes)",
    "device_drift": "changes of the device so far",
    "device_tampering": "signs of tampering with the device, from 0 to 1",
    "device_age_hours": "hours since the device was first seen",
    "device_customers": "number of customers seen on the device",
    "device_seen": "number of events seen of the device",
}


def feature_words(spec: FeatureSpec) -> dict[str, str]:
    """Every feature of ``spec`` in words, by its name."""
    words: dict[str, str] = {}
    for feature in spec.features:
        words[feature.name] = _words(feature, words)
    return words


def duration_words(duration_us: int) -> str:
    """``7 days``, ``1 hour``, ``90 minutes``: in the largest unit that needs no fraction."""
    for unit_us, name in _UNITS:
        count, rest = divmod(duration_us, unit_us)
        if count and not rest:
            return f"{count} {name}" if count == 1 else f"{count} {name}s"
    return f"{duration_us / SECOND_US:g} seconds"


def _words(feature: Feature, known: dict[str, str]) -> str:
    match feature:
        case WindowFeature():
            return _window(feature)
        case CalendarFeature():
            return _CALENDAR[feature.part]
        case FieldFeature():
            return feature.field.replace("_", " ")
        case DerivedFeature():
            first, second = (known.get(name, name) for name in (feature.first, feature.second))
            return _DERIVATIONS[feature.derivation].format(first=first, second=second)


def _window(feature: WindowFeature) -> str:
    events = f"{feature.filter} events" if feature.filter else "events"
    what = _AGGREGATIONS[feature.aggregation].format(
        value=(feature.value or "").replace("_", " "),
        events=events,
        moment=feature.moment,
        quantile=feature.quantile,
    )
    if feature.filter and events not in what:
        what += f" of {events}"
    whose = " and ".join(f"the {entity}" for entity in feature.entity.split("+"))
    text = f"{what} of {whose} over {duration_words(feature.window_us)}"
    if feature.delay_us:
        text += f" up to {duration_words(feature.delay_us)} ago"
    return text + (", this event left out" if feature.exclude_current else "")
