"""The tag cache on disk: rows keyed by an HMAC of the normal form, contents sealed by the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from member_node.storage.database import Database
from member_node.storage.models import CACHED_TAGS

IN_CLAUSE = 500


class TagStore:
    """Sealed OPRF outputs per epoch."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, epoch: int, lookup_keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The sealed rows that exist among ``lookup_keys`` (32 bytes each)."""
        found: dict[bytes, bytes] = {}
        with self._database.read() as connection:
            for start in range(0, len(lookup_keys), IN_CLAUSE):
                part = lookup_keys[start : start + IN_CLAUSE]
                query = select(CACHED_TAGS.c.lookup_key, CACHED_TAGS.c.sealed).where(
                    CACHED_TAGS.c.epoch == epoch, CACHED_TAGS.c.lookup_key.in_(part)
                )
                found.update((bytes(row[0]), bytes(row[1])) for row in connection.execute(query))
        return found

    def all(self, epoch: int) -> Iterator[tuple[bytes, bytes]]:
        """Every (lookup key, sealed row) of the epoch."""
        query = select(CACHED_TAGS.c.lookup_key, CACHED_TAGS.c.sealed).where(CACHED_TAGS.c.epoch == epoch)
        with self._database.read() as connection:
            for row in connection.execute(query):
                yield bytes(row[0]), bytes(row[1])

    def save(self, epoch: int, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Add (lookup key, sealed row) pairs; those that exist stay as they are."""
        values = [{"epoch": epoch, "lookup_key": key, "sealed": sealed} for key, sealed in rows]
        if not values:
            return
        with self._database.write() as connection:
            insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
            connection.execute(insert(CACHED_TAGS).on_conflict_do_nothing(), values)

    def forget_other_epochs(self, epoch: int) -> None:
        """Delete rows whose key is no longer in use."""
        with self._database.write() as connection:
            connection.execute(delete(CACHED_TAGS).where(CACHED_TAGS.c.epoch != epoch))

    def count(self, epoch: int) -> int:
        """Rows of the epoch."""
        query = select(func.count()).select_from(CACHED_TAGS).where(CACHED_TAGS.c.epoch == epoch)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())
