"""Compile a checked expression to NumPy: a closure from columns to (values, error mask).

An error mask is None when no row can be in error, so that plain comparisons cost one NumPy call.
Under the mask the values are meaningless; :func:`compile_vectorised` clears them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scoring.rules.columns import ColumnType, ColumnValues, TextColumn
from scoring.rules.language import (
    Arithmetic,
    Call,
    Choice,
    ColumnValue,
    Comparison,
    Complement,
    Connective,
    Constant,
    Expression,
    Membership,
    Negation,
    Node,
)

Bools: TypeAlias = NDArray[np.bool_]
Columns: TypeAlias = Mapping[str, ColumnValues]
# Values are float64 or bool arrays, TextColumn, object arrays of texts, or a plain constant.
Evaluated: TypeAlias = tuple[Any, Bools | None]
Evaluate: TypeAlias = Callable[[Columns], Evaluated]


def compile_vectorised(expression: Expression) -> Callable[[Columns, int], tuple[Bools, Bools | None]]:
    """The rule as a function of (columns, number of rows): hits bool [n] and error mask bool [n] or None."""
    evaluate = _compile(expression.root)

    def hits(columns: Columns, rows: int) -> tuple[Bools, Bools | None]:
        with np.errstate(all="ignore"):
            values, errors = evaluate(columns)
        values = np.broadcast_to(np.asarray(values, dtype=np.bool_), (rows,))
        if errors is None:
            return values, None
        errors = np.broadcast_to(errors, (rows,))
        return values & ~errors, errors

    return hits


def _either(left: Bools | None, right: Bools | None) -> Bools | None:
    if left is None:
        return right
    return left if right is None else left | right


def _where_reached(reached: Bools, errors: Bools | None) -> Bools | None:
    """Errors of an operand count only in rows where evaluation reaches it."""
    return None if errors is None else reached & errors


def _compile(node: Node) -> Evaluate:
    if isinstance(node, Constant):
        constant = node.value
        return lambda columns: (constant, None)
    if isinstance(node, ColumnValue):
        name = node.name
        return lambda columns: (columns[name], None)
    if isinstance(node, Negation):
        return _unary(_compile(node.operand), np.negative)
    if isinstance(node, Complement):
        return _unary(_compile(node.operand), np.logical_not)
    if isinstance(node, Arithmetic):
        return _arithmetic(node)
    if isinstance(node, Comparison):
        return _comparison(node)
    if isinstance(node, Membership):
        return _membership(node)
    if isinstance(node, Connective):
        return _connective(node)
    if isinstance(node, Choice):
        return _choice(node)
    return _call(node)


def _unary(operand: Evaluate, function: Callable[[Any], Any]) -> Evaluate:
    def evaluate(columns: Columns) -> Evaluated:
        value, errors = operand(columns)
        return function(value), errors

    return evaluate


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
}


def _arithmetic(node: Arithmetic) -> Evaluate:
    left, right = _compile(node.left), _compile(node.right)
    function = _ARITHMETIC[node.operator]
    may_divide_by_zero = node.operator in "/%" and not (isinstance(node.right, Constant) and node.right.value)

    def evaluate(columns: Columns) -> Evaluated:
        a, errors_a = left(columns)
        b, errors_b = right(columns)
        errors = _either(errors_a, errors_b)
        if may_divide_by_zero:
            errors = _either(errors, np.equal(b, 0.0))
        return function(a, b), errors

    return evaluate


def _not_equal_numbers(left: Any, right: Any) -> Any:
    # Not numpy.not_equal: that is true for NaN, and a comparison with a missing operand must be false.
    return np.less(left, right) | np.greater(left, right)


_NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": _not_equal_numbers,
}
_BOOLEANS: dict[str, Callable[[Any, Any], Any]] = {"==": np.equal, "!=": np.not_equal}


def _text_equal(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return np.bool_(left == right)
    if isinstance(right, TextColumn) and isinstance(left, str):
        left, right = right, left
    if isinstance(left, TextColumn) and isinstance(right, str):
        return left.codes == (left.vocabulary.index(right) if right in left.vocabulary else -2)
    a, b = _objects(left), _objects(right)
    return np.asarray(a == b, dtype=np.bool_) & _present(a) & _present(b)


def _objects(text: Any) -> Any:
    """Texts as an object array, missing ones None."""
    if not isinstance(text, TextColumn):
        return np.asarray(text, dtype=object)
    return np.array([*text.vocabulary, None], dtype=object)[text.codes]


def _present(text: Any) -> Any:
    if isinstance(text, str):
        return np.bool_(True)
    if isinstance(text, TextColumn):
        return text.codes >= 0
    # NumPy compares objects with None one by one only through the operator.
    return np.asarray(text, dtype=object) != None  # noqa: E711


def _text_not_equal(left: Any, right: Any) -> Any:
    return ~_text_equal(left, right) & _present(left) & _present(right)


_TEXTS: dict[str, Callable[[Any, Any], Any]] = {"==": _text_equal, "!=": _text_not_equal}
_COMPARISONS = {ColumnType.NUMBER: _NUMBERS, ColumnType.BOOLEAN: _BOOLEANS, ColumnType.TEXT: _TEXTS}


def _comparison(node: Comparison) -> Evaluate:
    functions = [_COMPARISONS[node.operands[0].type][operator] for operator in node.operators]
    operands = [_compile(operand) for operand in node.operands]

    def evaluate(columns: Columns) -> Evaluated:
        left, errors = operands[0](columns)
        result: Any = None
        for function, operand in zip(functions, operands[1:], strict=True):
            right, errors_right = operand(columns)
            if result is None:
                errors = _either(errors, errors_right)
                result = function(left, right)
            else:
                errors = _either(errors, _where_reached(result, errors_right))
                result = result & function(left, right)
            left = right
        return result, errors

    return evaluate


def _membership(node: Membership) -> Evaluate:
    operand = _compile(node.operand)
    listed, negated = node.values, node.negated

    def evaluate(columns: Columns) -> Evaluated:
        value, errors = operand(columns)
        if node.operand.type is ColumnType.NUMBER:
            present: Any = ~np.isnan(value)
            inside: Any = np.isin(value, np.array(listed, dtype=np.float64))
        elif isinstance(value, TextColumn):
            present = value.codes >= 0
            inside = np.isin(value.codes, [i for i, word in enumerate(value.vocabulary) if word in listed])
        else:
            present = _present(value)
            inside = np.asarray(np.isin(np.asarray(value, dtype=object), np.array(listed, dtype=object)))
        return (present & ~inside) if negated else (present & inside), errors

    return evaluate


def _connective(node: Connective) -> Evaluate:
    operands = [_compile(operand) for operand in node.operands]
    conjunction = node.operator == "and"

    def evaluate(columns: Columns) -> Evaluated:
        result, errors = operands[0](columns)
        for operand in operands[1:]:
            value, errors_value = operand(columns)
            errors = _either(
                errors, _where_reached(result if conjunction else np.logical_not(result), errors_value)
            )
            result = np.logical_and(result, value) if conjunction else np.logical_or(result, value)
        return result, errors

    return evaluate


def _choice(node: Choice) -> Evaluate:
    condition, chosen, otherwise = _compile(node.condition), _compile(node.chosen), _compile(node.otherwise)
    text = node.type is ColumnType.TEXT

    def evaluate(columns: Columns) -> Evaluated:
        test, errors = condition(columns)
        a, errors_a = chosen(columns)
        b, errors_b = otherwise(columns)
        errors = _either(errors, _where_reached(test, errors_a))
        errors = _either(errors, _where_reached(np.logical_not(test), errors_b))
        return (np.where(test, _objects(a), _objects(b)) if text else np.where(test, a, b)), errors

    return evaluate


def _minimum(left: Any, right: Any) -> Any:
    return np.where(np.less_equal(left, right) | np.isnan(left), left, right)


def _maximum(left: Any, right: Any) -> Any:
    return np.where(np.greater_equal(left, right) | np.isnan(left), left, right)


def _coalesce(left: Any, right: Any) -> Any:
    return np.where(np.isnan(left), right, left)


def _missing(value: Any) -> Any:
    if isinstance(value, str | TextColumn) or np.asarray(value).dtype == object:
        return ~_present(value)
    return np.isnan(value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "min": _minimum,
    "max": _maximum,
    "coalesce": _coalesce,
    "missing": _missing,
}


def _call(node: Call) -> Evaluate:
    arguments = [_compile(argument) for argument in node.arguments]
    function = _FUNCTIONS[node.function]
    root = node.function == "sqrt"

    def evaluate(columns: Columns) -> Evaluated:
        values: list[Any] = []
        errors: Bools | None = None
        for argument in arguments:
            value, errors_value = argument(columns)
            values.append(value)
            errors = _either(errors, errors_value)
        if root:
            errors = _either(errors, np.less(values[0], 0.0))
        return function(*values), errors

    return evaluate
