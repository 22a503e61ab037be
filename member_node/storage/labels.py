"""The mirror of the index on disk: applied deltas, the latest label of each contributor, and receipts held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, delete, func, insert, select, update

from governance.messages.index import SealedLabel
from member_node.storage.database import Database
from member_node.storage.models import DELTAS, LABELS, RECEIPTS

NOT_MERGED = 0


@dataclass(frozen=True)
class AppliedDelta:
    """A delta whose digest was found in the log at ``log_index``."""

    number: int
    contributor: str
    digest: bytes
    labels: int
    log_index: int


@dataclass(frozen=True)
class HeldReceipt:
    """The coordinator's signed promise for the batch with ``digest``; ``envelope`` is the encoded signed receipt."""

    digest: bytes
    envelope: bytes
    merge_by: int


class LabelStore:
    """Deltas, labels and receipts; each public method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last_delta(self) -> int:
        """Number of the newest applied delta, 0 at first."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.max(DELTAS.c.number))).scalar() or 0)

    def last_log_index(self) -> int:
        """Log index of the newest applied delta, -1 at first."""
        with self._database.read() as connection:
            newest = connection.execute(select(func.max(DELTAS.c.log_index))).scalar()
        return -1 if newest is None else int(newest)

    def apply(self, delta: AppliedDelta, labels: Sequence[SealedLabel]) -> None:
        """Store one delta with its accepted labels, and mark the receipt it fulfils, all or nothing."""
        with self._database.write() as connection:
            connection.execute(
                insert(DELTAS).values(
                    number=delta.number,
                    contributor=delta.contributor,
                    digest=delta.digest,
                    labels=delta.labels,
                    log_index=delta.log_index,
                )
            )
            for label in labels:
                same = and_(
                    LABELS.c.epoch == label.epoch,
                    LABELS.c.kind == label.kind,
                    LABELS.c.tag == label.tag,
                    LABELS.c.contributor == label.contributor,
                )
                connection.execute(delete(LABELS).where(same, LABELS.c.issued_at <= label.issued_at))
                if connection.execute(select(LABELS.c.issued_at).where(same)).first() is None:
                    connection.execute(
                        insert(LABELS).values(
                            epoch=label.epoch,
                            kind=label.kind,
                            tag=label.tag,
                            contributor=label.contributor,
                            issued_at=label.issued_at,
                            expires_at=label.expires_at,
                            sealed=label.sealed,
                        )
                    )
            connection.execute(
                update(RECEIPTS).where(RECEIPTS.c.digest == delta.digest).values(delta=delta.number)
            )

    def labels(self, epoch: int) -> list[SealedLabel]:
        """The latest label of each (kind, tag, contributor) of the epoch."""
        columns = (
            LABELS.c.kind,
            LABELS.c.tag,
            LABELS.c.contributor,
            LABELS.c.issued_at,
            LABELS.c.expires_at,
            LABELS.c.sealed,
        )
        with self._database.read() as connection:
            return [
                SealedLabel(
                    epoch=epoch,
                    kind=row[0],
                    tag=bytes(row[1]),
                    contributor=row[2],
                    issued_at=row[3],
                    expires_at=row[4],
                    sealed=bytes(row[5]),
                )
                for row in connection.execute(select(*columns).where(LABELS.c.epoch == epoch))
            ]

    def save_receipt(self, digest: bytes, envelope: bytes, merge_by: int) -> None:
        """Keep the coordinator's signed promise until the mirror has seen the delta (and after, as evidence)."""
        with self._database.write() as connection:
            connection.execute(delete(RECEIPTS).where(RECEIPTS.c.digest == digest))
            merged = connection.execute(
                select(func.max(DELTAS.c.number)).where(DELTAS.c.digest == digest)
            ).scalar()
            connection.execute(
                insert(RECEIPTS).values(
                    digest=digest, envelope=envelope, merge_by=merge_by, delta=merged or NOT_MERGED
                )
            )

    def overdue_receipts(self, now: int) -> list[HeldReceipt]:
        """What the coordinator promised to merge before ``now`` (unix seconds) and did not, oldest first."""
        query = (
            select(RECEIPTS.c.digest, RECEIPTS.c.envelope, RECEIPTS.c.merge_by)
            .where(RECEIPTS.c.delta == NOT_MERGED, RECEIPTS.c.merge_by < now)
            .order_by(RECEIPTS.c.merge_by, RECEIPTS.c.digest)
        )
        with self._database.read() as connection:
            return [HeldReceipt(bytes(row[0]), bytes(row[1]), row[2]) for row in connection.execute(query)]
