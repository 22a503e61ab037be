"""Counters of what crossed the bank's boundary, since the data directory was first served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Integer, Table, Text, delete, insert, select, update

from member_node.storage.database import Database
from member_node.storage.models import METADATA

TRAFFIC = Table(
    "traffic",
    METADATA,
    Column("direction", Text, primary_key=True),
    Column("peer", Text, primary_key=True),
    Column("call", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("elements", BigInteger, nullable=False),
)

# One row.
COUNTING = Table(
    "traffic_counting",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("since", BigInteger, nullable=False),
    Column("starts", BigInteger, nullable=False),
)

# (direction, peer, call)
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Totals:
    """Counters of one row, over all starts."""

    requests: int = 0
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    elements: int = 0


@dataclass(frozen=True)
class Counting:
    """``since``: unix seconds of the first start; ``restarts``: how often it was started after that."""

    since: int
    restarts: int


class TrafficStore:
    """Keeps the meter's counters; what it is not given before the process is killed is lost."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, now: int) -> Counting:
        """Note a start at ``now`` (unix seconds)."""
        with self._database.write() as connection:
            row = connection.execute(select(COUNTING.c.since, COUNTING.c.starts)).first()
            if row is None:
                connection.execute(insert(COUNTING).values(number=1, since=now, starts=1))
                return Counting(now, 0)
            connection.execute(update(COUNTING).values(starts=row.starts + 1))
            return Counting(int(row.since), int(row.starts))

    def load(self) -> dict[Key, Totals]:
        """All counters."""
        with self._database.read() as connection:
            rows = connection.execute(select(TRAFFIC)).all()
        return {(row[0], row[1], row[2]): Totals(*map(int, row[3:])) for row in rows}

    def save(self, totals: Mapping[Key, Totals]) -> None:
        """Replace all counters."""
        rows = [
            dict(zip(("direction", "peer", "call"), key, strict=True)) | vars(row)
            for key, row in sorted(totals.items())
        ]
        with self._database.write() as connection:
            connection.execute(delete(TRAFFIC))
            if rows:
                connection.execute(insert(TRAFFIC), rows)
