"""Compiled rule sets: verdicts of batches and of single rows, with hits, errors and exemptions counted by rule."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.rules.columns import Cell, ColumnValues, Layout, MatrixColumns, TextColumn, cell
from scoring.rules.language import Expression
from scoring.rules.limits import DEFAULT_LIMITS, BrakeLimits
from scoring.rules.scalar import compile_scalar
from scoring.rules.screen import Screen
from scoring.rules.vectorised import Program
from scoring.verdicts import Verdict

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# Rows evaluated at a time: their columns and masks stay in the processor's second-level cache.
BLOCK = 8192
# A rule's word as one number: severity above, the earlier rule wins a tie below.
_INDEX_BITS = 11
_LAST_INDEX = (1 << _INDEX_BITS) - 1


@dataclass(frozen=True)
class Rule:
    """One checked rule. ``evidence``: indicator kind whose policy tier bounds the verdict, or None.

    ``max_share``: the share of events the brake lets it decline, None for the rule set's own.
    """

    id: str
    expression: Expression
    verdict: Verdict
    reason: str
    evidence: str | None = None
    max_share: float | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns the condition or the reason reads."""
        return self.expression.columns | frozenset(PLACEHOLDER.findall(self.reason))

    @cached_property
    def key(self) -> str:
        """The rule's identity across versions: the same while its id, condition, verdict and evidence are."""
        meaning = "\0".join((self.id, self.expression.text, self.verdict.label, self.evidence or ""))
        return f"{self.id}@{hashlib.sha256(meaning.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Judgement:
    """The verdict of each row and why.

    ``verdict`` uint8 [n]; ``rule`` int16 [n]: index of the deciding rule, -1 where none; ``hits`` bool [n, r];
    ``effective`` uint8 [n, r]: the verdict each hit gives after its tier's bound (0 where no hit);
    ``errors`` int64 [r]: rows in which the rule was in error and therefore did not hit; ``exempted`` int64 [r]: rows
    it would have hit had they not been exempt from it. The two matrices lie in memory rule by rule.
    """

    verdict: NDArray[np.uint8]
    rule: NDArray[np.int16]
    hits: NDArray[np.bool_]
    effective: NDArray[np.uint8]
    errors: NDArray[np.int64]
    exempted: NDArray[np.int64]


@dataclass(frozen=True)
class RowJudgement:
    """A judgement of one row: ``hits`` are rule indices with their effective verdicts, the others rule indices."""

    verdict: Verdict
    rule: int
    hits: tuple[tuple[int, Verdict], ...]
    errors: tuple[int, ...]
    exempted: tuple[int, ...] = ()


def decide(effective: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Verdict uint8 [n] and deciding rule int16 [n] (-1: none) of effective verdicts [n, r].

    The most severe wins, the first of equals decides.
    """
    if not effective.shape[1]:
        return np.zeros(len(effective), np.uint8), np.full(len(effective), -1, np.int16)
    deciding = np.argmax(effective, axis=1)
    verdict = effective[np.arange(len(effective)), deciding]
    return verdict, np.where(verdict > 0, deciding, -1).astype(np.int16)


class RuleSet:
    """Immutable compiled rules of one version. ``rules`` keep the file's order, which breaks ties."""

    def __init__(
        self, name: str, version: int, rules: Sequence[Rule], brake: BrakeLimits = DEFAULT_LIMITS
    ) -> None:
        self.name = name
        self.version = version
        self.rules = tuple(rules)
        self.brake = brake
        self.ids = tuple(rule.id for rule in self.rules)
        self.columns: frozenset[str] = frozenset().union(*(rule.columns for rule in self.rules))
        self.evidence_kinds = frozenset(rule.evidence for rule in self.rules if rule.evidence is not None)
        self._read = frozenset().union(*(rule.expression.columns for rule in self.rules))
        self._program = Program([rule.expression for rule in self.rules])
        self._scalar: list[Callable[[Mapping[str, Cell]], bool]] = [
            compile_scalar(rule.expression) for rule in self.rules
        ]
        self._screen = Screen([rule.expression for rule in self.rules])
        self._absent: tuple[Layout, frozenset[str]] | None = None

    def evaluate(
        self,
        columns: Mapping[str, ColumnValues],
        rows: int,
        limits: Mapping[str, NDArray[np.uint8]] | None = None,
        exempt: NDArray[np.bool_] | None = None,
        only: NDArray[np.bool_] | None = None,
    ) -> Judgement:
        """Judge a batch of ``rows`` rows.

        ``columns`` holds arrays of that length (float64, bool or TextColumn) for :attr:`columns`; a rule that reads
        a column that is not there (a list was deleted) is in error in every row, and hits none.
        ``limits`` gives for each evidence kind the strongest verdict (uint8 [n]) its tier permits in each row.
        A kind without limits permits nothing: evidence nobody bounded does not count.
        ``exempt`` bool [n, r]: rows a rule must not hit. ``only`` bool [n]: rows to judge; the others are allowed,
        and count nowhere.
        A batch of one takes the scalar path: NumPy's cost a call would be all there is to see.
        """
        if rows == 1:
            return self._evaluate_one(columns, limits or {}, exempt, only)
        count = len(self.rules)
        result = Judgement(
            np.zeros(rows, np.uint8),
            np.full(rows, -1, np.int16),
            np.zeros((count, rows), np.bool_).T,
            np.zeros((count, rows), np.uint8).T,
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
        )
        if rows <= BLOCK:
            self._evaluate_block(columns, rows, limits or {}, exempt, only, result)
            return result
        read = {name: columns[name] for name in self._read if name in columns}
        for start in range(0, rows, BLOCK):
            part = slice(start, min(start + BLOCK, rows))
            self._evaluate_block(
                {name: _rows(values, part) for name, values in read.items()},
                part.stop - start,
                {kind: limit[part] for kind, limit in (limits or {}).items()},
                None if exempt is None else exempt[part],
                None if only is None else only[part],
                Judgement(
                    result.verdict[part],
                    result.rule[part],
                    result.hits[part],
                    result.effective[part],
                    result.errors,
                    result.exempted,
                ),
            )
        return result

    def _evaluate_block(
        self,
        columns: Mapping[str, ColumnValues],
        rows: int,
        limits: Mapping[str, NDArray[np.uint8]],
        exempt: NDArray[np.bool_] | None,
        only: NDArray[np.bool_] | None,
        into: Judgement,
    ) -> None:
        """Judge up to ``BLOCK`` rows; ``into`` holds views of the result, whose counts are added to."""
        absent = self._lacking(columns)
        exempting = frozenset() if exempt is None else frozenset(np.flatnonzero(exempt.any(axis=0)).tolist())
        hits, effective = into.hits.T, into.effective.T
        strongest = np.zeros(rows, np.int16)
        candidates = range(len(self.rules)) if absent else self._screen.possible(columns, rows)
        if not candidates:
            return
        frame = self._program.start(columns, rows)
        with np.errstate(all="ignore"):
            for index in candidates:
                rule = self.rules[index]
                if absent and not absent.isdisjoint(rule.expression.columns):
                    into.errors[index] += rows if only is None else np.count_nonzero(only)
                    continue
                hit, mask = self._program.hits(index, frame)
                if mask is not None:
                    into.errors[index] += np.count_nonzero(mask if only is None else mask & only)
                if hit is None or not np.count_nonzero(hit):
                    continue
                if only is not None:
                    hit = hit & only
                if exempt is not None and index in exempting:
                    into.exempted[index] += np.count_nonzero(hit & exempt[:, index])
                    hit = hit & ~exempt[:, index]
                hits[index] = hit
                if rule.verdict is Verdict.ALLOW:
                    continue
                given = effective[index]
                if rule.evidence is None:
                    np.multiply(hit, np.uint8(rule.verdict), out=given)
                    word = np.multiply(hit, _word(rule.verdict, index))
                elif rule.evidence in limits:
                    np.minimum(hit * np.uint8(rule.verdict), limits[rule.evidence], out=given)
                    word = np.where(given, (given.astype(np.int16) << _INDEX_BITS) + (_LAST_INDEX - index), 0)
                else:
                    continue
                np.maximum(strongest, word, out=strongest)
        np.right_shift(strongest, _INDEX_BITS, out=into.verdict, casting="unsafe")
        decided = np.flatnonzero(strongest)
        into.rule[decided] = _LAST_INDEX - (strongest[decided] & _LAST_INDEX)

    def _evaluate_one(
        self,
        columns: Mapping[str, ColumnValues],
        limits: Mapping[str, NDArray[np.uint8]],
        exempt: NDArray[np.bool_] | None,
        only: NDArray[np.bool_] | None,
    ) -> Judgement:
        count = len(self.rules)
        result = Judgement(
            np.zeros(1, np.uint8),
            np.array((-1,), np.int16),
            np.zeros((1, count), np.bool_),
            np.zeros((1, count), np.uint8),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
        )
        if only is not None and not only[0]:
            return result
        absent = self._lacking(columns)
        candidates = range(count) if absent else self._screen.possible(columns, 1)
        if not candidates:
            return result
        single = self._evaluate_cells(
            _FirstRow(columns),
            candidates,
            absent,
            {kind: Verdict(int(limit[0])) for kind, limit in limits.items()},
            frozenset() if exempt is None else frozenset(np.flatnonzero(exempt[0]).tolist()),
        )
        for index, given in single.hits:
            result.hits[0, index] = True
            result.effective[0, index] = given
        if single.errors:
            result.errors[list(single.errors)] = 1
        if single.exempted:
            result.exempted[list(single.exempted)] = 1
        result.verdict[0], result.rule[0] = single.verdict, single.rule
        return result

    def _lacking(self, columns: Mapping[str, ColumnValues]) -> frozenset[str]:
        """The columns that conditions read and a batch does not have."""
        if not isinstance(columns, MatrixColumns):
            return self._read - columns.keys()
        held = self._absent
        if held is None or held[0] is not columns.layout:
            held = self._absent = columns.layout, self._read - columns.layout.names
        return held[1]

    def evaluate_row(
        self,
        row: Mapping[str, Cell],
        limits: Mapping[str, Verdict] | None = None,
        exempt: frozenset[int] = frozenset(),
    ) -> RowJudgement:
        """Judge one row given as plain Python cells; same semantics as :meth:`evaluate` on a batch of one.

        ``exempt``: indices of the rules that must not hit it.
        """
        return self._evaluate_cells(row, range(len(self.rules)), self._read - row.keys(), limits, exempt)

    def _evaluate_cells(
        self,
        row: Mapping[str, Cell],
        candidates: Iterable[int],
        absent: frozenset[str],
        limits: Mapping[str, Verdict] | None,
        exempt: frozenset[int],
    ) -> RowJudgement:
        verdict, deciding = Verdict.ALLOW, -1
        hits: list[tuple[int, Verdict]] = []
        exempted: list[int] = []
        true, errors = self._true(row, candidates, absent)
        for index in true:
            rule = self.rules[index]
            if index in exempt:
                exempted.append(index)
                continue
            given = rule.verdict
            if rule.evidence is not None:
                given = min(given, (limits or {}).get(rule.evidence, Verdict.ALLOW))
            hits.append((index, given))
            if given > verdict:
                verdict, deciding = given, index
        return RowJudgement(verdict, deciding, tuple(hits), tuple(errors), tuple(exempted))

    def _true(
        self, row: Mapping[str, Cell], candidates: Iterable[int], absent: frozenset[str]
    ) -> tuple[list[int], list[int]]:
        """Those of the candidates whose condition holds, and those in error."""
        true: list[int] = []
        errors: list[int] = []
        for index in candidates:
            if absent and not absent.isdisjoint(self.rules[index].expression.columns):
                errors.append(index)
                continue
            try:
                if self._scalar[index](row):
                    true.append(index)
            except ArithmeticError:
                errors.append(index)
        return true, errors


class _FirstRow(dict[str, Cell]):
    """The cells of a batch's first row as they are asked for: most conditions are settled by their first column."""

    def __init__(self, columns: Mapping[str, ColumnValues]) -> None:
        super().__init__()
        self._columns = columns

    def __missing__(self, name: str) -> Cell:
        value = self[name] = cell(self._columns[name], 0)
        return value


def _word(verdict: Verdict, index: int) -> np.int16:
    return np.int16((int(verdict) << _INDEX_BITS) + _LAST_INDEX - index)


def _rows(values: ColumnValues, part: slice) -> Any:
    if isinstance(values, TextColumn):
        return TextColumn(values.codes[part], values.vocabulary)
    return values[part]
