"""What a member remembers of inquiries: its own ledger, its secrets in flight, its answers and its aggregates.

Secret columns (mask secrets, statistics, aggregates) hold bytes the caller has sealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, insert, select, update

from member_node.storage.database import Connection, Database
from member_node.storage.models import AGGREGATES, ANSWERED_DAYS, INQUIRIES


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


@dataclass(frozen=True)
class StatisticSeries:
    """What one day's statistic is of. ``directory``: SHA-256 of the public directory its cells address."""

    template: str
    dataset: str
    directory: bytes


class OverlapError(Exception):
    """A day was answered before for another cohort or directory: a second sum would let somebody subtract."""

    def __init__(self, day: int, reason: str) -> None:
        super().__init__(f"overlap: day {day} {reason}")
        self.day = day


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

    def frozen(self, series: StatisticSeries, cohort: bytes, first: int, last: int) -> dict[int, bytes]:
        """The sealed statistics of the days ``first`` to ``last`` that were ever answered, for the same cohort.

        ``cohort``: its digest. Raises :class:`OverlapError` if one of the days was answered for another one.
        """
        with self._database.read() as connection:
            return _frozen(connection, series, cohort, first, last)

    def freeze(self, series: StatisticSeries, cohort: bytes, sealed: Mapping[int, bytes]) -> dict[int, bytes]:
        """Fix the statistic of each day, and the cohort it may be added up with; what was fixed before stays.

        Returns what holds from now on, by day. Raises :class:`OverlapError`, and then nothing is fixed.
        """
        if not sealed:
            return {}
        with self._database.write() as connection:
            known = _frozen(connection, series, cohort, min(sealed), max(sealed))
            for day in sorted(sealed.keys() - known.keys()):
                connection.execute(
                    insert(ANSWERED_DAYS).values(
                        template=series.template,
                        dataset=series.dataset,
                        day=day,
                        cohort=cohort,
                        directory=series.directory,
                        sealed=sealed[day],
                    )
                )
        return {day: known.get(day, content) for day, content in sealed.items()}

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


def _frozen(
    connection: Connection, series: StatisticSeries, cohort: bytes, first: int, last: int
) -> dict[int, bytes]:
    days = ANSWERED_DAYS.c
    query = (
        select(days.day, days.cohort, days.directory, days.sealed)
        .where(
            and_(days.template == series.template, days.dataset == series.dataset),
            and_(days.day >= first, days.day <= last),
        )
        .order_by(days.day)
    )
    found: dict[int, bytes] = {}
    for row in connection.execute(query):
        if bytes(row.cohort) != cohort:
            raise OverlapError(row.day, "was answered before, for another cohort")
        if bytes(row.directory) != series.directory:
            raise OverlapError(row.day, "was answered before, over another directory")
        found[row.day] = bytes(row.sealed)
    return found
