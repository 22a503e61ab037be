"""Feature specs: TOML that says which features a batch gets, checked whole before any event is seen.

    lateness = "1h"                 # optional: how late an event may be and still enter later windows
    correction_horizon = "7d"       # optional: how long an event may be corrected, and its id is remembered

    [[filter]]                      # optional: named conditions on the transaction, all of which must hold
    name = "large-card"
    channels = ["card", "withdrawal"]
    amount_min = 100.0              # inclusive
    amount_max = 5000.0             # inclusive
    ranges = { score = [0.5, inf] } # any numeric attribute, bounds inclusive; a missing number lies in no range
    present = ["terminal"]          # entities that must be given
    absent = ["device"]             # entities that must not
    hours = [22, 23, 0, 1]          # hours of the event's own time
    weekdays = ["sat", "sun"]       # mon tue wed thu fri sat sun
    zone = "Europe/Madrid"          # for hours and weekdays: an IANA zone, or utc_offset = "2h"; default UTC

    [[feature]]                     # a windowed feature
    name = "CARD_COUNT_1D"
    entity = "card"                 # whose events: a name of scoring.schema.ENTITIES, or two as in "card+terminal"
    aggregation = "count"           # see below
    window = "1d"                   # (T - delay - window, T - delay]; units us ms s m h d
    value = "amount"                # what is aggregated: "amount" or a numeric attribute; see below
    delay = "7d"                    # optional, default 0
    filter = "large-card"           # optional: only events that pass; may also be a boolean column given with a batch
    exclude_current = true          # optional, default false
    empty = 0.0                     # optional: the value when there is nothing to tell
    panes = 90                      # optional: at the resolution of so many equal panes (scoring.features.panes)

    [[feature]]                     # a calendar feature of the event's own time
    name = "WEEKEND"
    calendar = "weekend"            # weekend (Saturday, Sunday) night (hour <= last_hour) hour weekday (Monday 0)
    last_hour = 6                   # night only
    zone = "Europe/Madrid"          # or utc_offset = "8h", which may be negative; default UTC

    [[feature]]                     # a column of the transaction itself
    name = "TRANSACTION_ID"
    field = "event_id"              # event_id (integers below 2^53), amount, channel, or a numeric attribute

    [[feature]]                     # made of two features of the same row
    name = "CARD_PACE"
    ratio = ["CARD_COUNT_1D", "CARD_COUNT_30D"]     # ratio share difference zscore
    empty = 0.0

Aggregations of the values x1..xn of the events in the window, in the order of time (ties: arrival), events without a
value (NaN) left out:

    count, sum, mean              variance, std: of a sample (n - 1), n >= 2
    moment                        moment = k, 2 to 6: mean of (x - mean)^k
    skewness, kurtosis            m3 / m2^1.5 and m4 / m2^2 - 3 of those moments; empty when all values are equal
    min, max, range, first, last  quantile: quantile = q, 0 to 1, type 7 of Hyndman and Fan (1996)
    run_up, run_down              length of the strictly rising (falling) run that ends at the newest event
    longest_up, longest_down      length of the longest such run; one event is a run of one, a tie ends a run
    slope                         least squares of value over time, per hour
    distinct, entropy             of a category, value = another entity or "channel": how many; Shannon's, in nats
    rate                          share of the events known to be fraud; without an outcome an event counts as genuine
    time_since_first, _last       in seconds; never counts the event itself, takes no delay
    velocity                      km/h on a sphere from the place of the entity's previous event to this one's; value
                                  and value2 are latitude and longitude in degrees; no delay, no exclude_current

Defaults of ``empty``: 0 for count, sum, rate, distinct, entropy and runs, NaN for the others (as for a missing value).

Derived features, of a and b: ratio a / b; difference a - b; share a / b where b's events include all of a's (checked);
zscore (x - a) / b of the event's own value x, where a is the mean and b the std of x in one window without the event
(checked). Where b is 0, an operand is NaN or the result is not finite they have the value ``empty`` (default NaN). They
may be made of derived features, but not in a circle.
"""

from __future__ import annotations

import tomllib

from scoring.features.spec_check import MAX_FEATURES, MAX_FILTERS, checked, evaluation_order
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
    FeatureSpec,
    FieldFeature,
    Filter,
    Span,
    SpecError,
    WindowFeature,
)
from scoring.features.spec_source import located, not_toml
from scoring.features.spec_tables import Table, read_feature, read_filter, tables

__all__ = [
    "DAY_US",
    "HOUR_US",
    "MAX_FEATURES",
    "MAX_FILTERS",
    "SECOND_US",
    "Aggregation",
    "Calendar",
    "CalendarFeature",
    "Clock",
    "Derivation",
    "DerivedFeature",
    "Feature",
    "FeatureSpec",
    "FieldFeature",
    "Filter",
    "Span",
    "SpecError",
    "WindowFeature",
    "checked",
    "evaluation_order",
    "parse_spec",
]


def parse_spec(text: str) -> FeatureSpec:
    """The spec that the TOML ``text`` states. Raises SpecError naming the line and the feature or filter at fault."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise not_toml(error, text) from error
    except RecursionError as error:
        raise SpecError("spec", "is nested too deep") from error
    try:
        Table(document, "spec", ()).refuse_unknown({"lateness", "correction_horizon", "filter", "feature"})
        return checked(
            FeatureSpec(
                features=tuple(read_feature(table) for table in tables(document, "feature")),
                filters=tuple(read_filter(table) for table in tables(document, "filter")),
                lateness_us=Table(document, "lateness", ()).duration("lateness", "1h"),
                correction_us=Table(document, "correction_horizon", ()).duration("correction_horizon", "7d"),
            )
        )
    except SpecError as error:
        raise located(error, text) from error.__cause__
