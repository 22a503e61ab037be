"""Statements over parties, group keys, directories and what was published of them."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, select, update

from coordinator.storage.database import Connection
from coordinator.storage.tables import directories, group_keys, membership_rolls, parties, policy_bundles
from governance.indicators import NORMAL_FORMS_VERSION
from governance.messages.codec import decode, encode
from governance.messages.policy import PolicyBundle
from governance.messages.roll import Directory, GroupKey, MembershipRoll, RollEntry
from governance.messages.signed import Signed


def all_parties(connection: Connection) -> list[RollEntry]:
    """Every admitted party, by id."""
    return [
        RollEntry(**row) for row in connection.execute(select(parties).order_by(parties.c.party)).mappings()
    ]


def add_party(connection: Connection, entry: RollEntry) -> None:
    """Admit a party; the caller has checked that it is new."""
    connection.execute(
        insert(parties).values(
            party=entry.party,
            name=entry.name,
            role=entry.role,
            verify_key=entry.verify_key,
            url=entry.url,
            share_index=entry.share_index,
            joined_epoch=entry.joined_epoch,
        )
    )


def newest_group_keys(connection: Connection) -> list[GroupKey]:
    """For each kind group the key of the newest (epoch, generation), by kind group."""
    query = select(group_keys.c.payload).order_by(
        group_keys.c.kind_group, group_keys.c.epoch, group_keys.c.generation
    )
    keys = [decode(GroupKey, payload) for payload in connection.scalars(query)]
    return sorted({key.kind_group: key for key in keys}.values(), key=lambda key: key.kind_group)


def add_group_key(connection: Connection, key: GroupKey) -> None:
    """Store one key; (kind group, epoch, generation) is new."""
    connection.execute(
        insert(group_keys).values(
            kind_group=key.kind_group, epoch=key.epoch, generation=key.generation, payload=encode(key)
        )
    )


def all_directories(connection: Connection) -> list[Directory]:
    """Every public directory, by data set."""
    query = select(directories).order_by(directories.c.dataset)
    return [Directory(**row) for row in connection.execute(query).mappings()]


def put_directory(connection: Connection, directory: Directory) -> None:
    """Store a directory in the place of the one of the same data set."""
    connection.execute(delete(directories).where(directories.c.dataset == directory.dataset))
    connection.execute(
        insert(directories).values(dataset=directory.dataset, cells=directory.cells, digest=directory.digest)
    )


def current_epoch(connection: Connection) -> int:
    """The OPRF epoch: that of the newest group key, 1 before there is one."""
    return max((key.epoch for key in newest_group_keys(connection)), default=1)


def current_roll(connection: Connection, *, version: int, issued_at: int) -> MembershipRoll:
    """The roll as the tables have it now."""
    return MembershipRoll(
        version=version,
        epoch=current_epoch(connection),
        issued_at=issued_at,
        normal_forms=NORMAL_FORMS_VERSION,
        parties=all_parties(connection),
        group_keys=newest_group_keys(connection),
        directories=all_directories(connection),
    )


def newest_roll(connection: Connection, signer: str) -> Signed | None:
    """The membership roll published last, as it was signed by ``signer``."""
    row = connection.execute(select(membership_rolls).order_by(membership_rolls.c.version.desc())).first()
    return None if row is None else Signed(signer=signer, payload=row.payload, signature=row.signature)


def add_roll(connection: Connection, roll: MembershipRoll, signed: Signed) -> None:
    """Keep a published roll."""
    connection.execute(
        insert(membership_rolls).values(
            version=roll.version, payload=signed.payload, signature=signed.signature
        )
    )


def newest_policy_epoch(connection: Connection) -> int:
    """The policy epoch installed last; 0 when there is none."""
    return connection.scalar(select(func.max(policy_bundles.c.policy_epoch))) or 0


def add_policy(connection: Connection, bundle: PolicyBundle, signed: Signed) -> None:
    """Keep an installed bundle, not yet published."""
    connection.execute(
        insert(policy_bundles).values(
            policy_epoch=bundle.policy_epoch,
            payload=signed.payload,
            signature=signed.signature,
            entry_index=None,
        )
    )


def unpublished_policies(connection: Connection, signer: str) -> list[Signed]:
    """Installed bundles without a log entry, oldest first."""
    query = (
        select(policy_bundles)
        .where(policy_bundles.c.entry_index.is_(None))
        .order_by(policy_bundles.c.policy_epoch)
    )
    return [
        Signed(signer=signer, payload=row.payload, signature=row.signature)
        for row in connection.execute(query)
    ]


def mark_policy_published(connection: Connection, policy_epoch: int, entry_index: int) -> None:
    """Say which log entry published the bundle."""
    connection.execute(
        update(policy_bundles)
        .where(policy_bundles.c.policy_epoch == policy_epoch)
        .values(entry_index=entry_index)
    )


def newest_policy(connection: Connection, signer: str) -> Signed | None:
    """The bundle of the newest policy epoch, as signed by ``signer``."""
    row = connection.execute(select(policy_bundles).order_by(policy_bundles.c.policy_epoch.desc())).first()
    return None if row is None else Signed(signer=signer, payload=row.payload, signature=row.signature)
