"""Statements over the key holders' accounts of what they were asked."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select

from coordinator.storage.database import Connection
from coordinator.storage.tables import evaluation_totals
from governance.messages.lookup import EvaluationTotals
from governance.messages.signed import Signed


@dataclass(frozen=True)
class LastTotals:
    """Where a holder's account stands: sequence number, end of its period (unix s), digest of the message."""

    sequence: int
    period_end: int
    digest: bytes


def last_totals(connection: Connection, holder: str) -> LastTotals:
    """The newest account of ``holder``; sequence 0 when there is none."""
    query = (
        select(evaluation_totals)
        .where(evaluation_totals.c.holder == holder)
        .order_by(evaluation_totals.c.sequence.desc())
    )
    row = connection.execute(query).first()
    return LastTotals(0, 0, b"") if row is None else LastTotals(row.sequence, row.period_end, row.digest)


def add_totals(connection: Connection, totals: EvaluationTotals, digest: bytes, signed: Signed) -> None:
    """Store the next account of a holder."""
    connection.execute(
        insert(evaluation_totals).values(
            holder=totals.holder,
            sequence=totals.sequence,
            period_end=totals.period_end,
            digest=digest,
            payload=signed.payload,
            signature=signed.signature,
        )
    )
