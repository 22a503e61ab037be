"""Operations on a member's data directory before it serves: identity, trust, key shares, public directory.

Used by the command line and by the sandbox. Each is complete or leaves the directory as it was.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from crypto.signing import SEED_SIZE, SigningKey
from crypto.threshold import KeyShare
from governance.log.notes import MalformedNoteError, parse_verifier_key
from governance.members import PinnedParty, Role, check_party_id
from governance.messages.roll import Directory, PartyCard
from member_node.secret_files import (
    IDENTITY_FILE,
    KEY_SIZE,
    STORAGE_KEY_FILE,
    TOKEN_FILE,
    StorageKey,
    check_private,
    load_key_shares,
    read_identity,
    save_key_shares,
    write_secret,
)
from member_node.settings import (
    SETTINGS_FILE,
    SettingsError,
    load_settings,
    pin_text,
    read_tables,
    write_tables,
)

TOKEN_BYTES = 32
MAX_DIRECTORY_BYTES = 256 * 2**20


def init_member(
    directory: Path,
    *,
    party: str,
    name: str,
    host: str,
    port: int,
    coordinator_url: str,
    capture_directory: Path | None = None,
    database_url: str = "",
) -> PartyCard:
    """Make the data directory with fresh secrets; returns the card to give to the coordinator's operator.

    ``capture_directory``: where to record every byte that crosses the bank's boundary (for the privacy test only).
    Raises :class:`~governance.members.MembershipError` for a bad party id and :class:`SettingsError` if there is a
    member already.
    """
    check_party_id(party)
    if not 1 <= port <= 65_535:
        raise SettingsError(f"port {port} is not between 1 and 65535")
    if (directory / SETTINGS_FILE).exists():
        raise SettingsError(f"{directory.name} is the data directory of a member already")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(directory)
    write_secret(directory / IDENTITY_FILE, secrets.token_bytes(SEED_SIZE))
    write_secret(directory / STORAGE_KEY_FILE, secrets.token_bytes(KEY_SIZE))
    token = base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=")
    write_secret(directory / TOKEN_FILE, token)
    member: dict[str, str | int] = {
        "party": party,
        "name": name,
        "host": host,
        "port": port,
        "coordinator_url": coordinator_url.rstrip("/"),
    }
    if database_url:
        member["database_url"] = database_url
    if capture_directory is not None:
        member["capture_directory"] = str(capture_directory)
    write_tables(directory, {"member": member})
    return member_card(directory)


def member_card(directory: Path) -> PartyCard:
    """The card of an existing data directory."""
    settings = load_settings(directory)
    identity: SigningKey = read_identity(directory)
    return PartyCard(
        party=settings.party,
        name=settings.name,
        role=Role.MEMBER,
        verify_key=identity.verify_key.hex(),
        url=settings.url,
    )


def trust(directory: Path, coordinator_card: PartyCard, log_verifier_key: str, origin: str) -> None:
    """Pin the coordinator's verify key and the log's C2SP verifier key, as carried by hand."""
    if coordinator_card.role != Role.COORDINATOR:
        raise SettingsError(f"the card is of a {coordinator_card.role}, not of a coordinator")
    check_party_id(coordinator_card.party)
    try:
        named, _ = parse_verifier_key(log_verifier_key)
        key = bytes.fromhex(coordinator_card.verify_key)
    except (MalformedNoteError, ValueError) as error:
        raise SettingsError(f"the coordinator's keys cannot be read: {error}") from error
    if len(key) != KEY_SIZE:
        raise SettingsError(f"the coordinator's verify key has {len(key)} bytes, not {KEY_SIZE}")
    if named != origin:
        raise SettingsError(f"the log's key is of {named!r}, not of {origin!r}")
    tables = read_tables(directory)
    tables["trust"] = {
        "coordinator": coordinator_card.party,
        "coordinator_key": coordinator_card.verify_key,
        "log_verifier_key": log_verifier_key,
        "origin": origin,
    }
    write_tables(directory, tables)


def pin_party(directory: Path, card: PartyCard) -> None:
    """Believe that another member or a regulator has the key of its card, which came from that party itself.

    A roll of the coordinator is refused while it names anybody whose card is not pinned. Pinning the same card again
    changes nothing; another key or role under a pinned id is a :class:`SettingsError`.
    """
    if card.role not in (Role.MEMBER, Role.REGULATOR):
        raise SettingsError(f"the card is of a {card.role}: only members and regulators are pinned")
    check_party_id(card.party)
    try:
        key = bytes.fromhex(card.verify_key)
    except ValueError as error:
        raise SettingsError(f"the verify key of {card.party} cannot be read: {error}") from error
    if len(key) != KEY_SIZE:
        raise SettingsError(f"the verify key of {card.party} has {len(key)} bytes, not {KEY_SIZE}")
    pin = PinnedParty(card.role, key)
    known = load_settings(directory).pins.get(card.party)
    if known is not None and known != pin:
        raise SettingsError(
            f"another card of {card.party} is pinned: if that party says it has a new key, take its line out of "
            f"[pins] in {SETTINGS_FILE} first"
        )
    tables = read_tables(directory)
    tables.setdefault("pins", {})[card.party] = pin_text(pin)
    write_tables(directory, tables)


def install_key_shares(directory: Path, shares: Sequence[KeyShare]) -> None:
    """Add key shares to the sealed file; one of the same epoch, group and generation must be the same share."""
    storage = StorageKey.load(directory, secrets.token_bytes)
    held = {
        (each.epoch, each.kind_group, each.generation): each for each in load_key_shares(directory, storage)
    }
    for share in shares:
        name = (share.epoch, share.kind_group, share.generation)
        if name in held and held[name] != share:
            raise SettingsError(
                f"another share of {share.kind_group!r} epoch {share.epoch} is installed already"
            )
        held[name] = share
    save_key_shares(directory, list(held.values()), storage)


def install_directory(directory: Path, path: Path, *, dataset: str = "terminals") -> Directory:
    """Copy a public directory (UTF-8, one id a line, none twice) and return what the roll says of it."""
    if path.stat().st_size > MAX_DIRECTORY_BYTES:
        raise SettingsError(f"{path.name} is larger than {MAX_DIRECTORY_BYTES} bytes")
    content = path.read_bytes()
    ids = read_ids(content, path.name)
    public = Directory(dataset=dataset, cells=len(ids), digest=hashlib.sha256(content).digest())
    target = directory / f"{dataset}.txt"
    new = target.with_name(target.name + ".new")
    new.write_bytes(content)
    new.replace(target)
    tables = read_tables(directory)
    tables["directory"] = {
        "dataset": dataset,
        "file": target.name,
        "cells": public.cells,
        "digest": public.digest.hex(),
    }
    write_tables(directory, tables)
    return public


def read_ids(content: bytes, name: str) -> tuple[str, ...]:
    """The ids of a public directory file, in its order; :class:`SettingsError` names the line that is wrong."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not UTF-8") from error
    if not text.endswith("\n"):
        raise SettingsError(f"{name} does not end with a line end")
    ids = text[:-1].split("\n")
    seen: dict[str, int] = {}
    for number, each in enumerate(ids, start=1):
        if not each or each != each.strip():
            raise SettingsError(f"{name}, line {number}: an id is neither empty nor has spaces around it")
        if each in seen:
            raise SettingsError(f"{name}, line {number}: the same id as line {seen[each]}")
        seen[each] = number
    return tuple(ids)
