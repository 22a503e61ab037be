"""Operations on a coordinator's data directory while it does not serve; they are published at the next start.

Nothing here talks to the network: cards, keys, directories and policies are carried by the operator.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from coordinator.settings import (
    IDENTITY_SEED,
    LOG_SEED,
    Settings,
    SettingsError,
    load_settings,
    write_settings,
)
from coordinator.storage import parties as stored
from coordinator.storage.database import Connection, Database
from crypto.signing import SEED_SIZE, SigningKey
from governance.log.notes import verifier_key
from governance.members import MembershipError, Role, check_party_id, check_roll, key_set
from governance.messages.policy import PolicyBundle
from governance.messages.roll import Directory, GroupKey, MembershipRoll, PartyCard, RollEntry
from governance.messages.signed import sign_message
from governance.policy.decider import Decider


class Card(Protocol):
    """What is read of a party's card (:class:`governance.messages.roll.PartyCard`)."""

    @property
    def party(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def verify_key(self) -> str: ...
    @property
    def url(self) -> str: ...


class Anchors(NamedTuple):
    """What every member pins of a new coordinator: its card and the C2SP verifier key of its log."""

    card: PartyCard
    log_verifier_key: str


def init_coordinator(
    directory: Path,
    *,
    party: str = "coordinator",
    name: str = "Coordinator",
    host: str = "127.0.0.1",
    port: int,
    origin: str,
    label_clock: str = "business",
) -> Anchors:
    """Make a data directory with fresh keys and an empty store; the coordinator admits itself.

    See :class:`coordinator.settings.Settings` for ``origin`` and ``label_clock``. Raises
    :class:`~coordinator.settings.SettingsError` if the directory is in use.
    """
    check_party_id(party)
    seeds = {name: secrets.token_bytes(SEED_SIZE) for name in (IDENTITY_SEED, LOG_SEED)}
    anchors = Anchors(
        PartyCard(
            party=party,
            name=name,
            role=Role.COORDINATOR,
            verify_key=SigningKey(seeds[IDENTITY_SEED]).verify_key.hex(),
            url=f"http://{host}:{port}",
        ),
        verifier_key(origin, SigningKey(seeds[LOG_SEED]).verify_key),
    )
    values: dict[str, str | int] = {
        "party": party,
        "name": name,
        "host": host,
        "port": port,
        "origin": origin,
        "label_clock": label_clock,
    }
    write_settings(directory, values, seeds)
    admit(directory, anchors.card, 0)
    return anchors


def admit(directory: Path, card: Card, share_index: int) -> RollEntry:
    """Admit a party; ``share_index`` is its Shamir index (1..n), 0 for parties without a key share.

    Raises :class:`~governance.members.MembershipError` if the roll would not be valid with it.
    """
    settings = load_settings(directory)
    try:
        verify_key = bytes.fromhex(card.verify_key)
    except ValueError as error:
        raise MembershipError(
            card.party, "has a verify key that is not hexadecimal: ask for its card again"
        ) from error
    with closing(_open(settings)) as database, database.write() as connection:
        entry = RollEntry(
            party=card.party,
            name=card.name,
            role=str(card.role),
            verify_key=verify_key,
            url=card.url,
            share_index=share_index,
            joined_epoch=stored.current_epoch(connection),
        )
        if any(known.party == entry.party for known in stored.all_parties(connection)):
            raise MembershipError(entry.party, "is admitted already")
        stored.add_party(connection, entry)
        # Keys are dealt to the holders there will be, so they are checked when they are installed.
        check_roll(_draft(connection, group_keys=[]))
    return entry


def install_group_keys(directory: Path, keys: Iterable[GroupKey]) -> None:
    """Install OPRF public keys: each newer than the one in force, with a share for every key holder.

    Raises :class:`~governance.members.MembershipError` or :class:`~crypto.errors.CryptoError`.
    """
    settings = load_settings(directory)
    with closing(_open(settings)) as database, database.write() as connection:
        current = {key.kind_group: key for key in stored.newest_group_keys(connection)}
        for key in keys:
            known = current.get(key.kind_group)
            if known and (key.epoch, key.generation) <= (known.epoch, known.generation):
                raise MembershipError(
                    "",
                    f"group key {key.kind_group}: epoch {key.epoch} generation {key.generation} is not newer",
                )
            stored.add_group_key(connection, key)
        draft = _draft(connection, group_keys=stored.newest_group_keys(connection))
        check_roll(draft)
        for key in draft.group_keys:
            key_set(draft, key.kind_group)


def read_directory(file: Path, dataset: str) -> Directory:
    """What the roll says of a public directory file: one id a line, each line ended, and its SHA-256.

    Raises :class:`~coordinator.settings.SettingsError` for a file without lines; members check the ids themselves.
    """
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        raise SettingsError(f"{file} does not end with a line end: one id a line")
    return Directory(dataset=dataset, cells=content.count(b"\n"), digest=hashlib.sha256(content).digest())


def install_directory(directory: Path, public: Directory) -> None:
    """Install the public directory of a data set, in the place of an earlier one."""
    settings = load_settings(directory)
    with closing(_open(settings)) as database, database.write() as connection:
        stored.put_directory(connection, public)
        check_roll(_draft(connection, group_keys=[]))


def install_policy(directory: Path, bundle: PolicyBundle) -> None:
    """Sign and install the next policy bundle; it must be usable, and its epoch the next number.

    Raises :class:`~governance.policy.decision.PolicyError` or :class:`~governance.members.MembershipError`.
    """
    settings = load_settings(directory)
    with closing(_open(settings)) as database, database.write() as connection:
        expected = stored.newest_policy_epoch(connection) + 1
        if bundle.policy_epoch != expected:
            raise MembershipError(
                "", f"the bundle has policy epoch {bundle.policy_epoch}, the next one is {expected}"
            )
        Decider(bundle, _draft(connection, group_keys=[]))
        stored.add_policy(connection, bundle, sign_message(bundle, settings.party, settings.identity))


def _draft(connection: Connection, group_keys: list[GroupKey]) -> MembershipRoll:
    roll = stored.current_roll(connection, version=1, issued_at=0)
    return msgspec.structs.replace(roll, group_keys=group_keys)


def _open(settings: Settings) -> Database:
    return Database.in_directory(settings.directory, settings.database_url)
