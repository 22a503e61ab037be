"""Rule set versions, what was deployed when, and the trail of every change.

A change is one transaction: the versions it moves, the deployment that follows and the entry of the trail are durable
together. Texts, deployments and trail entries are only ever added. Each trail entry carries the SHA-256 of the one
before it and of its own content, so that a row changed or taken out behind the program's back is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text, func, insert, select, update

from member_node.storage.database import Connection, Database
from member_node.storage.models import METADATA

NO_CHAIN = bytes(32)

RULE_VERSIONS = Table(
    "rule_versions",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("columns", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("saved_at_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("decision", Text, nullable=False),
)

RULE_DEPLOYMENTS = Table(
    "rule_deployments",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

RULE_AUDIT = Table(
    "rule_audit",
    METADATA,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("deployment", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("chain", LargeBinary(32), nullable=False),
)


@dataclass(frozen=True)
class VersionRow:
    """One version: its text and SHA-256 (hex), the columns it reads (JSON), who saved it and why, its state, and who
    approved or rejected it and why ("" and 0 before)."""

    number: int
    text: str
    digest: str
    columns: str
    author: str
    comment: str
    saved_at_ms: int
    state: str
    decided_by: str = ""
    decided_at_ms: int = 0
    decision: str = ""


@dataclass(frozen=True)
class AuditDraft:
    """An entry of the trail before it has its place: who did what to which version (0: none), and why.

    ``deployment``: the number of the deployment in force after it.
    """

    at_ms: int
    actor: str
    action: str
    version: int
    deployment: int
    detail: str


@dataclass(frozen=True)
class AuditRow(AuditDraft):
    """An entry of the trail in its place, from 1. ``chain``: SHA-256 over the one before and this content."""

    sequence: int = 0
    chain: bytes = NO_CHAIN


def next_chain(before: bytes, sequence: int, draft: AuditDraft) -> bytes:
    """The chain value of ``draft`` at ``sequence`` after an entry with chain value ``before``."""
    content = [
        sequence,
        draft.at_ms,
        draft.actor,
        draft.action,
        draft.version,
        draft.deployment,
        draft.detail,
    ]
    return hashlib.sha256(before + json.dumps(content, ensure_ascii=False).encode()).digest()


class RulebookStore:
    """Durable rulebook of one bank."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def versions(self) -> list[VersionRow]:
        """All versions in the order of their numbers."""
        with self._database.read() as connection:
            rows = connection.execute(select(RULE_VERSIONS).order_by(RULE_VERSIONS.c.number))
            return [VersionRow(**row._mapping) for row in rows]

    def deployment(self, number: int | None = None) -> tuple[int, str] | None:
        """A deployment's number and content (JSON), the newest without ``number``; None if there is none."""
        query = select(RULE_DEPLOYMENTS.c.number, RULE_DEPLOYMENTS.c.content)
        if number is None:
            query = query.order_by(RULE_DEPLOYMENTS.c.number.desc()).limit(1)
        else:
            query = query.where(RULE_DEPLOYMENTS.c.number == number)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else (int(row[0]), str(row[1]))

    def audit(self, after: int = 0, limit: int | None = None) -> list[AuditRow]:
        """Entries of the trail behind sequence ``after``, oldest first."""
        query = select(RULE_AUDIT).where(RULE_AUDIT.c.sequence > after).order_by(RULE_AUDIT.c.sequence)
        with self._database.read() as connection:
            rows = connection.execute(query if limit is None else query.limit(limit))
            return [AuditRow(**{**row._mapping, "chain": bytes(row.chain)}) for row in rows]

    def commit(
        self,
        draft: AuditDraft,
        *,
        saved: VersionRow | None = None,
        moved: Sequence[VersionRow] = (),
        deployment: str | None = None,
    ) -> None:
        """One change: a new version, versions in another state, a new deployment (JSON), and why.

        Raises an integrity error and changes nothing if the deployment's number (``draft.deployment``) is taken.
        """
        with self._database.write() as connection:
            if saved is not None:
                connection.execute(insert(RULE_VERSIONS), vars(saved))
            for row in moved:
                connection.execute(
                    update(RULE_VERSIONS)
                    .where(RULE_VERSIONS.c.number == row.number)
                    .values(
                        state=row.state,
                        decided_by=row.decided_by,
                        decided_at_ms=row.decided_at_ms,
                        decision=row.decision,
                    )
                )
            if deployment is not None:
                values = {
                    "number": draft.deployment,
                    "content": deployment,
                    "actor": draft.actor,
                    "at_ms": draft.at_ms,
                }
                connection.execute(insert(RULE_DEPLOYMENTS), values)
            _append(connection, draft)


def _append(connection: Connection, draft: AuditDraft) -> None:
    newest = connection.execute(select(func.coalesce(func.max(RULE_AUDIT.c.sequence), 0))).scalar_one()
    before = NO_CHAIN
    if newest:
        before = bytes(
            connection.execute(select(RULE_AUDIT.c.chain).where(RULE_AUDIT.c.sequence == newest)).scalar_one()
        )
    sequence = int(newest) + 1
    chain = next_chain(before, sequence, draft)
    connection.execute(insert(RULE_AUDIT), {**vars(draft), "sequence": sequence, "chain": chain})
