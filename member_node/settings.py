"""A member's settings: ``member.toml`` in its data directory, written by ``subrosa member init`` and its followers.

Secrets are not in it; they are in files of their own (see :mod:`member_node.secret_files`).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS_FILE = "member.toml"


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
    """Everything a member node is told before it starts."""

    directory: Path
    party: str
    name: str
    host: str
    port: int
    coordinator_url: str
    database_url: str = ""
    capture_directory: Path | None = None
    trust: Trust | None = None
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
    new.write_text("\n".join(lines), encoding="utf-8")
    new.replace(directory / SETTINGS_FILE)
