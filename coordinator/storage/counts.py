"""Statements over decisions that are counted until they are logged as totals."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select, update

from coordinator.storage.database import Connection
from coordinator.storage.tables import read_counts, refusal_counts


@dataclass(frozen=True)
class Read:
    """A permitted read: who did what for which purpose, and the rule that permitted it."""

    party: str
    action: str
    purpose: str
    rule: str
    policy_epoch: int


@dataclass(frozen=True)
class Refusal:
    """A refused request. Refusals of one party, action and rule are counted together whatever else was claimed."""

    party: str
    action: str
    resource: str
    purpose: str
    reason: str
    rule: str
    policy_epoch: int


@dataclass(frozen=True)
class CountedReads:
    """``requests`` reads since ``period_start`` (unix s)."""

    read: Read
    period_start: int
    requests: int


@dataclass(frozen=True)
class CountedRefusals:
    """``requests`` repetitions not yet logged, of which ``refusal`` was the last; counted in since..until (unix s)."""

    refusal: Refusal
    since: int
    until: int
    requests: int


def count_read(connection: Connection, read: Read, now: int) -> None:
    """One more read; the first one begins a period at ``now``, or where the last one ended if the clock went back."""
    row = connection.execute(select(read_counts).where(*_is_read(read))).first()
    if row is None:
        connection.execute(insert(read_counts).values(**vars(read), period_start=now, requests=1))
        return
    start = row.period_start if row.requests else max(now, row.period_start)
    connection.execute(
        update(read_counts).where(*_is_read(read)).values(period_start=start, requests=row.requests + 1)
    )


def counted_reads(connection: Connection, until: int | None = None) -> list[CountedReads]:
    """The counts whose period began at ``until`` or before; without it all."""
    query = select(read_counts).where(read_counts.c.requests > 0)
    if until is not None:
        query = query.where(read_counts.c.period_start <= until)
    return [
        CountedReads(
            Read(row.party, row.action, row.purpose, row.rule, row.policy_epoch),
            row.period_start,
            row.requests,
        )
        for row in connection.execute(query.order_by(*read_counts.primary_key))
    ]


def end_reads(connection: Connection, read: Read, at: int) -> None:
    """Begin to count anew; the period that ended at ``at`` is logged."""
    connection.execute(update(read_counts).where(*_is_read(read)).values(period_start=at, requests=0))


def repeat_refusal(connection: Connection, refusal: Refusal, now: int) -> bool:
    """Count ``refusal`` if one like it opened a window that is still open at ``now``; False if there is none."""
    more = (
        update(refusal_counts)
        .where(*_is_refusal(refusal), refusal_counts.c.until > now)
        .values(
            requests=refusal_counts.c.requests + 1,
            resource=refusal.resource,
            purpose=refusal.purpose,
            reason=refusal.reason,
        )
    )
    return connection.execute(more).rowcount > 0


def find_refusals(connection: Connection, refusal: Refusal) -> CountedRefusals | None:
    """What is counted of refusals like this one."""
    row = connection.execute(select(refusal_counts).where(*_is_refusal(refusal))).mappings().first()
    return None if row is None else _counted(dict(row))


def counted_refusals(connection: Connection, until: int | None = None) -> list[CountedRefusals]:
    """The counts whose window is over at ``until``; without it all."""
    query = select(refusal_counts)
    if until is not None:
        query = query.where(refusal_counts.c.until <= until)
    return [
        _counted(dict(row))
        for row in connection.execute(query.order_by(*refusal_counts.primary_key)).mappings()
    ]


def open_window(connection: Connection, refusal: Refusal, *, since: int, until: int) -> None:
    """Count repetitions of ``refusal`` in since..until (unix s) from zero."""
    drop_refusals(connection, refusal)
    connection.execute(insert(refusal_counts).values(**vars(refusal), since=since, until=until, requests=0))


def drop_refusals(connection: Connection, refusal: Refusal) -> None:
    """Forget a count that is logged, and its window."""
    connection.execute(delete(refusal_counts).where(*_is_refusal(refusal)))


def _counted(row: dict[str, int | str]) -> CountedRefusals:
    since, until, requests = (int(row.pop(name)) for name in ("since", "until", "requests"))
    return CountedRefusals(Refusal(**row), since, until, requests)  # type: ignore[arg-type]


def _is_read(read: Read) -> list[ColumnElement[bool]]:
    return [read_counts.c[name] == value for name, value in vars(read).items()]


def _is_refusal(refusal: Refusal) -> list[ColumnElement[bool]]:
    return [
        refusal_counts.c[name] == getattr(refusal, name)
        for name in ("party", "action", "rule", "policy_epoch")
    ]
