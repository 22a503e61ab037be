"""Rules that the screen leaves out have neither hits nor errors: batches against each row judged by every rule."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.ruleset import load_ruleset

SCHEMA = ColumnSchema(
    [Column("a", ColumnType.NUMBER), Column("b", ColumnType.NUMBER), Column("flag", ColumnType.BOOLEAN)]
)
OPERANDS = [
    "a > 1",
    "a >= 1",
    "1 < b",
    "0 == b",
    "b != 0",
    "0 >= a",
    "a <= -1",
    "0 < a < 2",
    "flag",
    "not flag",
    "flag == False",
    "a < b",
    "1 / b > 0",
    "a / b == 1",
    "sqrt(a) > 0",
    "(a > 1 or b > 1)",
    "coalesce(a, 0) >= 0",
]
numbers = st.sampled_from([math.nan, -math.inf, -1.0, -0.0, 0.0, 1.0, 1.5, 2.0, math.inf])
conditions = st.lists(st.sampled_from(OPERANDS), min_size=1, max_size=4).map(" and ".join)
rows = st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(conditions, min_size=1, max_size=6), rows)
def test_a_batch_is_each_row_by_every_rule(
    whens: list[str], given_rows: list[tuple[float, float, bool]]
) -> None:
    text = 'name = "t"\nversion = 1\n' + "".join(
        f'[[rule]]\nid = "r{place}"\nwhen = "{when}"\nverdict = "review"\nreason = "x"\n'
        for place, when in enumerate(whens)
    )
    ruleset = load_ruleset(text, SCHEMA)
    columns = {
        "a": np.array([row[0] for row in given_rows]),
        "b": np.array([row[1] for row in given_rows]),
        "flag": np.array([row[2] for row in given_rows]),
    }
    judged = ruleset.evaluate(columns, len(given_rows))
    errors = np.zeros(len(whens), np.int64)
    for place, (a, b, flag) in enumerate(given_rows):
        alone = ruleset.evaluate_row({"a": a, "b": b, "flag": flag})
        errors[list(alone.errors)] += 1
        assert np.flatnonzero(judged.hits[place]).tolist() == [index for index, _ in alone.hits]
        assert (judged.verdict[place], judged.rule[place]) == (alone.verdict, alone.rule)
        one = ruleset.evaluate({name: values[place : place + 1] for name, values in columns.items()}, 1)
        assert (one.hits[0] == judged.hits[place]).all()
        assert np.flatnonzero(one.errors).tolist() == list(alone.errors)
    assert judged.errors.tolist() == errors.tolist()
