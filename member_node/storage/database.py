"""Opening a member's database: SQLite in WAL mode by default, any SQLAlchemy URL otherwise.

The one place that knows which database it is. A read sees one snapshot; writes are serialised by a lock in the
process and, on SQLite, by ``BEGIN IMMEDIATE``, so that a second writer waits instead of failing half way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url

__all__ = ["Connection", "Database"]

BUSY_TIMEOUT_MS = 10_000
FILE_NAME = "member.sqlite3"
MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """An engine at the newest schema; ``read()`` and ``write()`` are the only ways to a connection."""

    def __init__(self, url: str) -> None:
        """Open ``url`` and bring it to the newest schema."""
        self._engine = _open_engine(url)
        self._writing = threading.Lock()
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @classmethod
    def in_directory(cls, directory: Path, url: str = "") -> Database:
        """The database of a member's data directory, unless ``url`` names another."""
        if url:
            return cls(url)
        path = directory / FILE_NAME
        # SQLite gives its journal the mode of its file, so that it must not be made by SQLite.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        path.chmod(0o600)
        return cls(f"sqlite:///{path}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state; whatever it changes is rolled back."""
        with self._engine.connect() as connection:
            yield connection
            connection.rollback()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One durable transaction: committed when the block ends, rolled back when it raises."""
        with self._writing, self._engine.connect() as connection:
            writing = connection.execution_options(subrosa_write=True)
            with writing.begin():
                yield writing

    def close(self) -> None:
        """Close all pooled connections."""
        self._engine.dispose()


def _open_engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, pool_size=16, max_overflow=64, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: object, _record: object) -> None:
        # The driver would open transactions by looking at statements; "begin" below does it explicitly.
        connection.isolation_level = None  # type: ignore[attr-defined]
        cursor = connection.cursor()  # type: ignore[attr-defined]
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("subrosa_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
