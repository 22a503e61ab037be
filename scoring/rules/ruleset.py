"""Rule sets: loaded from TOML, type-checked as a whole, evaluated over batches or single rows.

A rule set file::

    name = "cards"
    version = 3

    [[rule]]
    id = "terminal-flagged"            # unique
    when = "terminal_victims_all >= 1"
    verdict = "block"                  # allow (only counted), challenge, review or block
    evidence = "terminal"              # optional: the policy's tier of this kind bounds the verdict on each row
    reason = "{terminal_victims_all} victims of this terminal are known"   # {column} is filled in

A rule that reads what other parties say of an indicator must declare ``evidence``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.rules.columns import Cell, ColumnSchema, ColumnValues, cell
from scoring.rules.language import Expression, RuleSyntaxError, parse_condition
from scoring.rules.scalar import compile_scalar
from scoring.rules.vectorised import compile_vectorised
from scoring.verdicts import Verdict, verdict_named

MAX_RULES = 1000
_ID = re.compile(r"[a-z][a-z0-9-]{0,63}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class RuleSetError(ValueError):
    """A rule set file is wrong; the message names the rule and, in an expression, line and column."""


@dataclass(frozen=True)
class Rule:
    """One checked rule. ``evidence``: indicator kind whose policy tier bounds the verdict, or None."""

    id: str
    expression: Expression
    verdict: Verdict
    reason: str
    evidence: str | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns the condition or the reason reads."""
        return self.expression.columns | frozenset(_PLACEHOLDER.findall(self.reason))


@dataclass(frozen=True)
class Judgement:
    """The verdict of each row and why.

    ``verdict`` uint8 [n]; ``rule`` int16 [n]: index of the deciding rule, -1 where none; ``hits`` bool [n, r];
    ``effective`` uint8 [n, r]: the verdict each hit gives after its tier's bound (0 where no hit);
    ``errors`` int64 [r]: rows in which the rule was in error and therefore did not hit.
    """

    verdict: NDArray[np.uint8]
    rule: NDArray[np.int16]
    hits: NDArray[np.bool_]
    effective: NDArray[np.uint8]
    errors: NDArray[np.int64]


@dataclass(frozen=True)
class RowJudgement:
    """A judgement of one row: ``hits`` are rule indices with their effective verdicts, ``errors`` rule indices."""

    verdict: Verdict
    rule: int
    hits: tuple[tuple[int, Verdict], ...]
    errors: tuple[int, ...]


class RuleSet:
    """Immutable compiled rules of one version. ``rules`` keep the file's order, which breaks ties."""

    def __init__(self, name: str, version: int, rules: Sequence[Rule]) -> None:
        self.name = name
        self.version = version
        self.rules = tuple(rules)
        self.columns: frozenset[str] = frozenset().union(*(rule.columns for rule in self.rules))
        self.evidence_kinds = frozenset(rule.evidence for rule in self.rules if rule.evidence is not None)
        self._vectorised = [compile_vectorised(rule.expression) for rule in self.rules]
        self._scalar: list[Callable[[Mapping[str, Cell]], bool]] = [
            compile_scalar(rule.expression) for rule in self.rules
        ]

    def evaluate(
        self,
        columns: Mapping[str, ColumnValues],
        rows: int,
        limits: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> Judgement:
        """Judge a batch of ``rows`` rows.

        ``columns`` holds arrays of that length (float64, bool or TextColumn) for at least :attr:`columns`;
        ``limits`` gives for each evidence kind the strongest verdict (uint8 [n]) its tier permits in each row.
        A kind without limits permits nothing: evidence nobody bounded does not count.
        A batch of one takes the scalar path: NumPy's cost a call would be all there is to see.
        """
        if rows == 1:
            return self._evaluate_one(columns, limits or {})
        count = len(self.rules)
        hits = np.zeros((rows, count), dtype=np.bool_)
        effective = np.zeros((rows, count), dtype=np.uint8)
        errors = np.zeros(count, dtype=np.int64)
        verdict = np.zeros(rows, dtype=np.uint8)
        deciding = np.full(rows, -1, dtype=np.int16)
        nothing = np.zeros(rows, dtype=np.uint8)
        for index, (rule, compiled) in enumerate(zip(self.rules, self._vectorised, strict=True)):
            hit, mask = compiled(columns, rows)
            if mask is not None:
                errors[index] = int(np.count_nonzero(mask))
            if not hit.any():
                continue
            hits[:, index] = hit
            given = hit * np.uint8(rule.verdict)
            if rule.evidence is not None:
                given = np.minimum(given, (limits or {}).get(rule.evidence, nothing))
            effective[:, index] = given
            stronger = given > verdict
            verdict[stronger] = given[stronger]
            deciding[stronger] = index
        return Judgement(verdict, deciding, hits, effective, errors)

    def _evaluate_one(
        self, columns: Mapping[str, ColumnValues], limits: Mapping[str, NDArray[np.uint8]]
    ) -> Judgement:
        cells = {name: cell(columns[name], 0) for name in self.columns}
        single = self.evaluate_row(cells, {kind: Verdict(int(limit[0])) for kind, limit in limits.items()})
        hits = np.zeros((1, len(self.rules)), dtype=np.bool_)
        effective = np.zeros((1, len(self.rules)), dtype=np.uint8)
        errors = np.zeros(len(self.rules), dtype=np.int64)
        for index, given in single.hits:
            hits[0, index] = True
            effective[0, index] = given
        errors[list(single.errors)] = 1
        return Judgement(
            np.array([single.verdict], np.uint8), np.array([single.rule], np.int16), hits, effective, errors
        )

    def evaluate_row(
        self, row: Mapping[str, Cell], limits: Mapping[str, Verdict] | None = None
    ) -> RowJudgement:
        """Judge one row given as plain Python cells; same semantics as :meth:`evaluate` on a batch of one."""
        verdict, deciding = Verdict.ALLOW, -1
        hits: list[tuple[int, Verdict]] = []
        errors: list[int] = []
        for index, (rule, compiled) in enumerate(zip(self.rules, self._scalar, strict=True)):
            try:
                hit = compiled(row)
            except ArithmeticError:
                errors.append(index)
                continue
            if not hit:
                continue
            given = rule.verdict
            if rule.evidence is not None:
                given = min(given, (limits or {}).get(rule.evidence, Verdict.ALLOW))
            hits.append((index, given))
            if given > verdict:
                verdict, deciding = given, index
        return RowJudgement(verdict, deciding, tuple(hits), tuple(errors))


def load_ruleset(text: str, schema: ColumnSchema) -> RuleSet:
    """Read and check a rule set file's text; raises :class:`RuleSetError` naming the first wrong rule."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RuleSetError(f"the rule set is not TOML: {error}") from error
    unknown = set(document) - {"name", "version", "rule"}
    if unknown:
        raise RuleSetError(f"unknown keys in the rule set: {', '.join(sorted(unknown))}")
    name, version, tables = document.get("name"), document.get("version"), document.get("rule", [])
    if not isinstance(name, str) or not name or not isinstance(version, int) or version < 1:
        raise RuleSetError("a rule set needs a name (text) and a version (1, 2, ...)")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RuleSetError("rules are written as [[rule]] tables")
    if len(tables) > MAX_RULES:
        raise RuleSetError(f"{len(tables)} rules, at most {MAX_RULES} are permitted")
    rules: list[Rule] = []
    for position, table in enumerate(tables, start=1):
        rule = _load_rule(table, position, schema)
        if any(rule.id == other.id for other in rules):
            raise RuleSetError(f"rule {rule.id!r} is defined twice")
        rules.append(rule)
    return RuleSet(name, version, rules)


def _load_rule(table: Mapping[str, object], position: int, schema: ColumnSchema) -> Rule:
    where = f"rule {table.get('id', f'number {position}')!r}"
    fields: dict[str, str] = {}
    for key in ("id", "when", "verdict", "reason", "evidence"):
        value = table.get(key, None)
        if value is None and key == "evidence":
            continue
        if not isinstance(value, str) or not value:
            raise RuleSetError(f'{where}: needs {key} = "text"')
        fields[key] = value
    unknown = set(table) - {"id", "when", "verdict", "reason", "evidence"}
    if unknown:
        raise RuleSetError(f"{where}: unknown keys {', '.join(sorted(unknown))}")
    if not _ID.fullmatch(fields["id"]):
        raise RuleSetError(f"{where}: an id is lower-case letters, digits and dashes, at most 64")
    try:
        verdict = verdict_named(fields["verdict"])
    except ValueError as error:
        raise RuleSetError(f"{where}: {error}") from error
    try:
        expression = parse_condition(fields["when"], schema)
    except RuleSyntaxError as error:
        raise RuleSetError(f"{where}: {error}") from error
    rule = Rule(fields["id"], expression, verdict, fields["reason"], fields.get("evidence"))
    _check_reason(rule, where, schema)
    _check_evidence(rule, where, schema)
    return rule


def _check_reason(rule: Rule, where: str, schema: ColumnSchema) -> None:
    if "{" in _PLACEHOLDER.sub("", rule.reason) or "}" in _PLACEHOLDER.sub("", rule.reason):
        raise RuleSetError(f"{where}: the reason has an unmatched brace")
    for name in _PLACEHOLDER.findall(rule.reason):
        if name not in schema:
            raise RuleSetError(f"{where}: the reason names {{{name}}}, which is no column")


def _check_evidence(rule: Rule, where: str, schema: ColumnSchema) -> None:
    kinds = {schema[name].evidence for name in rule.expression.columns} - {None}
    if kinds - {rule.evidence}:
        named = ", ".join(sorted(kind for kind in kinds if kind is not None))
        raise RuleSetError(
            f'{where}: reads evidence of other parties about {named}; declare evidence = "KIND" (one kind a rule), '
            "so that the policy's tier bounds its verdict"
        )
    if rule.evidence is not None and rule.evidence not in {column.evidence for column in schema.values()}:
        raise RuleSetError(f"{where}: there is no evidence about {rule.evidence!r} here")
