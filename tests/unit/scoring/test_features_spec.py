"""Feature specs: what is refused, with the feature named, and what the shipped ones say."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring.features import Aggregation, SpecError, WindowFeature, parse_spec

SPECS = Path(__file__).resolve().parents[3] / "sandbox" / "features"
GOOD = '[[feature]]\nname = "n"\nentity = "card"\naggregation = "count"\nwindow = "1d"\n'


def test_the_handbook_spec_has_the_published_names() -> None:
    names = parse_spec((SPECS / "handbook.toml").read_text()).names
    expected = ["TRANSACTION_ID", "TX_DURING_WEEKEND", "TX_DURING_NIGHT"]
    for days in (1, 7, 30):
        expected += [f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW", f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"]
    for days in (1, 7, 30):
        expected += [f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW", f"TERMINAL_ID_RISK_{days}DAY_WINDOW"]
    assert list(names) == expected


def test_the_default_spec_covers_six_entities() -> None:
    spec = parse_spec((SPECS / "default.toml").read_text())
    assert set(spec.entities) == {"customer", "account", "payee", "device", "terminal", "card"}
    assert len(spec.features) >= 25


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("x = ", "spec", "TOML"),
        ("", "spec", "no .*feature"),
        ('colour = "red"\n' + GOOD, "spec", "colour"),
        ('lateness = "soon"\n' + GOOD, "lateness", "duration"),
        ('lateness = "8d"\n' + GOOD, "lateness", "horizon"),
        (GOOD + GOOD, "feature 'n'", "twice"),
        (GOOD.replace("card", "spouse"), "feature 'n'", "no entity"),
        (GOOD.replace('"count"', '"median"'), "feature 'n'", "known are"),
        (GOOD.replace('"1d"', '"1 day"'), "feature 'n'", "duration"),
        (GOOD.replace('"1d"', '"0d"'), "feature 'n'", "longer than nothing"),
        (GOOD.replace('"1d"', '"4000d"'), "feature 'n'", "ten years"),
        (GOOD.replace('"1d"', "7"), "feature 'n'", "duration"),
        (GOOD.replace('window = "1d"', ""), "feature 'n'", "no window"),
        (GOOD.replace('"n"', '"1n"'), "feature '1n'", "not a name"),
        (GOOD.replace('name = "n"\n', ""), "feature number 1", "no name"),
        (GOOD.replace('"count"', '"mean"'), "feature 'n'", "needs a value"),
        (GOOD + 'value = "amount"\n', "feature 'n'", "takes no value"),
        (GOOD.replace('"count"', '"distinct"') + 'value = "amount"\n', "feature 'n'", "another entity"),
        (GOOD.replace('"count"', '"distinct"') + 'value = "card"\n', "feature 'n'", "another entity"),
        (GOOD.replace('"count"', '"time_since_last"') + 'delay = "1d"\n', "feature 'n'", "no delay"),
        (GOOD + 'delay = "-1d"\n', "feature 'n'", "duration"),
        (GOOD + "exclude_current = 1\n", "feature 'n'", "true or false"),
        (GOOD + "empty = true\n", "feature 'n'", "number"),
        (GOOD + 'colour = "red"\n', "feature 'n'", "colour"),
        (GOOD + 'field = "amount"\n', "feature 'n'", "exactly one"),
        ('[[feature]]\nname = "n"\ncalendar = "noon"\n', "feature 'n'", "known are"),
        ('[[feature]]\nname = "n"\ncalendar = "hour"\nlast_hour = 6\n', "feature 'n'", "night only"),
        ('[[feature]]\nname = "n"\ncalendar = "night"\nlast_hour = 24\n', "feature 'n'", "0 to 23"),
        (
            '[[feature]]\nname = "n"\ncalendar = "hour"\nutc_offset = "24h"\n',
            "feature 'n'",
            "less than a day",
        ),
        ('[feature]\nname = "n"\n', "feature", "own"),
        ('[[filter]]\nname = "f"\nchannels = ["pigeon"]\n' + GOOD, "filter 'f'", "channels"),
        (
            '[[filter]]\nname = "f"\namount_min = 2\namount_max = 1\n' + GOOD,
            "filter 'f'",
            "nothing could pass",
        ),
    ],
)
def test_an_error_names_the_feature_and_the_reason(text: str, where: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refused:
        parse_spec(text)
    assert refused.value.where == where


def test_durations_and_defaults() -> None:
    spec = parse_spec(
        'lateness = "90s"\n' + GOOD + '[[feature]]\nname = "m"\nentity = "card"\n'
        'aggregation = "mean"\nvalue = "amount"\nwindow = "250ms"\n'
    )
    assert spec.lateness_us == 90_000_000
    count, mean = spec.windows
    assert (count.window_us, count.empty, count.delay_us) == (86_400_000_000, 0.0, 0)
    assert mean.window_us == 250_000
    assert mean.empty != mean.empty


def test_the_digest_names_the_meaning() -> None:
    spec = parse_spec(GOOD)
    assert spec.digest == parse_spec("# a comment\n" + GOOD).digest
    assert spec.digest != parse_spec(GOOD.replace("1d", "2d")).digest
    assert spec.windows == (WindowFeature("n", "card", Aggregation.COUNT, 86_400_000_000),)
