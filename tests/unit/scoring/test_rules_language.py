"""The rule language: what it refuses and where, and that both paths mean the same."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.rules.columns import Column, ColumnSchema, ColumnType, TextColumn, cell
from scoring.rules.language import RuleSyntaxError, parse_condition
from scoring.rules.scalar import compile_scalar
from scoring.rules.vectorised import Program, compile_vectorised

SCHEMA = ColumnSchema(
    [
        Column("amount", ColumnType.NUMBER),
        Column("mean", ColumnType.NUMBER),
        Column("count", ColumnType.NUMBER),
        Column("night", ColumnType.BOOLEAN),
        Column("known", ColumnType.BOOLEAN),
        Column("channel", ColumnType.TEXT),
        Column("country", ColumnType.TEXT),
    ]
)


def both(text, row):
    """Evaluate one row on both paths; returns "error", True or False, the same for both."""
    expression = parse_condition(text, SCHEMA)
    try:
        scalar = compile_scalar(expression)(row)
    except ArithmeticError:
        scalar = "error"
    columns = {
        name: TextColumn.of([value])
        if SCHEMA[name].type is ColumnType.TEXT
        else np.array([value], dtype=np.bool_ if SCHEMA[name].type is ColumnType.BOOLEAN else np.float64)
        for name, value in row.items()
    }
    hits, errors = compile_vectorised(expression)(columns, 1)
    vectorised = "error" if errors is not None and errors[0] else bool(hits[0])
    assert vectorised == scalar
    return scalar


ROW = {
    "amount": 120.0,
    "mean": 40.0,
    "count": 0.0,
    "night": True,
    "known": False,
    "channel": "card",
    "country": None,
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("amount > 100", True),
        ("amount > 3 * mean", False),
        ("amount / mean >= 3 and night", True),
        ("amount / count > 1", "error"),
        ("count > 0 and amount / count > 1", False),
        ("count == 0 or amount / count > 1", True),
        ("(amount / count if count > 0 else amount) > 100", True),
        ("amount % count == 0", "error"),
        ("-7 % 3 == 2", True),
        ("sqrt(0 - amount) > 1", "error"),
        ("100 < amount <= 120", True),
        ("200 < amount < amount / count", False),
        ("100 < amount < amount / count", "error"),
        ("channel == 'card'", True),
        ("channel in ('transfer', 'card')", True),
        ("channel not in ('transfer', 'payment')", True),
        ("country == 'CH'", False),
        ("country != 'CH'", False),
        ("country not in ('CH', 'DE')", False),
        ("country != channel", False),
        ("missing(country) and not missing(channel)", True),
        ("(country if night else channel) == 'card'", False),
        ("(channel if night else country) == 'card'", True),
        ("night != known", True),
        ("amount in (-120, 120)", True),
        ("min(amount, mean) + max(amount, mean) == amount + mean", True),
        ("floor(0 - 0.5) == -1 and abs(-2.5) == 2.5", True),
        ("1e308 * 10 > 1e308", True),
        ("amount >\n  100\n  and night", True),
    ],
)
def test_meaning(text, wanted):
    assert both(text, ROW) == wanted


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">=", "==", "!="])
def test_comparison_with_a_missing_number_is_false(operator):
    row = {**ROW, "mean": math.nan}
    assert both(f"amount {operator} mean", row) is False
    assert both(f"mean {operator} mean", row) is False
    assert both("missing(mean) and coalesce(mean, 7) == 7 and mean not in (1, 2)", row) is False
    assert both("missing(mean + 1) and coalesce(mean, 7) == 7", row) is True


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("amuont > 3", 1, 1, "no column 'amuont'"),
        ("amount > 3 and\n  (coutn > 2)", 2, 4, "no column 'coutn'"),
        ("amount", 1, 1, "must be a boolean"),
        ("amount + night > 3", 1, 10, "needs a number, this is a boolean"),
        ("night and amount", 1, 11, "needs a boolean, this is a number"),
        ("channel > 'a'", 1, 1, "compares numbers"),
        ("channel == 3", 1, 12, "this is a number"),
        ("amount ** 2 > 3", 1, 1, "Pow is not part"),
        ("amount // 2 > 3", 1, 1, "FloorDiv is not part"),
        ("__import__('os')", 1, 1, "functions are"),
        ("amount.real > 3", 1, 1, "Attribute is not part"),
        ("[x for x in (1,)]", 1, 1, "ListComp is not part"),
        ("(lambda: 1)()", 1, 2, "functions are"),
        ("f'{amount}' == 'a'", 1, 1, "JoinedStr is not part"),
        ("amount > 1e999", 1, 10, "too large"),
        ("amount > 3j", 1, 10, "no number"),
        ("amount > None", 1, 10, "no number"),
        ("amount in (mean, 3)", 1, 12, "only constants"),
        ("amount in mean", 1, 11, "tuple of constants"),
        ("amount != mean != 3", 1, 11, "cannot be chained"),
        ("min(amount) > 2", 1, 1, "takes 2 arguments"),
        ("abs(night) > 2", 1, 5, "not a boolean"),
        ("amount >", 1, 9, "invalid syntax"),
        ("", 1, 1, "needs a condition"),
        ("night is True", 1, 10, "cannot stand here"),
        ("'é' == chanel", 1, 8, "no column 'chanel'; did you mean 'channel'"),
        ("amount > 1" + "+1" * 500, 1, None, "too large"),
        ("x" * 3000, 1, 1, "at most 2000"),
    ],
)
def test_refusals_name_the_position(text, line, column, words):
    with pytest.raises(RuleSyntaxError) as caught:
        parse_condition(text, SCHEMA)
    assert words in str(caught.value)
    assert caught.value.line == line
    assert column is None or caught.value.column == column


def test_the_deepest_permitted_expression_compiles():
    text = "not " * 38 + "night"
    assert both(text, ROW) is True


NUMBERS = st.sampled_from(["amount", "mean", "count", "0", "1", "2.5", "1e300"])
BOOLEANS = st.sampled_from(["night", "known", "True"])
TEXTS = st.sampled_from(["channel", "country", "'card'", "'CH'"])


def grow_numbers(children):
    numbers, booleans, _ = children
    return st.one_of(
        st.tuples(numbers, st.sampled_from("+-*/%"), numbers).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["min", "max", "coalesce"]), numbers, numbers).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
        st.tuples(st.sampled_from(["abs", "sqrt", "floor"]), numbers).map(lambda t: f"{t[0]}({t[1]})"),
        numbers.map(lambda n: f"(-{n})"),
        st.tuples(numbers, booleans, numbers).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
    )


def grow_booleans(children):
    numbers, booleans, texts = children
    order = st.sampled_from(["<", "<=", ">", ">=", "=="])
    return st.one_of(
        st.tuples(numbers, order, numbers, order, numbers).map(lambda t: "(" + " ".join(t) + ")"),
        st.tuples(numbers, st.sampled_from(["!=", "<", "=="]), numbers).map(
            lambda t: "(" + " ".join(t) + ")"
        ),
        st.tuples(texts, st.sampled_from(["==", "!="]), texts).map(lambda t: "(" + " ".join(t) + ")"),
        st.tuples(texts, st.sampled_from(["in", "not in"])).map(lambda t: f"({t[0]} {t[1]} ('card', 'FR'))"),
        st.tuples(numbers, st.sampled_from(["in", "not in"])).map(lambda t: f"({t[0]} {t[1]} (1, -2.5))"),
        st.tuples(booleans, st.sampled_from(["and", "or", "==", "!="]), booleans).map(
            lambda t: "(" + " ".join(t) + ")"
        ),
        booleans.map(lambda b: f"(not {b})"),
        numbers.map(lambda n: f"missing({n})"),
        texts.map(lambda n: f"missing({n})"),
    )


def grow_texts(children):
    _, booleans, texts = children
    return st.tuples(texts, booleans, texts).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})")


def expressions(depth):
    children = (NUMBERS, BOOLEANS, TEXTS)
    for _ in range(depth):
        children = (
            children[0] | grow_numbers(children),
            children[1] | grow_booleans(children),
            children[2] | grow_texts(children),
        )
    return grow_booleans(children)


CELLS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf, 1e300]),
    st.floats(width=64),
)
WORDS = st.sampled_from([None, "card", "CH", "FR"])


@settings(max_examples=400, deadline=None)
@given(
    text=expressions(2),
    rows=st.lists(
        st.tuples(CELLS, CELLS, CELLS, st.booleans(), st.booleans(), WORDS, WORDS), min_size=1, max_size=8
    ),
)
def test_the_scalar_path_equals_the_vectorised_one(text, rows):
    expression = parse_condition(text, SCHEMA)
    names = list(SCHEMA)
    columns = {}
    for position, name in enumerate(names):
        values = [row[position] for row in rows]
        kind = SCHEMA[name].type
        if kind is ColumnType.TEXT:
            columns[name] = TextColumn.of(values)
        else:
            columns[name] = np.array(values, dtype=np.bool_ if kind is ColumnType.BOOLEAN else np.float64)
    hits, errors = compile_vectorised(expression)(columns, len(rows))
    scalar = compile_scalar(expression)
    for index in range(len(rows)):
        row = {name: cell(columns[name], index) for name in names}
        try:
            wanted, failed = scalar(row), False
        except ArithmeticError:
            wanted, failed = False, True
        assert bool(hits[index]) == wanted, (text, row)
        assert (errors is not None and bool(errors[index])) == failed, (text, row)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(expressions(1) | expressions(2), min_size=2, max_size=6),
    again=st.booleans(),
    rows=st.lists(
        st.tuples(CELLS, CELLS, CELLS, st.booleans(), st.booleans(), WORDS, WORDS), min_size=2, max_size=6
    ),
)
def test_rules_compiled_together_share_parts_and_change_nothing(texts, again, rows):
    if again:
        texts = [*texts, texts[0], f"{texts[0]} and {texts[1]}", f"not ({texts[1]} or {texts[0]})"]
    parsed = [parse_condition(text, SCHEMA) for text in texts]
    # A matrix row by row, as the feature engine gives it: columns are strided views.
    matrix = np.array([row[:3] for row in rows])
    columns = {name: matrix[:, place] for place, name in enumerate(("amount", "mean", "count"))}
    columns |= {"night": np.array([row[3] for row in rows]), "known": np.array([row[4] for row in rows])}
    columns |= {
        "channel": TextColumn.of([r[5] for r in rows]),
        "country": TextColumn.of([r[6] for r in rows]),
    }
    program = Program(parsed)
    frame = program.start(columns, len(rows))
    for index, expression in enumerate(parsed):
        with np.errstate(all="ignore"):
            hits, errors = program.hits(index, frame)
        wanted, wrong = compile_vectorised(expression)(columns, len(rows))
        np.testing.assert_array_equal(np.zeros(len(rows), bool) if hits is None else hits, wanted)
        np.testing.assert_array_equal(
            np.zeros(len(rows), bool) if errors is None else errors,
            np.zeros(len(rows), bool) if wrong is None else wrong,
        )
