"""The shipped rule sets fit the shipped mappings and feature specs, and columns mean what they say."""

from pathlib import Path

import numpy as np
import pytest

from governance.policy.default import default_bundle
from member_node.service.evidence import no_evidence, weigh_labels
from member_node.service.labels import LabelView
from member_node.service.layout import evidence_columns, rule_columns, tier_table, transaction_columns
from member_node.streams.mapping import load_mapping
from scoring.features.spec import FieldFeature, parse_spec
from scoring.rules.columns import cell
from scoring.rules.ruleset import load_ruleset
from scoring.schema import Channel
from scoring.verdicts import Verdict

SANDBOX = Path(__file__).parents[3] / "sandbox"
DAY_US = 86_400_000_000


@pytest.mark.parametrize("name", ["handbook", "default"])
def test_shipped_rules_load(name):
    mapping = load_mapping(SANDBOX / "mappings" / f"{name}.toml")
    spec = parse_spec((SANDBOX / "features" / f"{name}.toml").read_text())
    features = [each.name for each in spec.features if not isinstance(each, FieldFeature)]
    counts = [
        f"consortium_terminals_fraud_{days}d_{whose}" for days in (1, 7, 30) for whose in ("others", "all")
    ]
    ruleset = load_ruleset(
        (SANDBOX / "rules" / f"{name}.toml").read_text(), rule_columns(mapping, features, counts)
    )
    assert ruleset.name == name
    assert ruleset.evidence_kinds <= set(mapping.indicators.values())


def label(contributor, issued_ms, victims):
    return LabelView(contributor, issued_ms, issued_ms + 1000, victims, "t", "confirmed", 0, 0)


def test_labels_count_only_while_they_are_valid():
    codes = np.array([0, 0, 0, 0, 1, -1], dtype=np.int32)
    times = np.array([4_999_999, 5_000_000, 5_999_999, 6_000_000, 5_500_000, 5_500_000])
    found = weigh_labels(
        codes,
        ["T1", "T2"],
        {"T1": (label("bank-a", 5000, 2), label("bank-b", 5500, 3)), "T9": (label("bank-a", 5000, 9),)},
        times,
        "bank-a",
    )
    assert found.own.tolist() == [0, 2, 2, 0, 0, 0]
    assert found.all.tolist() == [0, 2, 5, 3, 0, 0]
    assert found.reporters.tolist() == [0, 1, 2, 1, 0, 0]
    assert found.labels == [None, '{"bank-a":2}', '{"bank-a":2,"bank-b":3}', '{"bank-b":3}', None, None]


def test_alone_sees_only_its_own_labels():
    tiers = tier_table(default_bundle())
    found = weigh_labels(
        np.zeros(1, dtype=np.int32),
        ["T1"],
        {"T1": (label("bank-a", 0, 2), label("bank-b", 0, 3))},
        np.array([500_000]),
        "bank-a",
    )
    columns, limits = evidence_columns({"terminal": found}, tiers, alone=False)
    assert (columns["terminal_victims_all"][0], cell(columns["terminal_tier"], 0)) == (5.0, "block")
    assert limits["terminal"].tolist() == [Verdict.BLOCK]
    columns, limits = evidence_columns({"terminal": found}, tiers, alone=True)
    assert (columns["terminal_victims_all"][0], columns["terminal_reporters"][0]) == (2.0, 1.0)
    assert cell(columns["terminal_tier"], 0) == "challenge"
    assert limits["terminal"].tolist() == [Verdict.CHALLENGE]
    columns, limits = evidence_columns({"terminal": no_evidence(2)}, tiers, alone=False)
    assert [cell(columns["terminal_tier"], row) for row in range(2)] == ["none", "none"]
    assert limits["terminal"].tolist() == [Verdict.ALLOW] * 2


def test_hour_weekday_and_channel():
    mapping = load_mapping(SANDBOX / "mappings" / "handbook.toml")
    # 1970-01-01 was a Thursday.
    times = np.array([0, 4 * DAY_US + 3_600_000_000 * 5 - 1], dtype=np.int64)
    channels = np.array([Channel.LOGIN, Channel.CROSS_BORDER], dtype=np.uint8)
    columns = transaction_columns(mapping, np.array([1.0, 2.0]), channels, times)
    assert columns["weekday"].tolist() == [3, 0]
    assert columns["hour"].tolist() == [0, 4]
    assert [cell(columns["channel"], row) for row in range(2)] == ["login", "cross-border"]
