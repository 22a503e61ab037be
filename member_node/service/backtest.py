"""Backtests: what a rule set would have decided over the stored history, against the active one and the outcomes.

Exact by construction: rules are judged by the same code over the stored values of the very columns they saw, with the
same tier bounds, exemptions, stopped rules and lists. So the active version over its own history gives the stored
verdicts again; ``unexplained`` counts the rows where it does not, and should be 0.

A row of the history is a judgement. Of an event that was corrected only the last one counts (see ``last_judged``):
the caller sees to that. An event without an outcome counts as neither fraud nor genuine. *Caught* money is that of
confirmed frauds that were not simply allowed; *disturbed* are genuine payments that were not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from member_node.service.stored_rows import Derive, StoredRows, rows_alike, stored_rows
from scoring.rules.columns import ColumnSchema
from scoring.rules.evaluation import RuleSet, decide
from scoring.verdicts import VERDICT_LABELS, TierTable

VERDICTS = len(VERDICT_LABELS)


@dataclass
class Tally:
    """Sums over rows that something spoke against (or, for a rule that only counts, that it hit).

    ``hits`` of which ``known`` have an outcome and ``frauds`` are frauds; money in the stream's own unit.
    """

    hits: int = 0
    known: int = 0
    frauds: int = 0
    money_caught: float = 0.0
    disturbed: int = 0
    money_disturbed: float = 0.0

    def add(self, rows: NDArray[np.bool_], outcome: NDArray[np.int8], amount: NDArray[np.float64]) -> None:
        """Count ``rows`` bool [n]; ``outcome`` int8 [n]: 1 fraud, 0 genuine, -1 not known."""
        caught, genuine = rows & (outcome == 1), rows & (outcome == 0)
        self.hits += int(np.count_nonzero(rows))
        self.frauds += int(np.count_nonzero(caught))
        self.disturbed += int(np.count_nonzero(genuine))
        self.known += int(np.count_nonzero(rows & (outcome >= 0)))
        self.money_caught += float(amount[caught].sum())
        self.money_disturbed += float(amount[genuine].sum())

    def report(self, frauds: int, fraud_money: float) -> dict[str, Any]:
        """With precision (of hits with an outcome) and recall (of all frauds); null where nothing is to divide."""
        return {
            "hits": self.hits,
            "known": self.known,
            "frauds": self.frauds,
            "precision": self.frauds / self.known if self.known else None,
            "recall": self.frauds / frauds if frauds else None,
            "money_caught": self.money_caught,
            "money_recall": self.money_caught / fraud_money if fraud_money else None,
            "disturbed": self.disturbed,
            "money_disturbed": self.money_disturbed,
        }


@dataclass
class RuleTally:
    """One rule of the tested set: what it hit, and how often it was in error or a row exempt from it."""

    rule: str
    verdict: str
    spoke: Tally = field(default_factory=Tally)
    errors: int = 0
    exempted: int = 0


@dataclass
class Backtest:
    """A backtest under way; feed it with :meth:`add`, then ask for the :meth:`report`."""

    tested: RuleSet
    active: RuleSet
    schema: ColumnSchema
    derive: Derive
    outcomes: pa.Table
    tiers: TierTable | None = None
    gone: frozenset[str] = frozenset()
    rows: int = 0
    known: int = 0
    frauds: int = 0
    fraud_money: float = 0.0
    first_us: int = 0
    last_us: int = 0
    compared: int = 0
    unexplained: int = 0

    def __post_init__(self) -> None:
        """``outcomes``: event_id (text) and fraud (bool), as ``OutcomeStore.labels`` gives them.

        ``tiers``: of today's policy, for history that did not keep the bounds of its own day. ``gone``: columns of the
        schema that the stream no longer has.
        """
        self._ids = self.outcomes.column("event_id").combine_chunks()
        self._fraud = np.asarray(self.outcomes.column("fraud").to_numpy(), dtype=np.int8)
        self._rules = [RuleTally(rule.id, rule.verdict.label) for rule in self.tested.rules]
        self._with_tested, self._with_active = Tally(), Tally()
        self._changes = np.zeros((VERDICTS, VERDICTS), np.int64)
        self._changes_known = np.zeros((2, VERDICTS, VERDICTS), np.int64)

    def add(self, table: pa.Table) -> None:
        """Judge some rows of the history. Raises StoredRowsError."""
        for part in rows_alike(table):
            self._add(part)

    def _add(self, table: pa.Table) -> None:
        stored = stored_rows(
            table, (self.tested, self.active), self.schema, self.derive, self.tiers, self.gone
        )
        if not len(stored):
            return
        outcome = self._outcomes(stored)
        was = _judge(self.active, stored)[0]
        verdict, effective, errors, exempted, hits = _judge(self.tested, stored)
        self._count(stored, outcome)
        for index, tally in enumerate(self._rules):
            only_counts = self.tested.rules[index].verdict == 0
            spoke = hits[:, index] if only_counts else effective[:, index] > 0
            tally.spoke.add(spoke, outcome, stored.amount)
            tally.errors += int(errors[index])
            tally.exempted += int(exempted[index])
        self._with_tested.add(verdict > 0, outcome, stored.amount)
        self._with_active.add(was > 0, outcome, stored.amount)
        cell = was.astype(np.int64) * VERDICTS + verdict
        self._changes += _matrix(cell)
        for fraud in (0, 1):
            self._changes_known[fraud] += _matrix(cell[outcome == fraud])
        own = stored.version == self.active.version
        self.compared += int(np.count_nonzero(own))
        self.unexplained += int(np.count_nonzero(own & (was != stored.verdict)))

    def report(self) -> dict[str, Any]:
        """Everything as one JSON object; matrices by verdict of the active version, then of the tested one."""
        whole = (self.frauds, self.fraud_money)
        return {
            "tested": {"name": self.tested.name, "rules": len(self.tested.rules)},
            "active": {"name": self.active.name, "version": self.active.version},
            "rows": self.rows,
            "known": self.known,
            "frauds": self.frauds,
            "fraud_money": self.fraud_money,
            "first_us": self.first_us,
            "last_us": self.last_us,
            "gone": sorted(self.gone & (self.tested.columns | self.active.columns)),
            "compared": self.compared,
            "unexplained": self.unexplained,
            "in_all": {
                "tested": self._with_tested.report(*whole),
                "active": self._with_active.report(*whole),
            },
            "rules": [
                {
                    "rule": each.rule,
                    "verdict": each.verdict,
                    **each.spoke.report(*whole),
                    "errors": each.errors,
                    "exempted": each.exempted,
                }
                for each in self._rules
            ],
            "verdicts": list(VERDICT_LABELS),
            "changes": self._changes.tolist(),
            "changes_genuine": self._changes_known[0].tolist(),
            "changes_fraud": self._changes_known[1].tolist(),
        }

    def _count(self, stored: StoredRows, outcome: NDArray[np.int8]) -> None:
        self.first_us = min(self.first_us or int(stored.time_us.min()), int(stored.time_us.min()))
        self.last_us = max(self.last_us, int(stored.time_us.max()))
        self.rows += len(stored)
        self.known += int(np.count_nonzero(outcome >= 0))
        self.frauds += int(np.count_nonzero(outcome == 1))
        self.fraud_money += float(stored.amount[outcome == 1].sum())

    def _outcomes(self, stored: StoredRows) -> NDArray[np.int8]:
        places = pc.index_in(pc.cast(stored.event_id, pa.string()), value_set=self._ids)
        where = pc.fill_null(places, -1).to_numpy()
        return np.where(where >= 0, self._fraud[where] if len(self._fraud) else 0, -1).astype(np.int8)


def run_backtest(
    backtest: Backtest, tables: Iterable[pa.Table], progress: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Judge all tables and report; ``progress`` is told how many rows are done. Raises StoredRowsError."""
    for table in tables:
        backtest.add(table)
        progress(backtest.rows)
    return backtest.report()


def _judge(ruleset: RuleSet, stored: StoredRows) -> tuple[Any, Any, Any, Any, Any]:
    """Verdict, effective verdicts, errors, exemptions and hits, as the stream would have given them."""
    exempt = _matrix_of(stored.exempt, ruleset, len(stored))
    judged = ruleset.evaluate(stored.columns, len(stored), stored.limits, exempt)
    verdict, effective = judged.verdict, judged.effective
    stopped = [(i, stored.braked[id_]) for i, id_ in enumerate(ruleset.ids) if id_ in stored.braked]
    if stopped:
        effective = effective.copy(order="F")
        for index, rows in stopped:
            effective[rows, index] = 0
        verdict, _ = decide(effective)
    verdict = np.where(stored.forced, stored.verdict, verdict)
    return verdict, effective, judged.errors, judged.exempted, judged.hits


def _matrix_of(rows_by_rule: Any, ruleset: RuleSet, rows: int) -> NDArray[np.bool_] | None:
    if not rows_by_rule:
        return None
    matrix = np.zeros((rows, len(ruleset.rules)), np.bool_)
    for index, rule in enumerate(ruleset.ids):
        for name in (rule, ""):
            if name in rows_by_rule:
                matrix[:, index] |= rows_by_rule[name]
    return matrix


def _matrix(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(cell, minlength=VERDICTS * VERDICTS).reshape(VERDICTS, VERDICTS)
