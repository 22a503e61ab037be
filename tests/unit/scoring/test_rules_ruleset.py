"""Rule sets: loading, verdicts, tiers, errors and reasons."""

import numpy as np
import pytest

from scoring.reasons import reasons
from scoring.rules.columns import Column, ColumnSchema, ColumnType, cell
from scoring.rules.evaluation import BLOCK, decide
from scoring.rules.places import Place
from scoring.rules.ruleset import MAX_BYTES, RuleSetError, load_ruleset
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


def test_exempt_rows_are_not_hit_and_counted():
    ruleset = load_ruleset(TEXT, SCHEMA)
    exempt = np.zeros((5, 4), bool)
    exempt[2, 1] = exempt[4, 0] = exempt[1, 3] = True
    rank = TIERS.rank(COLUMNS["terminal_victims_all"])
    limits = {"terminal": TIERS.verdict(rank)}
    batch = ruleset.evaluate(COLUMNS, 5, limits, exempt)
    assert batch.exempted.tolist() == [1, 1, 0, 0]
    # Row 2 falls back to the other rule that hits it, row 4 to its flagged terminal.
    assert batch.rule.tolist() == [-1, 0, 0, 2, 2]
    assert not batch.hits[2, 1]
    assert batch.errors.tolist() == [0, 1, 0, 0]
    for row in range(5):
        one = {name: values[row : row + 1] for name, values in COLUMNS.items()}
        single = ruleset.evaluate(
            one, 1, {"terminal": limits["terminal"][row : row + 1]}, exempt[row : row + 1]
        )
        for name in ("verdict", "rule", "hits", "effective"):
            np.testing.assert_array_equal(getattr(single, name)[0], getattr(batch, name)[row])
    assert ruleset.evaluate(COLUMNS, 5, limits, np.ones((5, 4), bool)).verdict.sum() == 0


@pytest.mark.parametrize("rows", [2, 1])
def test_a_rule_whose_column_is_gone_is_in_error_and_the_others_judge(rows):
    ruleset = load_ruleset(TEXT, SCHEMA)
    left = {name: values[1 : 1 + rows] for name, values in COLUMNS.items() if name != "count"}
    judged = ruleset.evaluate(left, rows)
    assert judged.errors.tolist() == [0, rows, 0, 0]
    assert judged.verdict[0] == Verdict.CHALLENGE
    # The reason of a deciding rule may name it; it is shown as unknown.
    shown = load_ruleset(TEXT.replace("{amount} is much", "{amount} in {count}"), SCHEMA)
    assert reasons(shown, shown.evaluate(left, rows), left)[0][0].text == "250 in unknown"


def test_rows_outside_the_batch_of_a_version_count_nowhere():
    ruleset = load_ruleset(TEXT, SCHEMA)
    only = np.array([True, False, True, False, False])
    judged = ruleset.evaluate(COLUMNS, 5, {}, None, only)
    assert judged.rule.tolist() == [-1, -1, 1, -1, -1]
    assert judged.errors.sum() == 0
    assert judged.hits[~only].sum() == 0
    one = {name: values[1:2] for name, values in COLUMNS.items()}
    assert ruleset.evaluate(one, 1, {}, None, only[1:2]).errors.sum() == 0


def test_a_batch_larger_than_a_block_is_its_parts():
    ruleset = load_ruleset(TEXT, SCHEMA)
    rows = 2 * BLOCK + 11
    rng = np.random.default_rng(2)
    columns = {name: rng.choice(values, rows) for name, values in COLUMNS.items()}
    limits = {"terminal": TIERS.verdict(TIERS.rank(columns["terminal_victims_all"]))}
    exempt = rng.random((rows, 4)) < 0.1
    whole = ruleset.evaluate(columns, rows, limits, exempt)
    errors = np.zeros(4, int)
    for start in range(0, rows, 1000):
        part = slice(start, min(start + 1000, rows))
        piece = ruleset.evaluate(
            {name: values[part] for name, values in columns.items()},
            part.stop - start,
            {"terminal": limits["terminal"][part]},
            exempt[part],
        )
        errors += piece.errors
        for name in ("verdict", "rule", "hits", "effective"):
            np.testing.assert_array_equal(getattr(piece, name), getattr(whole, name)[part])
    np.testing.assert_array_equal(errors, whole.errors)
    verdict, rule = decide(whole.effective)
    np.testing.assert_array_equal(verdict, whole.verdict)
    np.testing.assert_array_equal(rule, whole.rule)


PLACED = '''# a comment with [[rule]] in it
name = "x" # and one here
[brake]
min_events = 5
[[rule]]
id = "one"
reason = """two
[[rule]] lines"""
when = "amount > 3"
verdict = "block"

[[ rule ]]  # the second
when = """\\
   amount > 1 and
   \\u0028coutn > 2) \\
"""
verdict = "block"
id = 'two'
reason = 'r {amount}'
'''


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "inside"),
    [
        ("", "", 15, 10, Place(2, 5)),
        ("coutn > 2)", "count > 2", 14, 4, Place(1, 1)),
        ("amount > 3", 'amuont > \\"3\\"', 9, 9, Place(1, 1)),
        ("'two'", "'Two'", 18, 1, Place(0, 0)),
        ("id = 'two'", "", 12, 1, Place(0, 0)),
        ("coutn > 2)", "count > 2)\\nor\\tnihgt", 15, 26, Place(3, 4)),
        ("[[rule]] lines", "{nobody} lines", 8, 2, Place(2, 2)),
        ('"block"\n\n', '"deny"\r\n\r\n', 10, 1, Place(0, 0)),
        ('name = "x"', "name = x", 2, 8, Place(0, 0)),
    ],
)
def test_errors_point_into_the_file(old, new, line, column, inside):
    assert old in PLACED
    with pytest.raises(RuleSetError, match=r"^line \d+, column \d+ of the file: ") as caught:
        load_ruleset(PLACED.replace(old, new, 1), SCHEMA, version=4)
    error = caught.value
    assert (error.line, error.column) == (line, column), str(error)
    assert (error.expression_line, error.expression_column) == (inside.line, inside.column)


def test_a_rulebook_numbers_its_versions_and_the_brake_is_part_of_the_text():
    text = TEXT.replace("version = 2", "[brake]\nwindow_minutes = 5\nreview = 0.5")
    ruleset = load_ruleset(text, SCHEMA, version=9)
    assert (ruleset.version, ruleset.brake.window_us, ruleset.brake.review) == (9, 300_000_000, 0.5)
    assert load_ruleset(TEXT, SCHEMA, version=9).version == 9
    with pytest.raises(RuleSetError, match="version"):
        load_ruleset(text, SCHEMA)


@pytest.mark.parametrize(
    ("brake", "words"),
    [
        ("review = 0", "above 0"),
        ("review = nan", "above 0"),
        ("block = 1.5", "at most 1"),
        ("min_events = 0", "at least 1"),
        # 64-bit counters would overflow in the middle of a batch.
        (f"min_events = {2**70}", "at most"),
        (f"challenge = 1{'0' * 400}", "at most 1"),
        (f"min_events = {'9' * 5000}", "too many digits"),
        ("min_events = 2.5", "whole number"),
        ("window_minutes = 0", "between"),
        ("window_minutes = true", "a number"),
        ("share = 1", "unknown keys"),
    ],
)
def test_a_wrong_brake_is_refused(brake, words):
    with pytest.raises(RuleSetError, match=words):
        load_ruleset(f'name = "x"\n[brake]\n{brake}\n', SCHEMA, version=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "[" * 100_000, "nested too deeply"),
        ('name = "x"\nversion = 32768', "version"),
        (f'name = "{"x" * 101}"', "name"),
        (f'name = "x"\n# {"x" * MAX_BYTES}', "more than"),
        (TEXT.replace("is much", "{amount}" * 100), "reason has more than 500"),
        (TEXT.replace('verdict = "review"', f'verdict = "review"\nmax_share = 1{"0" * 400}'), "max_share"),
    ],
)
def test_texts_beyond_their_bounds_are_refused(text, words):
    with pytest.raises(RuleSetError, match=words):
        load_ruleset(text, SCHEMA)


@pytest.mark.parametrize(
    "unseen", ["\u202e", "\u2066", "\u200b", "\u00ad", "\ufeff", "\u2028", "\x85", "\ud800"]
)
@pytest.mark.parametrize("where", ["amount > 200", "{amount} is much", "[[rule]]"])
def test_characters_that_an_approver_cannot_see_are_refused_with_their_place(unseen, where):
    # A condition that reads "amount > 200" and says something else must not get a second person's approval.
    text = TEXT.replace(
        where, where.replace(" ", f" {unseen}", 1) if " " in where else f"# {unseen}\n[[rule]]", 1
    )
    with pytest.raises(RuleSetError, match=rf"U\+{ord(unseen):04X} cannot be seen") as caught:
        load_ruleset(text, SCHEMA)
    before = text[: text.index(unseen)]
    assert (caught.value.line, caught.value.column) == (
        before.count("\n") + 1,
        len(before.rpartition("\n")[2]) + 1,
    )


def test_letters_of_any_language_and_visible_escapes_are_text():
    text = TEXT.replace("is much", "est trop élevé, 多すぎる \\u202e")
    assert load_ruleset(text, SCHEMA).rules[0].reason == "{amount} est trop élevé, 多すぎる \u202e"
