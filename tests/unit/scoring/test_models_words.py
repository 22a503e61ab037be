"""Features said in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from scoring.features import parse_spec
from scoring.features.spec_model import (
    DAY_US,
    HOUR_US,
    Aggregation,
    Calendar,
    CalendarFeature,
    Derivation,
    DerivedFeature,
    Feature,
    FeatureSpec,
    WindowFeature,
)
from scoring.models.words import duration_words, feature_words

SPECS = sorted((Path(__file__).resolve().parents[3] / "sandbox" / "features").glob("*.toml"))
MEAN = WindowFeature("m", "customer", Aggregation.MEAN, 7 * DAY_US, value="amount", exclude_current=True)


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (MEAN, "mean amount of the customer over 7 days, this event left out"),
        (
            WindowFeature("r", "terminal", Aggregation.RATE, 30 * DAY_US, value="fraud", delay_us=7 * DAY_US),
            "share of frauds among events of the terminal over 30 days up to 7 days ago",
        ),
        (
            WindowFeature("c", "card+terminal", Aggregation.COUNT, HOUR_US, filter="night"),
            "number of night events of the card and the terminal over 1 hour",
        ),
        (
            WindowFeature("s", "payee", Aggregation.SUM, 90 * 60_000_000, value="amount", filter="transfer"),
            "sum of amount of transfer events of the payee over 90 minutes",
        ),
        (
            WindowFeature("q", "card", Aggregation.QUANTILE, DAY_US, value="amount", quantile=0.95),
            "0.95 quantile of amount of the card over 1 day",
        ),
        (CalendarFeature("n", Calendar.NIGHT), "night"),
    ],
)
def test_one_feature(feature: Feature, words: str) -> None:
    assert feature_words(FeatureSpec((feature,))) == {feature.name: words}


def test_a_derived_feature_names_its_parts() -> None:
    count = WindowFeature("c", "card", Aggregation.COUNT, HOUR_US)
    ratio = DerivedFeature("x", Derivation.RATIO, "c", "amount_limit")
    assert feature_words(FeatureSpec((count, ratio)))["x"] == (
        "number of events of the card over 1 hour, divided by amount_limit"
    )


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_every_aggregation_has_words(aggregation: Aggregation) -> None:
    feature = WindowFeature("f", "card", aggregation, DAY_US, value="amount", moment=3, quantile=0.5)
    text = feature_words(FeatureSpec((feature,)))["f"]
    assert text.endswith(" of the card over 1 day")
    assert "{" not in text


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.stem))
def test_features_of_one_spec_are_told_apart(path: Path) -> None:
    words = feature_words(parse_spec(path.read_text()))
    assert len(set(words.values())) == len(words)


def test_durations() -> None:
    assert [duration_words(us) for us in (DAY_US, 25 * HOUR_US, 90_000_000, 1_500_000)] == [
        "1 day",
        "25 hours",
        "90 seconds",
        "1.5 seconds",
    ]
