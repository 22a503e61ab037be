"""The whole language of feature specs: what parses to what, and the exact line of every error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scoring.features import (
    Aggregation,
    Clock,
    Derivation,
    DerivedFeature,
    FeatureSpec,
    Filter,
    Span,
    SpecError,
    WindowFeature,
    parse_spec,
)
from scoring.features.spec import DAY_US, HOUR_US, checked
from scoring.schema import Channel

SPECS = Path(__file__).resolve().parents[3] / "sandbox" / "features"
FILTER = """
[[filter]]
name = "odd"
channels = ["card", "login"]
amount_min = 1
ranges = { score = [0.5, inf], age = [-1, 3] }
present = ["terminal", "card"]
absent = ["device"]
hours = [23, 0]
weekdays = ["sun", "mon"]
zone = "Europe/Madrid"
"""
WINDOW = """
[[feature]]
name = "x"
entity = "card"
aggregation = "count"
window = "7d"
"""


def window(**changes: str) -> str:
    """A windowed feature "x" with lines added or replaced; "" leaves one out."""
    lines = {"entity": '"card"', "aggregation": '"count"', "window": '"7d"'} | changes
    return '[[feature]]\nname = "x"\n' + "".join(
        f"{key} = {value}\n" for key, value in lines.items() if value
    )


def test_a_filter_says_all_it_can() -> None:
    (condition,) = parse_spec(FILTER + WINDOW).filters
    assert condition == Filter(
        name="odd",
        channels=(Channel.CARD, Channel.LOGIN),
        amount_min=1.0,
        spans=(Span("age", -1.0, 3.0), Span("score", 0.5, math.inf)),
        present=("card", "terminal"),
        absent=("device",),
        hours=(0, 23),
        weekdays=(0, 6),
        clock=Clock("Europe/Madrid"),
    )


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_every_aggregation_can_be_written(aggregation: Aggregation) -> None:
    extra = {}
    if aggregation in (Aggregation.DISTINCT, Aggregation.ENTROPY):
        extra["value"] = '"channel"'
    elif aggregation is Aggregation.VELOCITY:
        extra |= {"value": '"latitude"', "value2": '"longitude"'}
    elif aggregation not in ("count", "rate", "time_since_first", "time_since_last"):
        extra["value"] = '"amount"'
    if aggregation is Aggregation.MOMENT:
        extra["moment"] = "4"
    if aggregation is Aggregation.QUANTILE:
        extra["quantile"] = "0.95"
    (feature,) = parse_spec(window(aggregation=f'"{aggregation}"', **extra)).windows
    assert feature.aggregation is aggregation
    assert (feature.moment, feature.value2) == (
        4 if aggregation == "moment" else 0,
        "longitude" if aggregation == "velocity" else None,
    )
    counted = {
        "count",
        "sum",
        "rate",
        "distinct",
        "entropy",
        "run_up",
        "run_down",
        "longest_up",
        "longest_down",
    }
    assert (feature.empty == 0.0) == (aggregation in counted)


def test_pairs_panes_and_derived_features() -> None:
    spec = parse_spec(
        window(entity='"card+terminal"', panes="7")
        + '[[feature]]\nname = "r"\nratio = ["d", "x"]\nempty = 1\n'
        + '[[feature]]\nname = "d"\ndifference = ["x", "x"]\n'
    )
    first, ratio, difference = spec.features
    assert isinstance(first, WindowFeature)
    assert (first.entity, first.panes, first.pane_us) == ("card+terminal", 7, DAY_US)
    assert ratio == DerivedFeature("r", Derivation.RATIO, "d", "x", 1.0)
    assert isinstance(difference, DerivedFeature)
    assert math.isnan(difference.empty)
    assert spec.entities == ("card+terminal",)


@pytest.mark.parametrize("change", [{"panes": "7"}, {"entity": '"card+terminal"'}, {"delay": '"1h"'}])
def test_the_digest_changes_with_the_meaning(change: dict[str, str]) -> None:
    assert parse_spec(window(**change)).digest != parse_spec(window()).digest
    assert parse_spec("# why\n\n" + window(**change)).digest == parse_spec(window(**change)).digest


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\n\nx = \n", 3, "spec: is not TOML"),
        ("a = 1\n[[feature]\n", 2, "spec: is not TOML"),
        ('a = "\n', 1, "spec: is not TOML"),
        ("a = '''\n\n", 3, "spec: is not TOML"),
        (WINDOW + "\ncolour = 1\n", 8, "feature 'x': does not know colour"),
        ('lateness = "8d"\n' + WINDOW, 1, "lateness: must be between"),
        ("# first\n" + 'correction_horizon = "x"\n' + WINDOW, 2, "correction_horizon: 'x' is not a duration"),
        (window(window='"7x"'), 5, "feature 'x': window '7x' is not a duration: write a whole number"),
        (window(window='"0d"'), 5, "feature 'x': the window must be longer than nothing"),
        (window(window="", delay='"1d"'), 1, "feature 'x': has no window"),
        ("[[feature]]\nentity = 'card'\n", 1, "feature number 1: has no name"),
        (WINDOW + window(window='"1d"'), 8, "feature 'x': is defined twice"),
        (window(aggregation='"median"'), 4, "feature 'x': aggregation 'median' is unknown"),
        (window(aggregation='"sum"'), 1, "feature 'x': sum needs a value"),
        (window(value='"amount"'), 6, "count takes no value"),
        (window(aggregation='"sum"', value='"fraud"'), 6, "use aggregation rate"),
        (window(aggregation='"sum"', value='"device"'), 6, "value 'device' is no number"),
        (window(aggregation='"entropy"', value='"card"'), 6, "another entity or channel"),
        (window(aggregation='"velocity"', value='"lat"'), 1, "velocity needs a value2"),
        (window(aggregation='"velocity"', value='"lat"', value2='"lon"', delay='"1h"'), 8, "takes no delay"),
        (
            window(aggregation='"velocity"', value='"lat"', value2='"lon"', exclude_current="true"),
            8,
            "about the event itself",
        ),
        (window(aggregation='"time_since_first"', delay='"1h"'), 6, "time_since_first takes no delay"),
        (window(aggregation='"moment"', value='"amount"'), 1, "moment needs a moment"),
        (window(aggregation='"moment"', value='"amount"', moment="7"), 7, "a whole number from 2 to 6"),
        (window(moment="3"), 6, "count takes no moment"),
        (
            window(aggregation='"quantile"', value='"amount"', quantile="1.5"),
            7,
            "quantile must be from 0 to 1",
        ),
        (window(entity='"cart"'), 3, "'cart' is no entity"),
        (window(entity='"terminal+card"'), 3, "write the pair 'terminal+card' as card+terminal"),
        (window(entity='"card+card"'), 3, "two different entities"),
        (window(entity='"card+payee+device"'), 3, "two different entities"),
        (window(entity="3"), 3, "entity must be a name"),
        (window(panes="11"), 6, "not 11 panes of whole microseconds"),
        (window(window='"1h"', panes="120"), 6, "at least a minute"),
        (window(panes="0"), 6, "panes must be a whole number from 1 to 1000"),
        (window(aggregation='"quantile"', value='"amount"', quantile="0.5", panes="7"), 8, "cannot be had"),
        (window() + "[[feature]]\nname = 'y'\nratio = ['x', 'z']\n", 8, "refers to 'z', which is no feature"),
        (window() + "[[feature]]\nname = 'y'\nratio = ['x']\n", 8, "ratio must be a list of two features"),
        (window() + "[[feature]]\nname = 'y'\nratio = ['x',\n1]\n", 9, "ratio must be a name"),
        (window() + "[[feature]]\nname = 'y'\nratio = ['x', 'y']\n", 8, "made of itself: y -> y"),
        (
            window()
            + "[[feature]]\nname = 'a'\nratio = ['x', 'b']\n"
            + "[[feature]]\nname = 'b'\ndifference = ['c', 'x']\n"
            + "[[feature]]\nname = 'c'\ndifference = ['x', 'a']\n",
            8,
            "made of itself: a -> b -> c -> a",
        ),
        (
            window()
            + window(window='"1d"').replace("'x'", "'w'").replace('"x"', '"w"')
            + "[[feature]]\nname = 'y'\nshare = ['x', 'w']\n",
            13,
            "share needs a part and its whole",
        ),
        (window() + "[[feature]]\nname = 'y'\nzscore = ['x', 'x']\n", 8, "needs the mean and then the std"),
        (window() + "[[feature]]\nname = 'y'\nfield = 'card'\n", 8, "is an entity, which is no number"),
        (
            "[[feature]]\nname = 'y'\ncalendar = 'hour'\nzone = 'Europe/Atlantis'\n",
            4,
            "zone 'Europe/Atlantis' is not in the time zone database",
        ),
        ("[[feature]]\nname = 'y'\ncalendar = 'hour'\nzone = '../etc'\n", 4, "not in the time zone database"),
        ("[[feature]]\nname = 'y'\ncalendar = 'hour'\nzone = 'UTC'\nutc_offset = '1h'\n", 5, "not both"),
        (FILTER.replace("login", "pigeon") + WINDOW, 4, "filter 'odd': channels must be a list"),
        (FILTER.replace("[0.5, inf]", "[0.5]") + WINDOW, 6, "ranges.score must be [low, high]"),
        (FILTER.replace("[-1, 3]", "[3, -1]") + WINDOW, 6, "low is above high"),
        (FILTER.replace("[-1, 3]", "[nan, 3]") + WINDOW, 6, "low is above high"),
        (FILTER.replace("age =", "payee =") + WINDOW, 6, "'payee' is no number"),
        (FILTER.replace('"device"', '"cart"') + WINDOW, 8, "absent: 'cart' is no entity"),
        (FILTER.replace('"device"', '"card"') + WINDOW, 8, "both present and absent"),
        (FILTER.replace("23, 0", "23, 24") + WINDOW, 9, "hours from 0 to 23"),
        (FILTER.replace('"sun"', '"sunday"') + WINDOW, 10, "mon, tue"),
        (FILTER.replace("hours", "# ").replace("weekdays", "# ") + WINDOW, 11, "for hours and weekdays only"),
    ],
)
def test_an_error_names_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec(text)
    assert refused.value.line == line, str(refused.value)
    assert str(refused.value).startswith(f"line {line}: ")
    assert message in str(refused.value)


def test_an_error_names_its_column() -> None:
    with pytest.raises(SpecError) as refused:
        parse_spec('feature = [{name = "x", entity = "card", aggregation = "count", window = "7x"}]\n')
    assert (refused.value.line, refused.value.column) == (1, 65)


def test_a_spec_made_in_python_has_no_lines() -> None:
    feature = WindowFeature("x", "card", Aggregation.COUNT, HOUR_US, panes=7)
    with pytest.raises(SpecError, match=r"^feature 'x': the window is not 7 panes") as refused:
        checked(FeatureSpec((feature,)))
    assert refused.value.line is None


@pytest.mark.parametrize(
    ("part", "whole", "holds"),
    [
        ({}, {"window": '"30d"'}, True),
        ({"filter": '"f"'}, {}, True),
        ({"filter": '"f"'}, {"filter": '"f"', "window": '"30d"'}, True),
        ({}, {"filter": '"f"'}, False),
        ({"delay": '"1d"'}, {}, False),
        ({"delay": '"1d"'}, {"window": '"8d"'}, True),
        ({}, {"exclude_current": "true"}, False),
        ({"exclude_current": "true"}, {}, True),
        ({"panes": "7"}, {"window": '"30d"'}, False),
        ({"panes": "7"}, {"window": '"30d"', "panes": "30"}, True),
        ({"panes": "7"}, {"window": '"30d"', "panes": "15"}, True),
        ({"panes": "7"}, {"window": '"30d"', "panes": "60"}, False),
        ({}, {"window": '"30d"', "panes": "15"}, True),
        ({"entity": '"payee"'}, {"window": '"30d"'}, False),
    ],
)
def test_a_share_is_of_a_whole(part: dict[str, str], whole: dict[str, str], holds: bool) -> None:
    text = (
        '[[filter]]\nname = "f"\namount_min = 5\n'
        + window(**part).replace('"x"', '"part"')
        + window(**whole).replace('"x"', '"whole"')
        + '[[feature]]\nname = "s"\nshare = ["part", "whole"]\n'
    )
    if holds:
        parse_spec(text)
    else:
        with pytest.raises(SpecError, match="part and its whole"):
            parse_spec(text)


def test_the_reference_spec_is_what_the_benchmark_needs() -> None:
    spec = parse_spec((SPECS / "reference.toml").read_text())
    assert len(spec.windows) >= 60
    assert {"customer", "card", "payee", "device", "terminal"} <= set(spec.entities)
    assert any("+" in entity for entity in spec.entities)
    assert any(feature.panes for feature in spec.windows)
    assert sum(isinstance(feature, DerivedFeature) for feature in spec.features) >= 4
