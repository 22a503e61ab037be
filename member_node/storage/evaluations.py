"""Durable accounts of a key holder: what each caller has spent, what it asked, and the totals that were signed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from member_node.storage.database import Database
from member_node.storage.models import EVALUATION_COUNTS, EVALUATION_LEDGERS, EVALUATION_TOTALS

_KEY = (
    EVALUATION_COUNTS.c.caller,
    EVALUATION_COUNTS.c.kind_group,
    EVALUATION_COUNTS.c.purpose,
    EVALUATION_COUNTS.c.quota,
    EVALUATION_COUNTS.c.refusal,
)


@dataclass(frozen=True)
class CountKey:
    """What requests are counted by; ``refusal`` is empty for permitted ones."""

    caller: str
    kind_group: str
    purpose: str
    quota: str
    refusal: str = ""


@dataclass(frozen=True)
class CountRow:
    """Requests and elements under one key since the last totals."""

    key: CountKey
    requests: int
    elements: int


class EvaluationStore:
    """Ledgers, counts and totals; each public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def spend(self, key: CountKey, elements: int, step: Callable[[bytes | None], bytes]) -> None:
        """Replace the caller's ledger by ``step(ledger)`` and count the request; nothing changes if ``step`` raises."""
        where = (EVALUATION_LEDGERS.c.caller == key.caller) & (
            EVALUATION_LEDGERS.c.kind_group == key.kind_group
        )
        with self._database.write() as connection:
            row = connection.execute(select(EVALUATION_LEDGERS.c.state).where(where)).first()
            state = step(None if row is None else bytes(row[0]))
            if row is None:
                values = {"caller": key.caller, "kind_group": key.kind_group, "state": state}
                connection.execute(insert(EVALUATION_LEDGERS).values(values))
            else:
                connection.execute(update(EVALUATION_LEDGERS).where(where).values(state=state))
            _count(connection, key, elements)

    def count(self, key: CountKey, elements: int) -> None:
        """Count a request without spending (refusals, and the holder's own use of its share)."""
        with self._database.write() as connection:
            _count(connection, key, elements)

    def counts(self) -> list[CountRow]:
        """Counts since the last totals, in a fixed order."""
        with self._database.read() as connection:
            return _rows(connection)

    def close_period(self, make: Callable[[int, int, Sequence[CountRow]], tuple[int, bytes] | None]) -> bool:
        """Freeze the counts into totals: ``make(sequence, period_start, counts)`` returns (period_end, envelope).

        In one transaction, so that no request is counted twice or never. ``period_start`` is 0 for the first.
        Returns False, and changes nothing, when ``make`` returns None.
        """
        with self._database.write() as connection:
            newest = connection.execute(
                select(EVALUATION_TOTALS.c.sequence, EVALUATION_TOTALS.c.period_end)
                .order_by(EVALUATION_TOTALS.c.sequence.desc())
                .limit(1)
            ).first()
            sequence, period_start = (1, 0) if newest is None else (newest[0] + 1, newest[1])
            made = make(sequence, period_start, _rows(connection))
            if made is None:
                return False
            values = {"sequence": sequence, "period_end": made[0], "envelope": made[1], "sent": 0}
            connection.execute(insert(EVALUATION_TOTALS).values(values))
            connection.execute(delete(EVALUATION_COUNTS))
            return True

    def unsent_totals(self) -> list[tuple[int, bytes]]:
        """(sequence, envelope) of totals the coordinator has not acknowledged, oldest first."""
        columns = (EVALUATION_TOTALS.c.sequence, EVALUATION_TOTALS.c.envelope)
        query = select(*columns).where(EVALUATION_TOTALS.c.sent == 0).order_by(EVALUATION_TOTALS.c.sequence)
        with self._database.read() as connection:
            return [(row[0], bytes(row[1])) for row in connection.execute(query)]

    def mark_sent(self, sequence: int) -> None:
        """The coordinator has logged the totals of ``sequence``."""
        with self._database.write() as connection:
            connection.execute(
                update(EVALUATION_TOTALS).where(EVALUATION_TOTALS.c.sequence == sequence).values(sent=1)
            )

    def last_period_end(self) -> int:
        """Unix seconds up to which totals exist; 0 if none."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.max(EVALUATION_TOTALS.c.period_end))).scalar() or 0)


def _rows(connection: Connection) -> list[CountRow]:
    columns = (*_KEY, EVALUATION_COUNTS.c.requests, EVALUATION_COUNTS.c.elements)
    return [
        CountRow(CountKey(*row[:5]), row[5], row[6])
        for row in connection.execute(select(*columns).order_by(*_KEY))
    ]


def _count(connection: Connection, key: CountKey, elements: int) -> None:
    values = (key.caller, key.kind_group, key.purpose, key.quota, key.refusal)
    where = [column == value for column, value in zip(_KEY, values, strict=True)]
    changed = connection.execute(
        update(EVALUATION_COUNTS)
        .where(*where)
        .values(requests=EVALUATION_COUNTS.c.requests + 1, elements=EVALUATION_COUNTS.c.elements + elements)
    )
    if changed.rowcount == 0:
        named = {column.name: value for column, value in zip(_KEY, values, strict=True)}
        connection.execute(insert(EVALUATION_COUNTS).values(**named, requests=1, elements=elements))
