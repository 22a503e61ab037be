"""The rule language: a typed subset of Python expressions.

Permitted: numbers, texts, ``True``/``False``, column names, ``+ - * / %``, comparisons (chained ones too), ``in`` and
``not in`` with a tuple of constants, ``and or not``, ``a if condition else b`` and the functions of :data:`FUNCTIONS`.
Everything else is refused when the rule is loaded, with its position.

Semantics, the same on the vectorised and on the scalar path:

- all numbers are IEEE double precision; a missing number is NaN and spreads through arithmetic;
- a comparison with a missing operand is false, ``!=`` and ``not in`` included; ask with ``missing(x)``;
- ``and``, ``or``, chained comparisons and conditionals look at no more operands than needed, from left to right;
- division or remainder by zero and the square root of a negative number are *errors*: the rule does not hit that
  row, and the error is counted.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass

from scoring.rules.columns import ColumnSchema, ColumnType

MAX_LENGTH = 2000
MAX_NODES = 400
MAX_DEPTH = 40

NUMBER, BOOLEAN, TEXT = ColumnType.NUMBER, ColumnType.BOOLEAN, ColumnType.TEXT


class RuleSyntaxError(ValueError):
    """An expression is outside the language or ill-typed; ``line`` and ``column`` count from 1."""

    def __init__(self, expression: str, line: int, column: int, reason: str) -> None:
        lines = expression.splitlines() or [""]
        shown = lines[min(line, len(lines)) - 1]
        super().__init__(f"line {line}, column {column}: {reason}\n  {shown}\n  {' ' * (column - 1)}^")
        self.line = line
        self.column = column
        self.reason = reason


@dataclass(frozen=True)
class Constant:
    """A literal; numbers are always floats."""

    value: float | bool | str
    type: ColumnType


@dataclass(frozen=True)
class ColumnValue:
    """A column read by name."""

    name: str
    type: ColumnType


@dataclass(frozen=True)
class Negation:
    """Arithmetic minus."""

    operand: Node
    type: ColumnType = NUMBER


@dataclass(frozen=True)
class Arithmetic:
    """``left operator right`` with one of ``+ - * / %``."""

    operator: str
    left: Node
    right: Node
    type: ColumnType = NUMBER


@dataclass(frozen=True)
class Comparison:
    """A chain ``operands[0] operators[0] operands[1] ...`` over one operand type."""

    operators: tuple[str, ...]
    operands: tuple[Node, ...]
    type: ColumnType = BOOLEAN


@dataclass(frozen=True)
class Membership:
    """``operand in (constants)``, or ``not in``."""

    operand: Node
    values: tuple[float | str, ...]
    negated: bool
    type: ColumnType = BOOLEAN


@dataclass(frozen=True)
class Connective:
    """``and``/``or`` over two or more operands."""

    operator: str
    operands: tuple[Node, ...]
    type: ColumnType = BOOLEAN


@dataclass(frozen=True)
class Complement:
    """Logical ``not``."""

    operand: Node
    type: ColumnType = BOOLEAN


@dataclass(frozen=True)
class Choice:
    """``chosen if condition else otherwise``; both branches have one type."""

    condition: Node
    chosen: Node
    otherwise: Node
    type: ColumnType


@dataclass(frozen=True)
class Call:
    """A function of the language applied to its arguments."""

    function: str
    arguments: tuple[Node, ...]
    type: ColumnType


Node = (
    Constant
    | ColumnValue
    | Negation
    | Arithmetic
    | Comparison
    | Membership
    | Connective
    | Complement
    | Choice
    | Call
)


@dataclass(frozen=True)
class Signature:
    """Argument types (None: number or text) and result type of a function."""

    arguments: tuple[ColumnType | None, ...]
    result: ColumnType


FUNCTIONS: dict[str, Signature] = {
    "abs": Signature((NUMBER,), NUMBER),
    "floor": Signature((NUMBER,), NUMBER),
    "sqrt": Signature((NUMBER,), NUMBER),
    "min": Signature((NUMBER, NUMBER), NUMBER),
    "max": Signature((NUMBER, NUMBER), NUMBER),
    "coalesce": Signature((NUMBER, NUMBER), NUMBER),
    "missing": Signature((None,), BOOLEAN),
}

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Mod: "%",
}
_ORDERED: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_EQUALITY: dict[type[ast.cmpop], str] = {ast.Eq: "==", ast.NotEq: "!="}
_MEMBERSHIP: dict[type[ast.cmpop], bool] = {ast.In: False, ast.NotIn: True}


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text, typed tree and the columns it reads."""

    text: str
    root: Node
    columns: frozenset[str]


def parse_condition(text: str, schema: ColumnSchema) -> Expression:
    """Parse and type-check a boolean expression over ``schema``; raises :class:`RuleSyntaxError`."""
    checker = _Checker(text, schema)
    root = checker.check(checker.tree, 0)
    if root.type is not BOOLEAN:
        raise checker.error(checker.tree, f"a rule must be a boolean, this is a {root.type}")
    return Expression(text, root, frozenset(checker.columns))


class _Checker:
    def __init__(self, text: str, schema: ColumnSchema) -> None:
        self.text = text
        self.schema = schema
        self.columns: set[str] = set()
        self.nodes = 0
        if len(text) > MAX_LENGTH:
            raise RuleSyntaxError(text, 1, 1, f"{len(text)} characters, at most {MAX_LENGTH} are permitted")
        if not text.strip():
            raise RuleSyntaxError(text, 1, 1, "a rule needs a condition")
        try:
            # Parentheses let an expression span lines; columns of the first line are then one too far.
            self.tree = ast.parse(f"({text}\n)", mode="eval").body
        except SyntaxError as error:
            line, column = error.lineno or 1, error.offset or 1
            column = max(1, column - 1) if line == 1 else column
            if line > len(text.splitlines()):
                line, column = len(text.splitlines()), len(text.splitlines()[-1]) + 1
            raise RuleSyntaxError(text, line, column, error.msg) from error
        except (RecursionError, MemoryError, ValueError) as error:
            raise RuleSyntaxError(text, 1, 1, f"cannot be parsed: {error}") from error

    def error(self, node: ast.expr, reason: str) -> RuleSyntaxError:
        # ast counts columns in UTF-8 bytes; people count characters.
        lines = f"({self.text}".splitlines()
        before = lines[node.lineno - 1].encode()[: node.col_offset].decode(errors="ignore")
        column = len(before) + 1 - (1 if node.lineno == 1 else 0)
        return RuleSyntaxError(self.text, node.lineno, max(1, column), reason)

    def check(self, node: ast.expr, depth: int) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self.error(node, f"too large: at most {MAX_NODES} parts, {MAX_DEPTH} deep")
        handlers: dict[type[ast.expr], Callable[[ast.expr, int], Node]] = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._arithmetic,
            ast.Compare: self._compare,
            ast.BoolOp: self._connective,
            ast.IfExp: self._choice,
            ast.Call: self._call,
        }
        handler = handlers.get(type(node))
        if handler is None:
            raise self.error(node, f"{type(node).__name__} is not part of the rule language")
        return handler(node, depth + 1)

    def _typed(self, node: ast.expr, wanted: ColumnType, where: str, depth: int) -> Node:
        checked = self.check(node, depth)
        if checked.type is not wanted:
            raise self.error(node, f"{where} needs a {wanted}, this is a {checked.type}")
        return checked

    def _constant(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.Constant)
        value = node.value
        if isinstance(value, bool):
            return Constant(value, BOOLEAN)
        if isinstance(value, str):
            return Constant(value, TEXT)
        if isinstance(value, int | float):
            return Constant(self._finite(node, value), NUMBER)
        raise self.error(node, f"{value!r} is no number, text or boolean")

    def _finite(self, node: ast.expr, value: float) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(node, "this number is too large")
        return number

    def _name(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.Name)
        column = self.schema.get(node.id)
        if column is None:
            raise self.error(node, f"there is no column {node.id!r}{_nearest(node.id, self.schema)}")
        self.columns.add(node.id)
        return ColumnValue(node.id, column.type)

    def _unary(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.UnaryOp)
        if isinstance(node.op, ast.Not):
            return Complement(self._typed(node.operand, BOOLEAN, "'not'", depth))
        if isinstance(node.op, ast.USub):
            return Negation(self._typed(node.operand, NUMBER, "'-'", depth))
        raise self.error(node, f"the operator {type(node.op).__name__} is not part of the rule language")

    def _arithmetic(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.BinOp)
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            raise self.error(node, f"the operator {type(node.op).__name__} is not part of the rule language")
        left = self._typed(node.left, NUMBER, f"'{operator}'", depth)
        return Arithmetic(operator, left, self._typed(node.right, NUMBER, f"'{operator}'", depth))

    def _compare(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.Compare)
        if type(node.ops[0]) in _MEMBERSHIP:
            return self._membership(node, depth)
        operands = [self.check(node.left, depth)]
        operators: list[str] = []
        kind = operands[0].type
        for op, right in zip(node.ops, node.comparators, strict=True):
            operator = _ORDERED.get(type(op)) or _EQUALITY.get(type(op))
            if operator is None:
                raise self.error(right, f"{type(op).__name__} cannot stand here; join comparisons with 'and'")
            if type(op) in _ORDERED and kind is not NUMBER:
                raise self.error(node, f"'{operator}' compares numbers, not a {kind}")
            if len(node.ops) > 1 and (operator == "!=" or kind is TEXT):
                raise self.error(
                    right, f"'{operator}' on a {kind} cannot be chained; join comparisons with 'and'"
                )
            operands.append(self._typed(right, kind, f"'{operator}' with a {kind} on its left", depth))
            operators.append(operator)
        return Comparison(tuple(operators), tuple(operands))

    def _membership(self, node: ast.Compare, depth: int) -> Node:
        if len(node.ops) != 1:
            raise self.error(node, "'in' cannot be chained; join comparisons with 'and'")
        operand = self.check(node.left, depth)
        listed = node.comparators[0]
        if operand.type is BOOLEAN:
            raise self.error(node.left, "'in' needs a number or a text")
        if not isinstance(listed, ast.Tuple | ast.List | ast.Set) or not listed.elts:
            raise self.error(listed, "'in' needs a tuple of constants, such as ('card', 'transfer')")
        values: list[float | str] = []
        for element in listed.elts:
            constant = self._typed(element, operand.type, "'in'", depth)
            sign = 1.0
            if isinstance(constant, Negation):
                constant, sign = constant.operand, -1.0
            if not isinstance(constant, Constant):
                raise self.error(element, "only constants may be listed here")
            values.append(constant.value if isinstance(constant.value, str) else sign * constant.value)
        return Membership(operand, tuple(values), _MEMBERSHIP[type(node.ops[0])])

    def _connective(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.BoolOp)
        operator = "and" if isinstance(node.op, ast.And) else "or"
        operands = tuple(self._typed(value, BOOLEAN, f"'{operator}'", depth) for value in node.values)
        return Connective(operator, operands)

    def _choice(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.IfExp)
        condition = self._typed(node.test, BOOLEAN, "'if'", depth)
        chosen = self.check(node.body, depth)
        otherwise = self._typed(node.orelse, chosen.type, "'else'", depth)
        return Choice(condition, chosen, otherwise, chosen.type)

    def _call(self, node: ast.expr, depth: int) -> Node:
        assert isinstance(node, ast.Call)
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise self.error(node.func, f"functions are {', '.join(FUNCTIONS)}")
        name, signature = node.func.id, FUNCTIONS[node.func.id]
        if node.keywords or len(node.args) != len(signature.arguments):
            raise self.error(node, f"{name} takes {len(signature.arguments)} arguments by position")
        arguments = []
        for argument, wanted in zip(node.args, signature.arguments, strict=True):
            checked = self.check(argument, depth)
            if checked.type is not (wanted or checked.type) or checked.type is BOOLEAN:
                raise self.error(
                    argument, f"{name} needs a {wanted or 'number or text'}, not a {checked.type}"
                )
            arguments.append(checked)
        return Call(name, tuple(arguments), signature.result)


def _nearest(name: str, schema: ColumnSchema) -> str:
    """A hint for a misspelt column: the declared names that share the longest beginning."""
    shared = {known: _shared_prefix(name, known) for known in schema}
    best = max(shared.values(), default=0)
    if best < 3:
        return ""
    near = [known for known, length in shared.items() if length == best][:3]
    return f"; did you mean {' or '.join(repr(known) for known in near)}?"


def _shared_prefix(left: str, right: str) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
