"""Compile checked expressions to NumPy: closures from a batch to (values, error mask).

All rules of a set are compiled together: equal sub-expressions become one closure whose result is kept for the batch.
An error mask is None when no row can be in error, so that plain comparisons cost one NumPy call. Under the mask the
values are meaningless; :class:`Program` clears them.

What a call costs here is NumPy's overhead (about 1 us) as much as the work on 4,096 rows, so a conjunction that has no
row left is not evaluated further: that changes no result, since operands that are not reached cannot be in error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from scoring.rules.operations import ARITHMETIC, COMPARISONS, FUNCTIONS, any_of, missing, objects

Bools: TypeAlias = NDArray[np.bool_]
Columns: TypeAlias = Mapping[str, ColumnValues]
# Values are float64 or bool arrays, TextColumn, object arrays of texts, or a plain constant.
Evaluated: TypeAlias = tuple[Any, Bools | None]


@dataclass
class Frame:
    """One batch under evaluation: its columns, and what shared sub-expressions gave so far."""

    columns: Columns
    rows: int
    kept: dict[int, Evaluated] = field(default_factory=dict)


Evaluate: TypeAlias = Callable[[Frame], Evaluated]


class Program:
    """The conditions of a rule set, compiled together; immutable and shared between threads."""

    def __init__(self, expressions: Sequence[Expression]) -> None:
        compiler = _Compiler([expression.root for expression in expressions])
        self._columns = sorted(frozenset().union(*(expression.columns for expression in expressions)))
        self._conditions = [compiler.compiled(expression.root) for expression in expressions]

    def start(self, columns: Columns, rows: int) -> Frame:
        """Begin a batch of ``rows`` rows.

        Columns of a matrix that lies row by row are laid out in one piece, all together while its lines are in the
        cache: striding over them again at every use would cost three times as much as all rules.
        """
        given: dict[str, Any] = {name: columns[name] for name in self._columns if name in columns}
        strided = [
            name
            for name, values in given.items()
            if not isinstance(values, TextColumn) and not values.flags.c_contiguous
        ]
        # One allocation: sixty of them would fault in their pages one by one.
        whole = np.empty((len(strided), rows))
        for place, name in enumerate(strided):
            whole[place] = given[name]
            given[name] = whole[place].astype(given[name].dtype, copy=False)
        return Frame(given, rows)

    def hits(self, rule: int, frame: Frame) -> tuple[Bools | None, Bools | None]:
        """Hits of one rule, bool [n] or None where no row hits, and the mask of rows in error, or None.

        Call within ``numpy.errstate(all="ignore")``. The arrays are not the caller's to change.
        """
        values, errors = self._conditions[rule](frame)
        if not isinstance(values, np.ndarray) or values.ndim == 0:
            values = np.full(frame.rows, bool(values)) if values else None
        if errors is None:
            return values, None
        errors = np.broadcast_to(errors, (frame.rows,))
        return (None if values is None else values & ~errors), errors


def compile_vectorised(expression: Expression) -> Callable[[Columns, int], tuple[Bools, Bools | None]]:
    """One rule as a function of (columns, number of rows): hits bool [n] and error mask bool [n] or None."""
    program = Program([expression])

    def hits(columns: Columns, rows: int) -> tuple[Bools, Bools | None]:
        with np.errstate(all="ignore"):
            values, errors = program.hits(0, program.start(columns, rows))
        return (np.zeros(rows, np.bool_) if values is None else values), errors

    return hits


def _identity(node: Node) -> tuple[tuple[object, ...], tuple[Node, ...]]:
    """What makes two nodes equal besides their parts, and the parts."""
    match node:
        case Constant():
            # By its text: 0.0 and -0.0 are equal, and True equals 1.0.
            return ("constant", node.type, repr(node.value)), ()
        case ColumnValue():
            return ("column", node.name), ()
        case Negation() | Complement():
            return (type(node).__name__,), (node.operand,)
        case Arithmetic():
            return ("arithmetic", node.operator), (node.left, node.right)
        case Comparison():
            return ("comparison", node.operators), node.operands
        case Membership():
            return ("membership", tuple(map(repr, node.values)), node.negated), (node.operand,)
        case Connective():
            return ("connective", node.operator), node.operands
        case Choice():
            return ("choice",), (node.condition, node.chosen, node.otherwise)
        case Call():
            return ("call", node.function), node.arguments


class _Compiler:
    """Numbers equal sub-expressions alike, counts their uses, and compiles each once."""

    def __init__(self, roots: Sequence[Node]) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}
        self._number_of: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self._closures: dict[int, Evaluate] = {}
        # Nodes are told apart by identity here, so they must outlive the compilation.
        self._roots = list(roots)
        for root in self._roots:
            self._number(root)

    def _number(self, node: Node) -> int:
        own, parts = _identity(node)
        key = (*own, tuple(self._number(part) for part in parts))
        number = self._numbers.setdefault(key, len(self._numbers))
        self._number_of[id(node)] = number
        self._uses[number] = self._uses.get(number, 0) + 1
        return number

    def compiled(self, node: Node) -> Evaluate:
        """The closure of a node; of a shared one the same for all its places."""
        number = self._number_of[id(node)]
        closure = self._closures.get(number)
        if closure is None:
            closure = self._compile(node)
            if self._uses[number] > 1 and not isinstance(node, Constant | ColumnValue):
                closure = _kept(number, closure)
            self._closures[number] = closure
        return closure

    def _compile(self, node: Node) -> Evaluate:
        parts = [self.compiled(part) for part in _identity(node)[1]]
        match node:
            case Constant():
                # A zero-dimensional array saves NumPy the conversion at each use.
                value = np.asarray(node.value) if node.type is ColumnType.NUMBER else node.value
                return lambda frame: (value, None)
            case ColumnValue():
                name = node.name
                return lambda frame: (frame.columns[name], None)
            case Negation():
                return _unary(parts[0], np.negative)
            case Complement():
                return _unary(parts[0], np.logical_not)
            case Arithmetic():
                return _arithmetic(node, *parts)
            case Comparison():
                return _comparison(node, parts)
            case Membership():
                return _membership(node, *parts)
            case Connective():
                return _conjunction(parts) if node.operator == "and" else _disjunction(parts)
            case Choice():
                return _choice(node, *parts)
            case Call():
                return _call(node, parts)


def _kept(number: int, closure: Evaluate) -> Evaluate:
    def evaluate(frame: Frame) -> Evaluated:
        found = frame.kept.get(number)
        if found is None:
            found = frame.kept[number] = closure(frame)
        return found

    return evaluate


def _either(left: Bools | None, right: Bools | None) -> Bools | None:
    if left is None:
        return right
    return left if right is None else left | right


def _where_reached(reached: Any, errors: Bools | None) -> Bools | None:
    """Errors of an operand count only in rows where evaluation reaches it."""
    return None if errors is None else reached & errors


def _unary(operand: Evaluate, function: Callable[[Any], Any]) -> Evaluate:
    def evaluate(frame: Frame) -> Evaluated:
        value, errors = operand(frame)
        return function(value), errors

    return evaluate


_ZERO = np.asarray(0.0)


def _arithmetic(node: Arithmetic, left: Evaluate, right: Evaluate) -> Evaluate:
    function = ARITHMETIC[node.operator]
    may_divide_by_zero = node.operator in "/%" and not (isinstance(node.right, Constant) and node.right.value)

    def evaluate(frame: Frame) -> Evaluated:
        a, errors_a = left(frame)
        b, errors_b = right(frame)
        errors = _either(errors_a, errors_b)
        if may_divide_by_zero:
            zero = np.equal(b, _ZERO)
            # Most batches divide by nothing that is zero; then no mask has to be carried along.
            if np.count_nonzero(zero):
                errors = _either(errors, zero)
        return function(a, b), errors

    return evaluate


def _comparison(node: Comparison, operands: Sequence[Evaluate]) -> Evaluate:
    functions = [COMPARISONS[node.operands[0].type][operator] for operator in node.operators]
    if len(functions) == 1:
        return _one_comparison(functions[0], operands[0], operands[1])

    def evaluate(frame: Frame) -> Evaluated:
        left, errors = operands[0](frame)
        result: Any = None
        for function, operand in zip(functions, operands[1:], strict=True):
            right, errors_right = operand(frame)
            if result is None:
                errors = _either(errors, errors_right)
                result = function(left, right)
            else:
                errors = _either(errors, _where_reached(result, errors_right))
                result = result & function(left, right)
            left = right
        return result, errors

    return evaluate


def _one_comparison(function: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    def evaluate(frame: Frame) -> Evaluated:
        a, errors_a = left(frame)
        b, errors_b = right(frame)
        return function(a, b), _either(errors_a, errors_b)

    return evaluate


def _membership(node: Membership, operand: Evaluate) -> Evaluate:
    listed, negated = node.values, node.negated

    def evaluate(frame: Frame) -> Evaluated:
        value, errors = operand(frame)
        if node.operand.type is ColumnType.NUMBER:
            inside = any_of(value, listed)
        elif isinstance(value, TextColumn):
            inside = any_of(value.codes, [i for i, word in enumerate(value.vocabulary) if word in listed])
        else:
            inside = np.isin(np.asarray(value, dtype=object), np.array(listed, dtype=object))
        # A missing value equals no constant, so that only "not in" has to look for it.
        return (np.logical_not(inside | missing(value)) if negated else inside), errors

    return evaluate


def _conjunction(operands: Sequence[Evaluate]) -> Evaluate:
    first, *rest = operands

    def evaluate(frame: Frame) -> Evaluated:
        result, errors = first(frame)
        for position, operand in enumerate(rest):
            # After the first operand rows are usually left; looking would cost more than it saves.
            if position and not np.count_nonzero(result):
                break
            value, errors_value = operand(frame)
            if errors_value is not None:
                errors = _either(errors, _where_reached(result, errors_value))
            result = result & value
        return result, errors

    return evaluate


def _disjunction(operands: Sequence[Evaluate]) -> Evaluate:
    first, *rest = operands

    def evaluate(frame: Frame) -> Evaluated:
        result, errors = first(frame)
        for operand in rest:
            value, errors_value = operand(frame)
            if errors_value is not None:
                errors = _either(errors, _where_reached(np.logical_not(result), errors_value))
            result = result | value
        return result, errors

    return evaluate


def _choice(node: Choice, condition: Evaluate, chosen: Evaluate, otherwise: Evaluate) -> Evaluate:
    text = node.type is ColumnType.TEXT

    def evaluate(frame: Frame) -> Evaluated:
        test, errors = condition(frame)
        a, errors_a = chosen(frame)
        b, errors_b = otherwise(frame)
        errors = _either(errors, _where_reached(test, errors_a))
        errors = _either(errors, _where_reached(np.logical_not(test), errors_b))
        return (np.where(test, objects(a), objects(b)) if text else np.where(test, a, b)), errors

    return evaluate


def _call(node: Call, arguments: Sequence[Evaluate]) -> Evaluate:
    function = FUNCTIONS[node.function]
    root = node.function == "sqrt"

    def evaluate(frame: Frame) -> Evaluated:
        values: list[Any] = []
        errors: Bools | None = None
        for argument in arguments:
            value, errors_value = argument(frame)
            values.append(value)
            errors = _either(errors, errors_value)
        if root:
            errors = _either(errors, np.less(values[0], _ZERO))
        return function(*values), errors

    return evaluate
