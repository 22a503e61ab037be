"""The coordinator's settings: one TOML file in its data directory, and secrets in files only it can read.

Layout of a data directory: ``coordinator.toml``, ``identity.seed`` (signs answers, rolls and policies),
``log.seed`` (signs checkpoints and nothing else), ``coordinator.sqlite3``.
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from crypto.signing import SEED_SIZE, SigningKey
from governance.messages.codec import MAX_MESSAGE_BYTES

SETTINGS_FILE = "coordinator.toml"
IDENTITY_SEED = "identity.seed"
LOG_SEED = "log.seed"
LABEL_CLOCKS = ("wall", "business")


class SettingsError(Exception):
    """The data directory cannot be used as it is; the message names the file and the fix."""


@dataclass(frozen=True)
class Settings:
    """How this coordinator runs.

    ``origin`` names the log (C2SP). ``label_clock``: ``"wall"`` refuses labels that have expired by the
    coordinator's clock or were issued in its future; ``"business"`` takes the newest label of the contributor
    for its present, so that past months can be replayed. ``database_url`` is empty for the embedded SQLite.
    ``max_arriving_bytes`` bounds the bodies that lie in memory at a time, ``threads`` the requests that are served,
    ``waits_per_party`` how many of them one party may hold waiting.
    """

    directory: Path
    party: str
    name: str
    host: str
    port: int
    origin: str
    database_url: str = ""
    label_clock: str = "business"
    max_body_bytes: int = MAX_MESSAGE_BYTES
    max_arriving_bytes: int = 256 * 2**20
    max_wait_seconds: int = 20
    checkpoint_refresh_seconds: int = 30
    threads: int = 64
    waits_per_party: int = 4
    identity: SigningKey = field(kw_only=True)
    log_key: SigningKey = field(kw_only=True)


_NOT_IN_FILE = {"directory", "identity", "log_key"}
_BOUNDS = {
    "port": (0, 65535),
    "max_body_bytes": (1024, 256 * 2**20),
    "max_arriving_bytes": (2**20, 2**36),
    "max_wait_seconds": (0, 60),
    "checkpoint_refresh_seconds": (1, 3600),
    "threads": (4, 1024),
    "waits_per_party": (1, 64),
}


def write_settings(directory: Path, values: dict[str, str | int], seeds: dict[str, bytes]) -> None:
    """Make a data directory with a settings file and secrets; an existing one is never overwritten."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(directory)
    path = directory / SETTINGS_FILE
    if path.exists():
        raise SettingsError(f"{path} exists already: choose an empty directory")
    for name, seed in seeds.items():
        _write_new(directory / name, seed)
    # A JSON string is a TOML basic string, and so are JSON's integers.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    _write_new(path, "".join(lines).encode())


def check_private(directory: Path) -> None:
    """Raise :class:`SettingsError` if others than its owner may enter a data directory."""
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        raise SettingsError(f"{directory} is open to other users: chmod 700 it")


def load_settings(directory: Path) -> Settings:
    """Read a data directory, or raise :class:`SettingsError` naming the file and what to do."""
    path = directory / SETTINGS_FILE
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SettingsError(f"{path} is missing: run `subrosa coordinator init` first") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    known = {item.name: item for item in fields(Settings) if item.name not in _NOT_IN_FILE}
    for name, value in table.items():
        if name not in known:
            raise SettingsError(f"{path}: unknown setting {name!r}; known are {', '.join(sorted(known))}")
        expected = int if known[name].type == "int" else str
        if type(value) is not expected:
            raise SettingsError(f"{path}: {name} must be of type {expected.__name__}")
    for name, (low, high) in _BOUNDS.items():
        if not low <= table.get(name, low) <= high:
            raise SettingsError(f"{path}: {name} must lie within {low}..{high}")
    for name in ("party", "name", "host", "port", "origin"):
        if name not in table:
            raise SettingsError(f"{path}: {name} is missing")
    if table.get("label_clock", "business") not in LABEL_CLOCKS:
        raise SettingsError(f"{path}: label_clock must be one of {', '.join(LABEL_CLOCKS)}")
    return Settings(
        directory=directory,
        identity=_load_key(directory / IDENTITY_SEED),
        log_key=_load_key(directory / LOG_SEED),
        **table,
    )


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _load_key(path: Path) -> SigningKey:
    try:
        mode = path.stat().st_mode
        seed = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} is missing: restore it from the backup of this data directory"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(
            f"{path} is readable by others: chmod 600 it, and replace the key if others read it"
        )
    if len(seed) != SEED_SIZE:
        raise SettingsError(f"{path} has {len(seed)} bytes, not {SEED_SIZE}: restore it from the backup")
    return SigningKey(seed)
