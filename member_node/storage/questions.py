"""What a member remembers of inquiries: its own ledger, its secrets in flight, its answers and its aggregates.

Secret columns (mask secrets, statistics, aggregates) hold bytes the caller has sealed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update

from member_node.storage.database import Database
from member_node.storage.models import AGGREGATES, INQUIRIES, STATISTICS


@dataclass(frozen=True)
class InquiryRecord:
    """One inquiry in the member's own ledger.

    ``refusal`` is empty when the member takes part; ``mask_secret`` (sealed) is empty once used; ``mask_key`` and
    ``contribution`` are the encoded envelopes that were signed, to be resent as they are.
    """

    inquiry_id: bytes
    requester: str
    question: bytes
    decided_at: int
    first_day: int
    last_day: int
    refusal: str = ""
    mask_secret: bytes = b""
    mask_key: bytes = b""
    contribution: bytes = b""


@dataclass(frozen=True)
class AggregateRecord:
    """An aggregate this member asked for: sealed values, and the salt that opens its logged commitment."""

    question: bytes
    inquiry_id: bytes
    salt: bytes
    sealed: bytes
    outcome_sent: int


_INQUIRY_COLUMNS = [INQUIRIES.c[name] for name in InquiryRecord.__dataclass_fields__]
_AGGREGATE_COLUMNS = [AGGREGATES.c[name] for name in AggregateRecord.__dataclass_fields__]


class QuestionStore:
    """Ledger of inquiries; each public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def inquiry(self, inquiry_id: bytes) -> InquiryRecord | None:
        """The record of an inquiry this member has decided on."""
        query = select(*_INQUIRY_COLUMNS).where(INQUIRIES.c.inquiry_id == inquiry_id)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else InquiryRecord(*row)

    def inquiries(self, limit: int) -> list[InquiryRecord]:
        """The newest ``limit`` inquiries this member has decided on, newest first."""
        newest = (INQUIRIES.c.decided_at.desc(), INQUIRIES.c.inquiry_id)
        query = select(*_INQUIRY_COLUMNS).order_by(*newest).limit(limit)
        with self._database.read() as connection:
            return [InquiryRecord(*row) for row in connection.execute(query)]

    def outcomes_sent(self) -> dict[bytes, bool]:
        """Inquiries this member asked and has the aggregate of: whether the coordinator has logged the outcome."""
        query = select(AGGREGATES.c.inquiry_id, AGGREGATES.c.outcome_sent)
        with self._database.read() as connection:
            return {bytes(row[0]): bool(row[1]) for row in connection.execute(query)}

    def decided_since(self, requester: str, since: int) -> int:
        """Inquiries of ``requester`` this member took part in and decided on since the unix second ``since``."""
        query = (
            select(func.count())
            .select_from(INQUIRIES)
            .where(
                INQUIRIES.c.requester == requester, INQUIRIES.c.decided_at >= since, INQUIRIES.c.refusal == ""
            )
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def counts(self) -> dict[str, int]:
        """How many inquiries were decided each way (the key is the refusal, empty for taking part)."""
        query = select(INQUIRIES.c.refusal, func.count()).group_by(INQUIRIES.c.refusal)
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def save_inquiry(self, record: InquiryRecord) -> None:
        """Write a record, replacing the one of the same inquiry."""
        values = {name: getattr(record, name) for name in InquiryRecord.__dataclass_fields__}
        with self._database.write() as connection:
            connection.execute(delete(INQUIRIES).where(INQUIRIES.c.inquiry_id == record.inquiry_id))
            connection.execute(insert(INQUIRIES).values(values))

    def statistic(self, question: bytes) -> bytes | None:
        """This bank's sealed statistic for a canonical question, if it ever answered it."""
        query = select(STATISTICS.c.sealed).where(STATISTICS.c.question == question)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else bytes(row[0])

    def save_statistic(self, question: bytes, sealed: bytes) -> None:
        """Fix the answer to a canonical question; the first one stays."""
        with self._database.write() as connection:
            known = connection.execute(select(STATISTICS.c.question).where(STATISTICS.c.question == question))
            if known.first() is None:
                connection.execute(insert(STATISTICS).values(question=question, sealed=sealed))

    def aggregate(self, question: bytes) -> AggregateRecord | None:
        """The aggregate of a canonical question this member asked before."""
        query = select(*_AGGREGATE_COLUMNS).where(AGGREGATES.c.question == question)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else AggregateRecord(*row)

    def save_aggregate(self, record: AggregateRecord) -> None:
        """Write an aggregate before its outcome is sent."""
        values = {name: getattr(record, name) for name in AggregateRecord.__dataclass_fields__}
        with self._database.write() as connection:
            connection.execute(delete(AGGREGATES).where(AGGREGATES.c.question == record.question))
            connection.execute(insert(AGGREGATES).values(values))

    def mark_outcome_sent(self, question: bytes) -> None:
        """The coordinator has logged the commitment."""
        with self._database.write() as connection:
            connection.execute(
                update(AGGREGATES).where(AGGREGATES.c.question == question).values(outcome_sent=1)
            )
