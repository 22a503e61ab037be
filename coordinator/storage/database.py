"""Opening the database: SQLite in WAL mode by default, any SQLAlchemy URL otherwise.

This is the one place that knows which database it is. A read runs in a snapshot; a write is serialised by
one lock in the process, and on SQLite by ``BEGIN IMMEDIATE``, so that two writers wait instead of failing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["Connection", "Database", "IntegrityError"]

BUSY_TIMEOUT_MS = 10_000


class Database:
    """An engine at the newest schema. ``read()`` and ``write()`` are the only ways to a connection."""

    def __init__(self, url: str) -> None:
        """Open ``url`` and migrate it to the newest schema."""
        self._engine = _create_engine(url)
        self._writing = threading.Lock()
        self._migrate()

    @classmethod
    def in_directory(cls, directory: Path, url: str = "") -> Database:
        """``coordinator.sqlite3`` inside a data directory, unless ``url`` names another database."""
        if url:
            return cls(url)
        path = directory / "coordinator.sqlite3"
        # SQLite gives its journal the mode of its file, so that it must not be made by SQLite.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        path.chmod(0o600)
        return cls(f"sqlite:///{path}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state and changes nothing."""
        with self._engine.connect() as connection:
            yield connection
            connection.rollback()

    @contextmanager
    def write(self, *, wait_for_disk: bool = True) -> Iterator[Connection]:
        """A durable transaction: committed when the block ends, rolled back when it raises.

        Without ``wait_for_disk`` it survives the end of the process but perhaps not a power cut.
        """
        with self._writing, self._engine.connect() as connection:
            connection = connection.execution_options(subrosa_write="full" if wait_for_disk else "normal")
            with connection.begin():
                if not wait_for_disk and self._engine.dialect.name == "postgresql":
                    connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                yield connection

    def close(self) -> None:
        """Return all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(resources.files("coordinator.storage") / "migrations"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _create_engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, pool_size=16, max_overflow=64, hide_parameters=True)

    # Python's sqlite3 opens transactions by guessing from the statement; we open them ourselves.
    @event.listens_for(engine, "connect")
    def _configure(dbapi_connection: object, _entry: ConnectionPoolEntry) -> None:
        dbapi_connection.isolation_level = None  # type: ignore[attr-defined]
        cursor = dbapi_connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("subrosa_write")
        if writes:
            connection.exec_driver_sql(f"PRAGMA synchronous={writes}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
