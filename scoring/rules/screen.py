"""Which rules can hit anything in a batch: their leading comparisons with constants, in one compiled pass.

A rule hits few rows, and most conditions are settled by comparisons of a number with a constant, or by a boolean
column, that stand first. Such an operand cannot be in error, and what follows a false operand is not reached, so a rule
none of whose rows passes them has neither hits nor errors, whatever else it says. Only the others are evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.rules.columns import ColumnType, ColumnValues
from scoring.rules.language import ColumnValue, Comparison, Connective, Constant, Expression, Node

_OPERATORS = ("<", "<=", ">", ">=", "==", "!=")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_Test = tuple[str, str, float]  # column, operator, constant


class Screen:
    """The leading tests of a rule set; immutable and shared between threads."""

    def __init__(self, expressions: Sequence[Expression]) -> None:
        tests = [_leading(expression.root) for expression in expressions]
        every = [test for own in tests for test in own]
        self._columns = tuple(dict.fromkeys(column for column, _, _ in every))
        places = {column: place for place, column in enumerate(self._columns)}
        self._first = np.cumsum([0, *map(len, tests)])
        self._column = np.array([places[column] for column, _, _ in every], np.int64)
        self._operator = np.array([_OPERATORS.index(operator) for _, operator, _ in every], np.int64)
        self._constant = np.array([constant for _, _, constant in every], np.float64)

    def possible(self, columns: Mapping[str, ColumnValues], rows: int) -> list[int]:
        """The rules that may have hits or errors in a batch, ascending. Every column they read must be there."""
        values = np.empty((len(self._columns), rows))
        for place, name in enumerate(self._columns):
            column: Any = columns[name]
            values[place] = column
        passing = _passing(values, self._first, self._column, self._operator, self._constant)
        found: list[int] = passing.nonzero()[0].tolist()
        return found


def _leading(root: Node) -> list[_Test]:
    operands = root.operands if isinstance(root, Connective) and root.operator == "and" else (root,)
    tests: list[_Test] = []
    for operand in operands:
        test = _test(operand)
        if test is None:
            break
        tests.append(test)
    return tests


def _test(node: Node) -> _Test | None:
    if isinstance(node, ColumnValue) and node.type is ColumnType.BOOLEAN:
        return node.name, "==", 1.0
    if not isinstance(node, Comparison) or len(node.operators) != 1:
        return None
    left, right = node.operands
    operator = node.operators[0]
    if isinstance(left, Constant):
        left, right, operator = right, left, _MIRRORED[operator]
    if not (isinstance(left, ColumnValue) and isinstance(right, Constant)):
        return None
    if left.type is not ColumnType.NUMBER or not isinstance(right.value, float):
        return None
    return left.name, operator, right.value


@compiled
def _passing(
    values: NDArray[np.float64],
    first: NDArray[np.int64],
    column: NDArray[np.int64],
    operator: NDArray[np.int64],
    constant: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which rules have a row that passes all of their tests, bool [r]; ``values`` float64 [c, n]."""
    passing = np.zeros(len(first) - 1, np.bool_)
    for rule in range(len(passing)):
        for row in range(values.shape[1]):
            passes = True
            for test in range(first[rule], first[rule + 1]):
                value, bound, kind = values[column[test], row], constant[test], operator[test]
                if kind == 0:
                    passes = value < bound
                elif kind == 1:
                    passes = value <= bound
                elif kind == 2:
                    passes = value > bound
                elif kind == 3:
                    passes = value >= bound
                elif kind == 4:
                    passes = value == bound
                else:
                    passes = value < bound or value > bound  # a missing number differs from nothing
                if not passes:
                    break
            if passes:
                passing[rule] = True
                break
    return passing
