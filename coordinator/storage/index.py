"""Statements over the index of tags: accepted batches and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select

from coordinator.storage.database import Connection
from coordinator.storage.tables import deltas, labels
from governance.messages.index import SealedLabel
from governance.messages.signed import Signed


@dataclass(frozen=True)
class StoredDelta:
    """One accepted batch without its labels."""

    number: int
    contributor: str
    digest: bytes
    accepted: int
    merge_by: int
    entry_index: int


def last_number(connection: Connection) -> int:
    """The newest delta's number; 0 when there is none."""
    return connection.scalar(select(func.max(deltas.c.number))) or 0


def find_delta(connection: Connection, contributor: str, digest: bytes) -> StoredDelta | None:
    """The delta that took in exactly this batch of ``contributor``, if there is one."""
    query = select(deltas).where(deltas.c.contributor == contributor, deltas.c.digest == digest)
    row = connection.execute(query).mappings().first()
    return None if row is None else StoredDelta(**row)


def add_delta(
    connection: Connection, delta: StoredDelta, batch: Sequence[tuple[SealedLabel, Signed]]
) -> None:
    """Store a batch under its number."""
    connection.execute(
        insert(deltas).values(
            number=delta.number,
            contributor=delta.contributor,
            digest=delta.digest,
            accepted=delta.accepted,
            merge_by=delta.merge_by,
            entry_index=delta.entry_index,
        )
    )
    connection.execute(
        insert(labels),
        [
            {
                "delta_number": delta.number,
                "position": position,
                "contributor": label.contributor,
                "epoch": label.epoch,
                "kind": label.kind,
                "tag": label.tag,
                "issued_ms": label.issued_at,
                "expires_ms": label.expires_at,
                "payload": signed.payload,
                "signature": signed.signature,
            }
            for position, (label, signed) in enumerate(batch)
        ],
    )


def newest_issue(connection: Connection, contributor: str) -> int:
    """The latest ``issued_at`` (business ms) among the labels of ``contributor``; 0 when it has none."""
    query = select(func.max(labels.c.issued_ms)).where(labels.c.contributor == contributor)
    return connection.scalar(query) or 0


def deltas_after(connection: Connection, after: int, count: int, max_labels: int) -> list[StoredDelta]:
    """At most ``count`` deltas after ``after`` that have at most ``max_labels`` labels, but at least one."""
    query = select(deltas).where(deltas.c.number > after).order_by(deltas.c.number).limit(count)
    page: list[StoredDelta] = []
    total = 0
    for row in connection.execute(query).mappings():
        total += row["accepted"]
        if page and total > max_labels:
            break
        page.append(StoredDelta(**row))
    return page


def labels_between(connection: Connection, first: int, last: int) -> dict[int, list[Signed]]:
    """The labels of deltas first..last, in the order they were signed and sent."""
    query = (
        select(labels.c.delta_number, labels.c.contributor, labels.c.payload, labels.c.signature)
        .where(labels.c.delta_number >= first, labels.c.delta_number <= last)
        .order_by(labels.c.delta_number, labels.c.position)
    )
    batches: dict[int, list[Signed]] = {}
    for number, contributor, payload, signature in connection.execute(query):
        batches.setdefault(number, []).append(
            Signed(signer=contributor, payload=payload, signature=signature)
        )
    return batches
