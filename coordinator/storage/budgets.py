"""Statements over what each party has spent of its budgets."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from coordinator.storage.database import Connection
from coordinator.storage.tables import party_budgets


def spend(connection: Connection, party: str, budget: str, *, period: int, amount: int, limit: int) -> bool:
    """Spend ``amount`` of the ``limit`` that ``party`` has in ``period``; False, and nothing is spent, beyond it.

    Periods count up; one before the newest that was spent in (a clock that went back) renews nothing.
    """
    own = (party_budgets.c.party == party, party_budgets.c.budget == budget)
    row = connection.execute(select(party_budgets).where(*own)).first()
    before = 0
    if row is not None and row.period >= period:
        period, before = row.period, row.spent
    if before + amount > limit:
        return False
    connection.execute(delete(party_budgets).where(*own))
    connection.execute(
        insert(party_budgets).values(party=party, budget=budget, period=period, spent=before + amount)
    )
    return True
