"""The bank's staff: names, roles and the SHA-256 of each token. A token itself is nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import BigInteger, Column, LargeBinary, Table, Text, insert, select, update

from member_node.storage.database import Database
from member_node.storage.models import METADATA

STAFF = Table(
    "staff",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("token_digest", LargeBinary(32), nullable=False, unique=True),
    Column("roles", Text, nullable=False),
    Column("added_by", Text, nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
    Column("revoked_by", Text, nullable=False),
    Column("revoked_at_ms", BigInteger, nullable=False),
)


@dataclass(frozen=True)
class StaffRow:
    """One person. ``roles``: names joined by commas; ``revoked_at_ms``: 0 while the token is good."""

    name: str
    token_digest: bytes = field(repr=False)
    roles: str
    added_by: str
    added_at_ms: int
    revoked_by: str = ""
    revoked_at_ms: int = 0


class StaffStore:
    """Durable staff. A name is never given twice: what somebody did stays theirs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[StaffRow]:
        """Everybody, revoked ones too, by name."""
        with self._database.read() as connection:
            rows = connection.execute(select(STAFF).order_by(STAFF.c.name))
            return [StaffRow(**{**row._mapping, "token_digest": bytes(row.token_digest)}) for row in rows]

    def added_by(self) -> dict[str, str]:
        """Who gave out each person's token, those of the past too."""
        with self._database.read() as connection:
            rows = connection.execute(select(STAFF.c.name, STAFF.c.added_by))
            return {row.name: row.added_by for row in rows}

    def add(self, row: StaffRow) -> None:
        """Add a person; an integrity error if the name is taken."""
        with self._database.write() as connection:
            connection.execute(insert(STAFF), vars(row))

    def revoke(self, name: str, by: str, at_ms: int) -> None:
        """Mark a token as no longer good."""
        with self._database.write() as connection:
            connection.execute(
                update(STAFF).where(STAFF.c.name == name).values(revoked_by=by, revoked_at_ms=at_ms)
            )
