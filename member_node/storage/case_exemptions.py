"""Exemptions that an analyst's decision proposed: one a case, proposed until an approver approves or rejects it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import insert, select, update

from member_node.storage.case_tables import CASE_EXEMPTIONS
from member_node.storage.cases import add_note
from member_node.storage.database import Connection, Database

PROPOSED, APPROVED, REJECTED = "proposed", "approved", "rejected"


@dataclass(frozen=True)
class ExemptionRow:
    """``customer`` is to be exempt from ``rule`` (empty: every rule) until ``until_us``; ``author`` proposed it and
    ``decided_by`` decided ("" and 0 before). Times ending in _at are unix seconds of the bank's clock."""

    case_id: int
    customer: str
    rule: str
    until_us: int
    reason: str
    author: str
    proposed_at: int
    state: str = PROPOSED
    decided_by: str = ""
    decided_at: int = 0
    why: str = ""


class ExemptionStore:
    """Proposed exemptions and what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, case_id: int) -> ExemptionRow | None:
        """That of a case."""
        with self._database.read() as connection:
            query = select(CASE_EXEMPTIONS).where(CASE_EXEMPTIONS.c.case_id == case_id)
            row = connection.execute(query).first()
            return None if row is None else ExemptionRow(**row._mapping)

    def proposed(self, limit: int, offset: int = 0) -> Sequence[ExemptionRow]:
        """Those that wait, the oldest first."""
        query = (
            select(CASE_EXEMPTIONS)
            .where(CASE_EXEMPTIONS.c.state == PROPOSED)
            .order_by(CASE_EXEMPTIONS.c.proposed_at, CASE_EXEMPTIONS.c.case_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit).offset(offset))
            return [ExemptionRow(**row._mapping) for row in rows]

    def settle(self, case_id: int, state: str, *, by: str, at: int, why: str) -> bool:
        """Approve or reject a proposed one, with a note to its case; False if it was settled before."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(CASE_EXEMPTIONS)
                .where(CASE_EXEMPTIONS.c.case_id == case_id, CASE_EXEMPTIONS.c.state == PROPOSED)
                .values(state=state, decided_by=by, decided_at=at, why=why)
            ).rowcount
            if changed:
                action = "approve-exemption" if state == APPROVED else "reject-exemption"
                add_note(connection, case_id, at, by, action, why)
            return bool(changed)


def propose(connection: Connection, row: ExemptionRow) -> None:
    """Store a proposed exemption in the transaction that decides its case."""
    values: dict[str, Any] = asdict(row)
    connection.execute(insert(CASE_EXEMPTIONS), values)
