"""Compile a checked expression to one Python code object: the path of a single event.

The code is generated from the *typed tree*, never from the rule's text, and runs without builtins; what a name
can reach is exactly what the tree names. Errors surface as ArithmeticError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from scoring.rules.columns import Cell, ColumnType
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


def compile_scalar(expression: Expression) -> Callable[[Mapping[str, Cell]], bool]:
    """The rule as a function of one row's cells; raises ArithmeticError where the rule is in error.

    Cells must be plain float, bool, str or None (numpy scalars divide by zero without raising).
    """
    source = _source(expression.root)
    code: CodeType = compile(f"lambda row: {source}", "<rule>", "eval")
    surroundings: dict[str, Any] = {"__builtins__": {}, **_FUNCTIONS}
    condition: Callable[[Mapping[str, Cell]], object] = eval(code, surroundings)  # noqa: S307 - the checked tree's
    return lambda row: bool(condition(row))


def _source(node: Node) -> str:
    if isinstance(node, Constant):
        return repr(node.value)
    if isinstance(node, ColumnValue):
        return f"row[{node.name!r}]"
    if isinstance(node, Negation):
        return f"(-{_source(node.operand)})"
    if isinstance(node, Complement):
        return f"(not {_source(node.operand)})"
    if isinstance(node, Arithmetic):
        return f"({_source(node.left)} {node.operator} {_source(node.right)})"
    if isinstance(node, Comparison):
        return _comparison(node)
    if isinstance(node, Membership):
        function = "outside" if node.negated else "inside"
        return f"{function}({_source(node.operand)}, {node.values!r})"
    if isinstance(node, Connective):
        return "(" + f" {node.operator} ".join(_source(operand) for operand in node.operands) + ")"
    if isinstance(node, Choice):
        return f"({_source(node.chosen)} if {_source(node.condition)} else {_source(node.otherwise)})"
    assert isinstance(node, Call)
    return f"{_NAMES[node.function]}({', '.join(_source(argument) for argument in node.arguments)})"


def _comparison(node: Comparison) -> str:
    kind = node.operands[0].type
    sources = [_source(operand) for operand in node.operands]
    if kind is ColumnType.TEXT or (kind is ColumnType.NUMBER and node.operators == ("!=",)):
        # Python's != is true for NaN and None; here a comparison with a missing operand is false.
        return f"{'differ' if node.operators == ('!=',) else 'equal'}({sources[0]}, {sources[1]})"
    rest = "".join(f" {op} {right}" for op, right in zip(node.operators, sources[1:], strict=True))
    return f"({sources[0]}{rest})"


def _is_missing(value: Cell) -> bool:
    # NaN is the only value that differs from itself.
    return value is None or value != value


def _equal(left: Cell, right: Cell) -> bool:
    return left == right and not _is_missing(left)


def _differ(left: Cell, right: Cell) -> bool:
    return left != right and not _is_missing(left) and not _is_missing(right)


def _inside(value: Cell, listed: tuple[float | str, ...]) -> bool:
    return value in listed and not _is_missing(value)


def _outside(value: Cell, listed: tuple[float | str, ...]) -> bool:
    return value not in listed and not _is_missing(value)


def _floor(value: float) -> float:
    return float(math.floor(value)) if math.isfinite(value) else value


def _sqrt(value: float) -> float:
    if value < 0.0:
        raise ArithmeticError("square root of a negative number")
    return math.sqrt(value)


def _minimum(left: float, right: float) -> float:
    return left if left <= right or _is_missing(left) else right


def _maximum(left: float, right: float) -> float:
    return left if left >= right or _is_missing(left) else right


def _coalesce(left: float, right: float) -> float:
    return right if _is_missing(left) else left


# The generated code calls functions by these names; the language's own names map to them below.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "absolute": abs,
    "floor": _floor,
    "sqrt": _sqrt,
    "minimum": _minimum,
    "maximum": _maximum,
    "coalesce": _coalesce,
    "missing": _is_missing,
    "equal": _equal,
    "differ": _differ,
    "inside": _inside,
    "outside": _outside,
}
_NAMES = {
    "abs": "absolute",
    "floor": "floor",
    "sqrt": "sqrt",
    "min": "minimum",
    "max": "maximum",
    "coalesce": "coalesce",
    "missing": "missing",
}
