"""Rule sets: loading, verdicts, tiers, errors and reasons."""

import numpy as np
import pytest

from scoring.reasons import reasons
from scoring.rules.columns import Column, ColumnSchema, ColumnType, cell
from scoring.rules.ruleset import RuleSetError, load_ruleset
from scoring.verdicts import EvidenceTier, TierTable, Verdict, verdict_named

SCHEMA = ColumnSchema(
    [
        Column("amount", ColumnType.NUMBER),
        Column("count", ColumnType.NUMBER),
        Column("night", ColumnType.BOOLEAN),
        Column("terminal_victims_all", ColumnType.NUMBER, evidence="terminal"),
        Column("payee_victims_all", ColumnType.NUMBER, evidence="iban"),
    ]
)
TEXT = """
name = "cards"
version = 2

[[rule]]
id = "large"
when = "amount > 200"
verdict = "challenge"
reason = "{amount} is much"

[[rule]]
id = "ratio"
when = "amount / count > 100"
verdict = "review"
reason = "{amount} over {count}"

[[rule]]
id = "flagged"
when = "terminal_victims_all >= 1"
verdict = "block"
evidence = "terminal"
reason = "{terminal_victims_all} victims, night: {night}"

[[rule]]
id = "night"
when = "night"
verdict = "allow"
reason = "at night"
"""
COLUMNS = {
    "amount": np.array([10.0, 250.0, 500.5, 10.0, 300.0]),
    "count": np.array([1.0, 0.0, 2.0, 1.0, 1000.0]),
    "night": np.array([True, False, False, False, False]),
    "terminal_victims_all": np.array([0.0, 0.0, 1.0, 5.0, 2.0]),
    "payee_victims_all": np.zeros(5),
}
TIERS = TierTable(
    [
        EvidenceTier("watch", 1, Verdict.ALLOW),
        EvidenceTier("block", 4, Verdict.BLOCK),
        EvidenceTier("challenge", 2, Verdict.CHALLENGE),
    ]
)


def judge(ruleset):
    rank = TIERS.rank(COLUMNS["terminal_victims_all"])
    return ruleset.evaluate(COLUMNS, 5, {"terminal": TIERS.verdict(rank)})


def test_verdicts_rules_hits_and_counted_errors():
    ruleset = load_ruleset(TEXT, SCHEMA)
    judgement = judge(ruleset)
    assert [Verdict(v).label for v in judgement.verdict] == [
        "allow",
        "challenge",
        "review",
        "block",
        "challenge",
    ]
    assert judgement.rule.tolist() == [-1, 0, 1, 2, 0]
    assert judgement.errors.tolist() == [0, 1, 0, 0]
    assert judgement.hits[:, 2].tolist() == [False, False, True, True, True]
    assert judgement.effective[:, 2].tolist() == [0, 0, 0, 3, 1]
    assert judgement.hits[0].tolist() == [False, False, False, True]


def test_evidence_nobody_bounded_permits_nothing():
    ruleset = load_ruleset(TEXT, SCHEMA)
    judgement = ruleset.evaluate(COLUMNS, 5)
    assert judgement.effective[:, 2].tolist() == [0] * 5
    assert judgement.verdict[3] == Verdict.ALLOW


def test_reasons_name_the_deciding_rule_first_and_only_for_interventions():
    ruleset = load_ruleset(TEXT, SCHEMA)
    given = reasons(ruleset, judge(ruleset), COLUMNS)
    assert set(given) == {1, 2, 3, 4}
    assert [reason.rule for reason in given[2]] == ["ratio", "large"]
    assert given[2][1].text == "500.50 is much"
    assert given[3][0].text == "5 victims, night: no"
    assert [(reason.rule, reason.verdict) for reason in given[4]] == [
        ("large", Verdict.CHALLENGE),
        ("flagged", Verdict.CHALLENGE),
    ]


def test_single_rows_give_what_the_batch_gives():
    ruleset = load_ruleset(TEXT, SCHEMA)
    batch = judge(ruleset)
    explained = reasons(ruleset, batch, COLUMNS)
    limits = TIERS.verdict(TIERS.rank(COLUMNS["terminal_victims_all"]))
    for row in range(5):
        cells = {name: cell(values, row) for name, values in COLUMNS.items()}
        single = ruleset.evaluate_row(cells, {"terminal": Verdict(int(limits[row]))})
        assert (single.verdict, single.rule) == (batch.verdict[row], batch.rule[row])
        assert [index for index, _ in single.hits] == np.flatnonzero(batch.hits[row]).tolist()
        one = {name: values[row : row + 1] for name, values in COLUMNS.items()}
        alone = ruleset.evaluate(one, 1, {"terminal": limits[row : row + 1]})
        assert (alone.verdict[0], alone.rule[0]) == (batch.verdict[row], batch.rule[row])
        np.testing.assert_array_equal(alone.hits[0], batch.hits[row])
        np.testing.assert_array_equal(alone.effective[0], batch.effective[row])
        assert reasons(ruleset, alone, one).get(0, ()) == explained.get(row, ())
    assert ruleset.evaluate_row({name: cell(v, 1) for name, v in COLUMNS.items()}).errors == (1,)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "ratio"', 'id = "large"', "defined twice"),
        ('id = "ratio"', 'id = "Ratio!"', "lower-case"),
        ('verdict = "review"', 'verdict = "deny"', "'deny' is no verdict"),
        ('verdict = "review"', "", "needs verdict"),
        (
            'when = "amount / count > 100"',
            'when = "amount / cuont > 100"',
            "line 1, column 10: there is no column",
        ),
        ('evidence = "terminal"', "", "declare evidence"),
        ('evidence = "terminal"', 'evidence = "iban"', "declare evidence"),
        ('when = "night"', 'when = "night"\nevidence = "phone"', "no evidence about 'phone'"),
        ("{count}", "{cnt}", "which is no column"),
        ("{count}", "{count", "unmatched brace"),
        ("version = 2", "version = 0", "version"),
        ("version = 2", 'version = 2\nowner = "x"', "unknown keys in the rule set: owner"),
        ('when = "night"', 'when = "night"\nwenn = "x"', "unknown keys wenn"),
        ("[[rule]]", "[[rule", "not TOML"),
        (
            'when = "terminal_victims_all >= 1"',
            'when = "terminal_victims_all + payee_victims_all >= 1"',
            "one kind a rule",
        ),
    ],
)
def test_a_wrong_rule_set_is_refused_as_a_whole(old, new, words):
    assert old in TEXT
    with pytest.raises(RuleSetError, match=r".") as caught:
        load_ruleset(TEXT.replace(old, new, 1), SCHEMA)
    assert words in str(caught.value)


def test_tiers():
    assert TIERS.names == ("none", "watch", "challenge", "block")
    assert TIERS.rank(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 90.0])).tolist() == [0, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="distinct"):
        TierTable([EvidenceTier("a", 1, Verdict.ALLOW), EvidenceTier("b", 1, Verdict.BLOCK)])
    with pytest.raises(ValueError, match="at least 1"):
        TierTable([EvidenceTier("a", 0, Verdict.ALLOW)])
    with pytest.raises(ValueError, match="names"):
        TierTable([EvidenceTier("none", 1, Verdict.ALLOW)])
    assert verdict_named("review") is Verdict.REVIEW
