"""A member's settings: ``member.toml`` in its data directory, written by ``subrosa member init`` and its followers.

Secrets are not in it; they are in files of their own (see :mod:`member_node.secret_files`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from governance.members import PinnedParty
from member_node.client.ports import DEFAULT_PATIENCE, Patience
from member_node.scoring_settings import ScoringSettings, read_scoring

SETTINGS_FILE = "member.toml"
MAX_SHARDS = 64


class SettingsError(Exception):
    """The settings are missing or wrong; the text names the file, the key and the fix."""


@dataclass(frozen=True)
class Trust:
    """What was agreed out of band with the coordinator's operator."""

    coordinator: str
    coordinator_key: bytes
    log_verifier_key: str
    origin: str


@dataclass(frozen=True)
class PublicDirectory:
    """The public directory this bank holds: one id a line in ``file``; ``digest`` is SHA-256 of the file."""

    dataset: str
    file: Path
    cells: int
    digest: bytes


@dataclass(frozen=True)
class MemberSettings:
    """Everything a member node is told before it starts.

    ``shards``: over how many processes of the bank's own Ray the features are spread (1: all in the node's own).
    ``patience``: how long key holders may take; ``scoring``: see :mod:`member_node.scoring_settings`.
    """

    directory: Path
    party: str
    name: str
    host: str
    port: int
    coordinator_url: str
    database_url: str = ""
    capture_directory: Path | None = None
    shards: int = 1
    patience: Patience = DEFAULT_PATIENCE
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    trust: Trust | None = None
    pins: Mapping[str, PinnedParty] = field(default_factory=dict)
    public_directory: PublicDirectory | None = None

    @property
    def url(self) -> str:
        """Where the node listens."""
        return f"http://{self.host}:{self.port}"

    def require_trust(self) -> Trust:
        """The trust anchors, or :class:`SettingsError`."""
        if self.trust is None:
            raise SettingsError(f"{SETTINGS_FILE} names no coordinator: run `subrosa member trust` first")
        return self.trust


def load_settings(directory: Path) -> MemberSettings:
    """Read ``member.toml`` of a data directory, or raise :class:`SettingsError`."""
    values = read_tables(directory)
    try:
        member = values["member"]
        trust = values.get("trust")
        public = values.get("directory")
        pins = {str(party): _read_pin(str(pin)) for party, pin in values.get("pins", {}).items()}
        capture = str(member.get("capture_directory", ""))
        return MemberSettings(
            directory=directory,
            party=str(member["party"]),
            name=str(member["name"]),
            host=str(member["host"]),
            port=int(member["port"]),
            coordinator_url=str(member["coordinator_url"]),
            database_url=str(member.get("database_url", "")),
            capture_directory=Path(capture) if capture else None,
            pins=pins,
            shards=_bounded(member, "shards", 1, 1, MAX_SHARDS),
            patience=Patience(
                seconds=_bounded(member, "evaluation_seconds", DEFAULT_PATIENCE.seconds, 0.1, 300.0),
                seconds_per_element=_bounded(
                    member,
                    "evaluation_seconds_per_element",
                    DEFAULT_PATIENCE.seconds_per_element,
                    0.0,
                    1.0,
                ),
                late_share=_bounded(member, "evaluation_late_share", DEFAULT_PATIENCE.late_share, 0.01, 1.0),
            ),
            scoring=read_scoring(values.get("scoring", {})),
            trust=None
            if trust is None
            else Trust(
                coordinator=str(trust["coordinator"]),
                coordinator_key=bytes.fromhex(trust["coordinator_key"]),
                log_verifier_key=str(trust["log_verifier_key"]),
                origin=str(trust["origin"]),
            ),
            public_directory=None
            if public is None
            else PublicDirectory(
                dataset=str(public["dataset"]),
                file=directory / str(public["file"]),
                cells=int(public["cells"]),
                digest=bytes.fromhex(public["digest"]),
            ),
        )
    except KeyError as error:
        raise SettingsError(f"{SETTINGS_FILE}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{SETTINGS_FILE}: {error}") from error


N = TypeVar("N", int, float)


def _bounded(table: Mapping[str, Any], name: str, default: N, low: N, high: N) -> N:
    value = type(default)(table.get(name, default))
    if not low <= value <= high:
        raise SettingsError(f"{SETTINGS_FILE}: {name} must lie within {low}..{high}, it is {value}")
    return value


def pin_text(pin: PinnedParty) -> str:
    """How a pinned card is spelled in ``member.toml``: role, a space, the verify key in hexadecimal digits."""
    return f"{pin.role} {pin.verify_key.hex()}"


def _read_pin(text: str) -> PinnedParty:
    role, _, key = text.partition(" ")
    return PinnedParty(role, bytes.fromhex(key))


def read_tables(directory: Path) -> dict[str, dict[str, Any]]:
    """The tables of ``member.toml`` as they are."""
    path = directory / SETTINGS_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path.name} is missing: run `subrosa member init` first") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not TOML: {error}") from error


def write_tables(directory: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Replace ``member.toml`` at once; values are texts and integers (JSON spells both as TOML does)."""
    lines: list[str] = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        lines.append("")
    new = directory / f"{SETTINGS_FILE}.new"
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    new.replace(directory / SETTINGS_FILE)
