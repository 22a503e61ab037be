"""Secrets of a member on disk: small files only their owner may read, and what is sealed under the storage key."""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from crypto.errors import InvalidEncodingError
from crypto.sealing import seal, unseal
from crypto.signing import SigningKey
from crypto.threshold import KeyShare
from member_node.client.ports import Random

IDENTITY_FILE = "identity.seed"
STORAGE_KEY_FILE = "storage.key"
TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file
KEY_SHARES_FILE = "key-shares.sealed"
KEY_SIZE = 32
PADDING = 512


class SecretFileError(Exception):
    """A secret file is missing, readable by others, or not what it should be. The text never shows its content."""


def check_private(directory: Path) -> None:
    """Raise :class:`SecretFileError` if others than its owner may enter a data directory: raw values are in it."""
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError as error:
        raise SecretFileError(f"{directory} is missing: run `subrosa member init` first") from error
    if mode & 0o077:
        raise SecretFileError(f"{directory} is open to other users: chmod 700 it")


def write_secret(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Create ``path`` with mode 0600; an existing file is an error unless ``replace`` (then swapped at once)."""
    target = path.with_name(path.name + ".new") if replace else path
    if replace:
        target.unlink(missing_ok=True)
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise SecretFileError(f"{path.name} exists already: a secret is never overwritten") from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        target.replace(path)


def read_secret(path: Path, size: int | None = None) -> bytes:
    """The content of a secret file, of exactly ``size`` bytes if given."""
    try:
        if path.stat().st_mode & 0o077:
            raise SecretFileError(f"{path.name} is open to other users: chmod 600 it")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SecretFileError(f"{path.name} is missing: run `subrosa member init` first") from error
    if size is not None and len(content) != size:
        raise SecretFileError(f"{path.name} has {len(content)} bytes, not {size}")
    return content


def read_identity(directory: Path) -> SigningKey:
    """The member's identity key."""
    return SigningKey(read_secret(directory / IDENTITY_FILE, KEY_SIZE))


class StorageKey:
    """The bank's key for data at rest; subkeys keep one use from passing as another. Its text never shows it."""

    __slots__ = ("_key", "_random")

    def __init__(self, key: bytes, random: Random) -> None:
        if len(key) != KEY_SIZE:
            raise InvalidEncodingError(f"a storage key has {KEY_SIZE} bytes, not {len(key)}")
        self._key = key
        self._random = random

    @classmethod
    def load(cls, directory: Path, random: Random) -> StorageKey:
        """Read the key of a data directory."""
        return cls(read_secret(directory / STORAGE_KEY_FILE, KEY_SIZE), random)

    def __repr__(self) -> str:
        return "StorageKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a StorageKey does not pickle: load it where it is used")

    def subkey(self, use: str) -> bytes:
        """32 bytes for one use (HMAC-SHA256 of its name)."""
        return hmac.digest(self._key, b"subrosa/v1/storage\0" + use.encode(), "sha256")

    def seal(self, use: str, name: bytes, content: bytes, *, multiple: int = PADDING) -> bytes:
        """Seal ``content``, bound to ``use`` and ``name``, padded to a multiple of ``multiple`` bytes."""
        padded = max(1, -(-len(content) // multiple)) * multiple
        return seal(self.subkey(use), content, name, random=self._random, padded_size=padded)

    def unseal(self, use: str, name: bytes, sealed: bytes) -> bytes:
        """The content, or :class:`~crypto.errors.UnsealingError`."""
        return unseal(self.subkey(use), sealed, name)


def save_key_shares(directory: Path, shares: Sequence[KeyShare], storage: StorageKey) -> None:
    """Write all key shares, sealed; replaces the file at once."""
    content = msgspec.msgpack.encode([share.encode() for share in shares])
    write_secret(directory / KEY_SHARES_FILE, storage.seal("key-shares", b"", content), replace=True)


def load_key_shares(directory: Path, storage: StorageKey) -> list[KeyShare]:
    """The member's key shares; none if it is no key holder."""
    path = directory / KEY_SHARES_FILE
    if not path.exists():
        return []
    encoded = msgspec.msgpack.decode(storage.unseal("key-shares", b"", read_secret(path)), type=list[bytes])
    return [KeyShare.decode(each) for each in encoded]
