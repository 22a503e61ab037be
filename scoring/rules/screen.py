"""Which rules can hit anything in a batch: their leading comparisons with constants, in one compiled pass.

A rule hits few rows, and most conditions are settled by comparisons of a number with a constant, or by a boolean
column, that stand first. Such an operand cannot be in error, and what follows a false operand is not reached, so a rule
none of whose rows passes them has neither hits nor errors, whatever else it says. Only the others are evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled, compiled_brief
from scoring.rules.columns import ColumnType, ColumnValues, Layout, MatrixColumns
from scoring.rules.language import ColumnValue, Comparison, Connective, Constant, Expression, Node

_OPERATORS = ("<", "<=", ">", ">=", "==", "!=")
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_Test = tuple[str, str, float]  # column, operator, constant
_FEW = 64


class Screen:
    """The leading tests of a rule set; immutable and shared between threads."""

    def __init__(self, expressions: Sequence[Expression]) -> None:
        tests = [_leading(expression.root) for expression in expressions]
        every = [test for own in tests for test in own]
        self._first = np.cumsum([0, *map(len, tests)])
        self._tested = tuple(column for column, _, _ in every)
        self._operator = np.array([_OPERATORS.index(operator) for _, operator, _ in every], np.int64)
        self._constant = np.array([constant for _, _, constant in every], np.float64)
        self._no_layout = _Found.of(Layout((), ()), self._tested)
        self._found = self._no_layout

    def possible(self, columns: Mapping[str, ColumnValues], rows: int) -> list[int]:
        """The rules that may have hits or errors in a batch, ascending. Every column they read must be there."""
        if isinstance(columns, MatrixColumns):
            found, values = self._found, columns.matrix
            if found.layout is not columns.layout:
                found = self._found = _Found.of(columns.layout, self._tested)
        else:
            found, values = self._no_layout, _NO_MATRIX
        others = np.empty((len(found.others), rows))
        for place, name in enumerate(found.others):
            column: Any = columns[name]
            others[place] = column
        passing = (_passing_brief if rows <= _FEW else _passing)(
            values, others, rows, self._first, found.column, self._operator, self._constant
        )
        possible: list[int] = passing.nonzero()[0].tolist()
        return possible


_NO_MATRIX = np.empty((0, 0))


@dataclass(frozen=True, eq=False)
class _Found:
    """Where the tests of a screen find their columns: ``column`` int64 by test, those of ``others`` as -1, -2, ..."""

    layout: Layout
    others: tuple[str, ...]
    column: NDArray[np.int64]

    @classmethod
    def of(cls, layout: Layout, tested: Sequence[str]) -> _Found:
        others = tuple(dict.fromkeys(name for name in tested if name not in layout.places))
        places = {**layout.places, **{name: -1 - place for place, name in enumerate(others)}}
        return cls(layout, others, np.array([places[name] for name in tested], np.int64))


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
    others: NDArray[np.float64],
    rows: int,
    first: NDArray[np.int64],
    column: NDArray[np.int64],
    operator: NDArray[np.int64],
    constant: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which rules have a row that passes all of their tests, bool [r]; ``values``, ``others`` float64 [c, n]."""
    passing = np.zeros(len(first) - 1, np.bool_)
    for rule in range(len(passing)):
        for row in range(rows):
            passes = True
            for test in range(first[rule], first[rule + 1]):
                place, bound, kind = column[test], constant[test], operator[test]
                value = values[place, row] if place >= 0 else others[-1 - place, row]
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


@compiled_brief
def _passing_brief(
    values: NDArray[np.float64],
    others: NDArray[np.float64],
    rows: int,
    first: NDArray[np.int64],
    column: NDArray[np.int64],
    operator: NDArray[np.int64],
    constant: NDArray[np.float64],
) -> NDArray[np.bool_]:
    return _passing(values, others, rows, first, column, operator, constant)
