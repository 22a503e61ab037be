"""One small sandbox, run once for all end-to-end tests, with a member killed on the way and every body captured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MEMBERS = 4
DAYS = 24
KILLED = "bank-b"


@dataclass(frozen=True)
class SandboxRun:
    """A finished run: its folder, its JSON report, and what it printed."""

    out: Path
    report: dict[str, Any]
    printed: str


@pytest.fixture(scope="session")
def sandbox_run() -> Iterator[SandboxRun]:
    out = Path(tempfile.mkdtemp(prefix="subrosa-e2e-"))
    command = [
        str(Path(sys.executable).with_name("subrosa")),
        "sandbox",
        *("--members", str(MEMBERS), "--days", str(DAYS), "--customers", "150", "--seed", "7"),
        *("--capture", "--kill", f"{KILLED}@12", "--out", str(out)),
    ]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
            env={**os.environ, "COLUMNS": "140"},
        )
        printed = run.stdout + run.stderr
        assert run.returncode == 0, printed[-6000:]
        yield SandboxRun(out=out, report=json.loads((out / "report.json").read_text()), printed=printed)
    finally:
        shutil.rmtree(out, ignore_errors=True)
