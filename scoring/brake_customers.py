"""How many declines of each customer the brake's window has counted, so that no one customer can stop a rule.

A hash table with open addressing, one row for each customer and rule: the customer's key, the rule's place, and the
panes of the declines that were counted. What lies before the window is forgotten when the table is made anew, so its
size follows the customers that were declined lately; where rows lie in it says nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.rules.limits import BrakeLimits

PANES = 60
# Declines of one customer that a window counts for a rule, whatever the limits.
MOST = 5
# Columns before the panes; column 0 of the last row holds how many rows are taken.
_CUSTOMER, _RULE, _COUNTED = range(3)
_NEVER = -(2**62)
_FREE = -1
_LEAST = 2048


class BrakeStateError(ValueError):
    """A saved state of the brake is not one."""


class CustomerDeclines:
    """The table of one version's rules; ``array`` is for :func:`counts`."""

    def __init__(self, rows: NDArray[np.int64] | None = None, rules: int = 0) -> None:
        """``rows``: of a saved state; raises BrakeStateError if they cannot be those of so many ``rules``."""
        if rows is None:
            rows = np.empty((0, _COUNTED + MOST), np.int64)
        elif rows.ndim != 2 or rows.shape[1] != _COUNTED + MOST:
            raise BrakeStateError(f"counted has shape {rows.shape}")
        elif len(rows) and not (rows[:, _RULE].min() >= 0 and rows[:, _RULE].max() < rules):
            raise BrakeStateError("counted names a rule that there is not")
        self.array = _table(rows)

    def rows(self, newest: int) -> NDArray[np.int64]:
        """What is in the window that ends with pane ``newest``, in an order that follows from it."""
        held = self.array[:-1]
        panes = np.where(held[:, _COUNTED:] > newest - PANES, held[:, _COUNTED:], _NEVER)
        panes.sort(axis=1)
        taken = (held[:, _RULE] != _FREE) & (panes[:, -1] != _NEVER)
        rows = np.concatenate([held[taken, :_COUNTED], panes[taken]], axis=1)
        return np.ascontiguousarray(rows[np.lexsort((rows[:, _CUSTOMER], rows[:, _RULE]))])

    def has_room(self, declines: int) -> bool:
        """Whether at least half of the rows stay free with so many more."""
        return 2 * (int(self.array[-1, 0]) + declines) < len(self.array)

    def reserve(self, declines: int, newest: int) -> None:
        """Have room for so many more customers."""
        if not self.has_room(declines):
            self.array = _table(self.rows(newest), declines)

    def forget(self, rule: int, newest: int) -> None:
        """A rule's declines begin anew."""
        rows = self.rows(newest)
        self.array = _table(rows[rows[:, _RULE] != rule])


def most_counted(shares: NDArray[np.float64], limits: BrakeLimits) -> NDArray[np.float64]:
    """How many declines of one customer count, by rule and verdict: between 1 and :data:`MOST`, such that
    ``min_customers`` make up the share of ``min_events`` that a rule may decline."""
    return np.clip(np.floor(shares * limits.min_events / limits.min_customers), 1.0, MOST)


def _table(rows: NDArray[np.int64], more: int = 0) -> NDArray[np.int64]:
    """A table of these rows that is at most a quarter full with so many more."""
    size = max(_LEAST, 1 << (4 * (len(rows) + more)).bit_length())
    table = np.full((size + 1, _COUNTED + MOST), _NEVER, np.int64)
    table[:, _RULE] = _FREE
    _enter(table, np.array(rows, np.int64, order="C"))
    return table


@compiled
def _place(table: NDArray[np.int64], customer: np.uint64, rule: int) -> int:
    """The row of a customer and rule, or the free one where they belong."""
    mask, whose = np.uint64(len(table) - 2), np.int64(customer)
    h = customer + np.uint64(rule) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    row = np.int64(h & mask)
    while table[row, _RULE] != _FREE and (table[row, _RULE] != rule or table[row, _CUSTOMER] != whose):
        row = np.int64(np.uint64(row + 1) & mask)
    return int(row)


@compiled
def _enter(table: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    for i in range(len(rows)):
        row = _place(table, np.uint64(rows[i, _CUSTOMER]), rows[i, _RULE])
        table[row] = rows[i]
    table[len(table) - 1, 0] = len(rows)


@compiled
def counts(
    table: NDArray[np.int64], customer: np.uint64, rule: int, most: int, pane: int, newest: int
) -> bool:
    """Whether a decline in ``pane`` counts for a rule, being among the first ``most`` of the customer; noted if so."""
    row = _place(table, customer, rule)
    if table[row, _RULE] == _FREE:
        table[row, _CUSTOMER] = np.int64(customer)
        table[row, _RULE] = rule
        table[len(table) - 1, 0] += 1
    held, room = 0, -1
    for column in range(_COUNTED, table.shape[1]):
        if table[row, column] > newest - PANES:
            held += 1
        else:
            room = column
    if held >= most:
        return False
    table[row, room] = pane
    return True
