"""``subrosa doctor``: what this machine can run, each part tried for real, and how to mend what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Finding:
    """One part: whether it works, what was seen, and what to do if it does not."""

    part: str
    works: bool
    seen: str
    mend: str


def _python() -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"


def _group() -> str:
    from crypto.group import multiply, multiply_base, random_scalar

    began = time.perf_counter()
    point = multiply_base(random_scalar(secrets.token_bytes))
    for _ in range(200):
        point = multiply(random_scalar(secrets.token_bytes), point)
    micros = (time.perf_counter() - began) / 200 * 1e6
    return f"rbcl {importlib.metadata.version('rbcl')}: {micros:.0f} us a multiplication"


def _homomorphic() -> str:
    import numpy as np

    from crypto.he.contexts import RequesterKey, load_public_context
    from crypto.he.contributions import encrypt_vector

    public = RequesterKey.generate().public_context()
    began = time.perf_counter()
    encrypt_vector(load_public_context(public), np.arange(4096, dtype=np.int64))
    millis = (time.perf_counter() - began) * 1e3
    return f"TenSEAL {importlib.metadata.version('tenseal')}: {millis:.1f} ms per 4,096 integers"


def _policy() -> str:
    from governance.policy.default import default_bundle

    tiers = ", ".join(tier.name for tier in default_bundle().tiers)
    return f"cedarpy {importlib.metadata.version('cedarpy')}; tiers of the default bundle: {tiers}"


def _commit() -> str:
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(50):
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        return f"{(time.perf_counter() - began) / 50 * 1e3:.2f} ms a commit in {Path(file.name).parent}"


def _loopback() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        return f"port {server.getsockname()[1]} on 127.0.0.1 can be bound"


def _ray() -> str:
    return f"Ray {importlib.metadata.version('ray')}, started by each member node when first needed"


# A part, what tries it, and how to mend it.
Check: TypeAlias = tuple[str, Callable[[], str], str]
CHECKS: tuple[Check, ...] = (
    ("python", _python, "install Python 3.11 or newer and run `make clean` before the next command"),
    ("ristretto255", _group, "reinstall rbcl as pinned in constraints.txt"),
    ("homomorphic sums", _homomorphic, "reinstall tenseal as pinned in constraints.txt"),
    ("policy engine", _policy, "reinstall cedarpy as pinned in constraints.txt"),
    ("ray", _ray, "reinstall ray as pinned in constraints.txt"),
    ("disk", _commit, "set TMPDIR to a folder that can be written"),
    ("loopback", _loopback, "allow listening on 127.0.0.1"),
)


def examine_directory(directory: Path) -> list[Finding]:
    """Read what a bank's data directory holds of its stream, changing nothing; it may be in use."""
    from member_node import stored_stream

    mend = "see docs/scoring/operating.md, what to do when"
    return examine(
        (
            ("journal", lambda: stored_stream.check_journal(directory), mend),
            ("snapshots", lambda: stored_stream.check_snapshots(directory), mend),
            ("history", lambda: stored_stream.check_history(directory), mend),
        )
    )


def examine(checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Try every part; a failure becomes a finding with its cause."""
    findings = []
    for part, check, mend in checks:
        try:
            findings.append(Finding(part, True, check(), ""))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with this machine is what we report
            findings.append(Finding(part, False, f"{type(error).__name__}: {error}", mend))
    return findings


@app.command()
def doctor(
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Read a member's data directory instead: journal, snapshots, history. Changes nothing."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Try each part on this machine, or read what a data directory holds; the exit code is 1 if one does not work."""
    if directory is not None and not directory.is_dir():
        raise typer.BadParameter(f"{directory} is no data directory")
    findings = examine() if directory is None else examine_directory(directory)
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(each) for each in findings]}))
    else:
        table = Table("part", "works", "seen", "what to do", title="subrosa doctor")
        for each in findings:
            table.add_row(each.part, "yes" if each.works else "[red]no[/red]", each.seen, each.mend)
        Console().print(table)
    if not all(each.works for each in findings):
        raise typer.Exit(1)
