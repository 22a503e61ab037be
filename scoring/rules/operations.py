"""What the operators and functions of the rule language do to columns: NumPy on float64, booleans and texts.

A missing number is NaN and a missing text None or code -1; every comparison with one is false.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scoring.rules.columns import ColumnType, TextColumn

# Beyond so many listed constants a search beats one comparison each.
_FEW = 6

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
}


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
    a, b = objects(left), objects(right)
    return np.asarray(a == b, dtype=np.bool_) & _present(a) & _present(b)


def objects(text: Any) -> Any:
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
COMPARISONS = {ColumnType.NUMBER: _NUMBERS, ColumnType.BOOLEAN: _BOOLEANS, ColumnType.TEXT: _TEXTS}


def any_of(values: Any, constants: Sequence[Any]) -> Any:
    """Where ``values`` equal one of ``constants``."""
    if not constants or len(constants) > _FEW:
        return np.isin(values, np.array(constants, dtype=np.asarray(values).dtype))
    result = np.equal(values, constants[0])
    for constant in constants[1:]:
        result = result | np.equal(values, constant)
    return result


def _minimum(left: Any, right: Any) -> Any:
    return np.where(np.less_equal(left, right) | np.isnan(left), left, right)


def _maximum(left: Any, right: Any) -> Any:
    return np.where(np.greater_equal(left, right) | np.isnan(left), left, right)


def _coalesce(left: Any, right: Any) -> Any:
    return np.where(np.isnan(left), right, left)


def missing(value: Any) -> Any:
    """Where a number or a text is missing."""
    if isinstance(value, str | TextColumn) or np.asarray(value).dtype == object:
        return ~_present(value)
    return np.isnan(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "floor": np.floor,
    "sqrt": np.sqrt,
    "min": _minimum,
    "max": _maximum,
    "coalesce": _coalesce,
    "missing": missing,
}
