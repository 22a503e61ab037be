"""Statements over the log's entries, who may read each, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update

from coordinator.storage.database import Connection
from coordinator.storage.tables import checkpoints, log_entries, log_readers

FETCH_ROWS = 5000


@dataclass(frozen=True)
class StoredEntry:
    """One entry: position, the 32-byte salt of its commitment, canonical JSON."""

    index: int
    salt: bytes
    body: bytes


def add_entries(connection: Connection, entries: Sequence[tuple[StoredEntry, Sequence[str]]]) -> None:
    """Append entries, each with the parties that may read its body."""
    connection.execute(
        insert(log_entries),
        [{"entry_index": entry.index, "salt": entry.salt, "body": entry.body} for entry, _ in entries],
    )
    readers = [
        {"party": party, "entry_index": entry.index} for entry, allowed in entries for party in set(allowed)
    ]
    if readers:
        connection.execute(insert(log_readers), readers)


def every_entry(connection: Connection) -> Iterator[StoredEntry]:
    """All entries in order, streamed."""
    query = select(log_entries).order_by(log_entries.c.entry_index).execution_options(yield_per=FETCH_ROWS)
    for row in connection.execute(query):
        yield StoredEntry(row.entry_index, row.salt, row.body)


def entries_from(
    connection: Connection, first: int, before: int, count: int, reader: str | None
) -> list[StoredEntry]:
    """At most ``count`` entries with first <= index < before that ``reader`` may read (None: all)."""
    query = select(log_entries).where(log_entries.c.entry_index >= first, log_entries.c.entry_index < before)
    if reader is not None:
        query = query.join(log_readers).where(log_readers.c.party == reader)
    query = query.order_by(log_entries.c.entry_index).limit(count)
    return [StoredEntry(row.entry_index, row.salt, row.body) for row in connection.execute(query)]


def entry_at(connection: Connection, index: int) -> StoredEntry:
    """The entry at ``index``, which exists."""
    row = connection.execute(select(log_entries).where(log_entries.c.entry_index == index)).one()
    return StoredEntry(row.entry_index, row.salt, row.body)


def put_checkpoint(connection: Connection, size: int, signed_at: int, note: str) -> None:
    """Store the newest signature over the tree of ``size``, in the place of an older one."""
    values = {"signed_at": signed_at, "note": note}
    if connection.execute(update(checkpoints).where(checkpoints.c.size == size).values(values)).rowcount == 0:
        connection.execute(insert(checkpoints).values(size=size, **values))


def newest_checkpoint(connection: Connection) -> str | None:
    """The note over the largest tree."""
    return connection.scalar(select(checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(1))


def newest_size(connection: Connection) -> int:
    """The size of the largest tree that was signed; 0 before the first."""
    return connection.scalar(select(func.max(checkpoints.c.size))) or 0
