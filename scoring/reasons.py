"""Why a transaction was not simply allowed: one sentence for each rule that spoke against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scoring.rules.columns import Cell, ColumnValues, cell
from scoring.rules.evaluation import PLACEHOLDER, Judgement, Rule
from scoring.verdicts import Verdict


@dataclass(frozen=True)
class Reason:
    """One rule's word: ``verdict`` is what this rule alone would have given (after its tier's bound)."""

    rule: str
    verdict: Verdict
    text: str


class Explained(Protocol):
    """What has judged: a rule set, or a deployment of several."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in the order of the judgement's matrices."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that conditions and reasons read."""


def reasons(
    ruleset: Explained, judgement: Judgement, columns: Mapping[str, ColumnValues]
) -> dict[int, tuple[Reason, ...]]:
    """The reasons of every row whose verdict is not allow: the deciding rule first, then by severity.

    Rows with verdict allow are absent, so the cost follows the number of interventions, not of events. A column that is
    not in ``columns`` any more is shown as unknown.
    """
    found: dict[int, tuple[Reason, ...]] = {}
    for row in np.flatnonzero(judgement.verdict):
        spoke = np.flatnonzero(judgement.effective[row])
        given = [(int(index), Verdict(int(judgement.effective[row, index]))) for index in spoke]
        named = frozenset().union(*(ruleset.rules[index].columns for index, _ in given))
        cells = {name: cell(columns[name], int(row)) if name in columns else None for name in named}
        found[int(row)] = _explain(ruleset, int(judgement.rule[row]), given, cells)
    return found


def _explain(
    ruleset: Explained, deciding: int, given: Sequence[tuple[int, Verdict]], cells: Mapping[str, Cell]
) -> tuple[Reason, ...]:
    ordered = sorted(given, key=lambda pair: (pair[0] != deciding, -pair[1], pair[0]))
    return tuple(
        Reason(ruleset.rules[index].id, verdict, fill(ruleset.rules[index].reason, cells))
        for index, verdict in ordered
    )


def fill(template: str, cells: Mapping[str, Cell]) -> str:
    """``template`` with each {column} replaced by its value as a person writes it."""
    return PLACEHOLDER.sub(lambda match: _shown(cells[match.group(1)]), template)


def _shown(value: Cell) -> str:
    if value is None or value != value:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{int(value)}" if value.is_integer() else f"{value:.2f}"
    return value
