"""Lists and their entries, with every change ever made to them.

Raw values lie here, on the bank's own disk, as in its other records of its own stream. Every public method is one
transaction; a change and its record are durable together. Records of changes are only ever appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import BigInteger, Column, Integer, Table, Text, and_, bindparam, delete, func, insert, select

from member_node.storage.database import Connection, Database
from member_node.storage.models import METADATA
from scoring.lists import ListEntry

_CHUNK = 50_000

LISTS = Table(
    "lists",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

LIST_ENTRIES = Table(
    "list_entries",
    METADATA,
    Column("list_name", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("expires_us", BigInteger, nullable=True),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("added_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

LIST_CHANGES = Table(
    "list_changes",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("list_name", Text, nullable=False, index=True),
    Column("action", Text, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)

LIST_CHANGE_ENTRIES = Table(
    "list_change_entries",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("value", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("expires_us", BigInteger, nullable=True),
    Column("reason", Text, nullable=False),
    sqlite_with_rowid=False,
)

_THE_ENTRY = and_(
    LIST_ENTRIES.c.list_name == bindparam("in_list"),
    LIST_ENTRIES.c.value == bindparam("of_value"),
    LIST_ENTRIES.c.rule == bindparam("of_rule"),
)


@dataclass(frozen=True)
class ListRecord:
    """A list as it was created."""

    name: str
    kind: str
    entity: str
    reason: str
    author: str
    created_us: int


@dataclass(frozen=True)
class ChangeRecord:
    """One change: ``action`` is create, add or remove; ``entries`` how many were changed by it."""

    number: int
    list_name: str
    action: str
    entries: int
    reason: str
    author: str
    at_us: int


@dataclass(frozen=True)
class StoredKeys:
    """A part of a list as it is loaded at start, by column; ``expires_us`` None: never."""

    values: list[str] = field(repr=False)
    rules: list[str]
    expires_us: list[int | None]


class ListStore:
    """The bank's lists."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lists(self) -> list[ListRecord]:
        """All lists, by name."""
        with self._database.read() as connection:
            return [
                ListRecord(**row._mapping) for row in connection.execute(select(LISTS).order_by(LISTS.c.name))
            ]

    def create(self, record: ListRecord) -> None:
        """Store a new list; raises ``IntegrityError`` of SQLAlchemy if there is one of its name."""
        with self._database.write() as connection:
            connection.execute(insert(LISTS).values(**record.__dict__))
            _record(connection, record.name, "create", record.reason, record.author, record.created_us, [])

    def load(self, name: str) -> Iterator[StoredKeys]:
        """Values, rules and expiries of a list, in parts."""
        query = select(LIST_ENTRIES.c.value, LIST_ENTRIES.c.rule, LIST_ENTRIES.c.expires_us).where(
            LIST_ENTRIES.c.list_name == name
        )
        with self._database.read() as connection:
            for part in connection.execute(query).partitions(_CHUNK):
                values, rules, expires = zip(*part, strict=True)
                yield StoredKeys(list(values), list(rules), list(expires))

    def put(
        self,
        name: str,
        entries: Sequence[ListEntry],
        replaced: Sequence[ListEntry],
        *,
        reason: str,
        author: str,
        at_us: int,
    ) -> None:
        """Store entries; ``replaced`` are those of them whose value and rule the list has already."""
        with self._database.write() as connection:
            _delete(connection, name, [(entry.value, entry.rule) for entry in replaced])
            _insert_many(
                connection,
                LIST_ENTRIES,
                [
                    (name, each.value, each.rule, each.expires_us, each.reason, each.author, each.added_us)
                    for each in entries
                ],
            )
            _record(connection, name, "add", reason, author, at_us, entries)

    def remove(
        self, name: str, entries: Sequence[ListEntry], *, reason: str, author: str, at_us: int
    ) -> None:
        """Remove these entries of a list; their record keeps them."""
        with self._database.write() as connection:
            _delete(connection, name, [(entry.value, entry.rule) for entry in entries])
            _record(connection, name, "remove", reason, author, at_us, entries)

    def find(self, name: str, value: str) -> list[ListEntry]:
        """The entries of one value, by rule."""
        query = (
            select(LIST_ENTRIES)
            .where(LIST_ENTRIES.c.list_name == name, LIST_ENTRIES.c.value == value)
            .order_by(LIST_ENTRIES.c.rule)
        )
        return self._entries(query)

    def newest(self, name: str, limit: int, offset: int) -> list[ListEntry]:
        """Entries from the newest on."""
        query = (
            select(LIST_ENTRIES)
            .where(LIST_ENTRIES.c.list_name == name)
            .order_by(LIST_ENTRIES.c.added_us.desc(), LIST_ENTRIES.c.value, LIST_ENTRIES.c.rule)
            .limit(limit)
            .offset(offset)
        )
        return self._entries(query)

    def expired(self, name: str, before_us: int) -> list[ListEntry]:
        """The entries whose expiry lies at or before a time."""
        query = select(LIST_ENTRIES).where(
            LIST_ENTRIES.c.list_name == name, LIST_ENTRIES.c.expires_us <= before_us
        )
        return self._entries(query)

    def counts(self) -> dict[str, int]:
        """Entries by list; a list without any is not named."""
        query = select(LIST_ENTRIES.c.list_name, func.count()).group_by(LIST_ENTRIES.c.list_name)
        with self._database.read() as connection:
            return {name: int(count) for name, count in connection.execute(query)}

    def changes(self, name: str, limit: int, offset: int) -> list[ChangeRecord]:
        """What was done to a list, newest first."""
        query = (
            select(LIST_CHANGES)
            .where(LIST_CHANGES.c.list_name == name)
            .order_by(LIST_CHANGES.c.number.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._database.read() as connection:
            return [ChangeRecord(**row._mapping) for row in connection.execute(query)]

    def changed(self, number: int, limit: int, offset: int) -> list[tuple[str, str, int | None, str]]:
        """The entries of one change as (value, rule, expiry, reason), in their order."""
        table = LIST_CHANGE_ENTRIES
        query = (
            select(table.c.value, table.c.rule, table.c.expires_us, table.c.reason)
            .where(table.c.number == number)
            .order_by(table.c.place)
            .limit(limit)
            .offset(offset)
        )
        with self._database.read() as connection:
            return [(row.value, row.rule, row.expires_us, row.reason) for row in connection.execute(query)]

    def _entries(self, query: object) -> list[ListEntry]:
        with self._database.read() as connection:
            return [
                ListEntry(row.value, row.expires_us, row.reason, row.author, row.added_us, row.rule)
                for row in connection.execute(query)  # type: ignore[call-overload]
            ]


def _delete(connection: Connection, name: str, pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        rows = [{"in_list": name, "of_value": value, "of_rule": rule} for value, rule in pairs]
        connection.execute(delete(LIST_ENTRIES).where(_THE_ENTRY), rows)


def _record(
    connection: Connection,
    name: str,
    action: str,
    reason: str,
    author: str,
    at_us: int,
    entries: Sequence[ListEntry],
) -> None:
    row = {
        "list_name": name,
        "action": action,
        "entries": len(entries),
        "reason": reason,
        "author": author,
        "at_us": at_us,
    }
    made = connection.execute(insert(LIST_CHANGES).values(**row)).inserted_primary_key
    assert made is not None
    if entries:
        _insert_many(
            connection,
            LIST_CHANGE_ENTRIES,
            [
                (made[0], place, entry.value, entry.rule, entry.expires_us, entry.reason)
                for place, entry in enumerate(entries)
            ],
        )


def _insert_many(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows in the table's column order, past SQLAlchemy's own handling of every single parameter.

    That handling is most of the time an import of a million entries takes.
    """
    names = [column.name for column in table.columns]
    compiled = insert(table).compile(dialect=connection.dialect, column_keys=names)
    if compiled.positional:
        order = [names.index(name) for name in compiled.positiontup or ()]
        connection.exec_driver_sql(compiled.string, [tuple(row[place] for place in order) for row in rows])
    else:
        connection.exec_driver_sql(compiled.string, [dict(zip(names, row, strict=True)) for row in rows])
