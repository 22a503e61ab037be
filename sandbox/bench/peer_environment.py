"""Interpreters for peers whose packages need not agree with ours: a virtual environment for each, made on demand."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class PeerError(Exception):
    """A peer cannot be measured here; the text says why and what to do."""


@dataclass(frozen=True)
class Peer:
    """A peer: its module, the package pip knows it by, the rows it is given, whether it needs Java."""

    name: str
    package: str
    rows: int
    java: bool = False


@dataclass(frozen=True)
class Interpreter:
    """A Python that can import a peer, and the environment variables to run it with."""

    python: str
    environment: Mapping[str, str] = field(repr=False)


def interpreters(peers: Sequence[Peer], directory: Path | None) -> list[tuple[Peer, Interpreter | str]]:
    """For each peer an interpreter, or why there is none.

    Without a ``directory`` it is this one, where the peer is installed beside us; with one it is that of
    ``directory``/``peer.name``, made and filled by pip (which shows its progress on stderr) where it is absent.
    """
    found: list[tuple[Peer, Interpreter | str]] = []
    for peer in peers:
        try:
            python = _installed(peer) if directory is None else _made(peer, directory / peer.name)
            found.append((peer, Interpreter(python, _environment(peer))))
        except PeerError as error:
            found.append((peer, str(error)))
    return found


def _installed(peer: Peer) -> str:
    if importlib.util.find_spec(peer.name) is None:
        raise PeerError(
            f"{peer.name} is not installed: pip install {peer.package}, or let --peers-env make an environment for it"
        )
    return sys.executable


def _made(peer: Peer, directory: Path) -> str:
    _environment(peer)  # before a large download: whether it could run at all
    python = directory / ("Scripts" if os.name == "nt" else "bin") / "python"
    try:
        if not python.exists():
            venv.create(directory, with_pip=True)
        if not _imports(python, peer):
            # pip's progress goes where ours goes: stdout is for the result
            command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", peer.package]
            done = subprocess.run(command, stdout=sys.stderr, check=False)
            if done.returncode or not _imports(python, peer):
                raise PeerError(
                    f"pip could not install {peer.package} in {directory}: its message is above; the registry may lack"
                    f" it for Python {sys.version_info.major}.{sys.version_info.minor}"
                )
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerError(f"no environment for {peer.name} in {directory}: {error}") from error
    return str(python)


def _imports(python: Path, peer: Peer) -> bool:
    probe = [str(python), "-c", f"import {peer.name}"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _environment(peer: Peer) -> dict[str, str]:
    """Ours without what points at our packages; JAVA_HOME found from ``java`` where it is not set."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if not peer.java or variables.get("JAVA_HOME"):
        return variables
    java = shutil.which("java")
    if java is None:
        raise PeerError(
            f"{peer.name} needs Java 11 or 17: there is no java on the path and JAVA_HOME is not set"
        )
    return variables | {"JAVA_HOME": str(Path(java).resolve().parent.parent)}
