"""Two sandboxes as real processes, each run once for all end-to-end tests.

The first plays a population from a file, with every body captured, bad rows planted in the file and a member killed
while others wait for its part of their sums. The second plays the head of the handbook's stream.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sandbox.population import save, simulate

ROOT = Path(__file__).parents[2]
MAPPINGS = ROOT / "sandbox" / "mappings"
HANDBOOK = ROOT.parent / "shared" / "data" / "handbook" / "transactions.parquet"
MEMBERS = 4
DAYS = 26
KILLED = "bank-b"
KILLED_ON = 14
# Chosen among a few seeds because the consortium stops 1.7 times as many frauds as the banks alone, so that small
# changes of rules or features leave the order as it is (other seeds tried: 1.4 and 1.5).
SEED = 3
# A week trains, a week's labels are unknown, five days test: about the shortest run in which models can be measured.
WEEKS = 'train_first = "2026-01-12"\ntrain_days = 7\ndelay_days = 7\ntest_days = 5\n'
BAD_ROWS = (("bank", 12), ("amount", 40), ("time", 77))  # column and row, counted from 1
HANDBOOK_MEMBERS = 3
HANDBOOK_DAYS = 10


@dataclass(frozen=True)
class SandboxRun:
    """A finished run: its folder, its JSON report, what it printed, and what was planned.

    ``killed``: who was killed on the way; ``bad_rows``: column and row (from 1) of the cells spoilt in the ``source``.
    """

    out: Path
    report: dict[str, Any]
    printed: str
    source: Path
    members: int
    days: int
    killed: str = ""
    bad_rows: tuple[tuple[str, int], ...] = ()


def run_sandbox(out: Path, arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run the command as an operator would, and give report and output; fails if it does not end green."""
    command = [str(Path(sys.executable).with_name("subrosa")), "sandbox", *arguments, "--out", str(out)]
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
    return json.loads((out / "report.json").read_text()), printed


def write_population(folder: Path) -> tuple[Path, Path]:
    """A file of all banks with a few bad rows, and the mapping that reads it; their paths."""
    population = simulate(SEED, MEMBERS, days=DAYS, customers_per_bank=150, terminals=400)
    path, _ = save(population, folder)
    row = pl.int_range(1, pl.len() + 1)
    bad = dict(BAD_ROWS)
    events = pl.read_parquet(path).with_columns(
        bank=pl.when(row == bad["bank"]).then(None).otherwise(pl.col("bank")),
        amount=pl.when(row == bad["amount"]).then(-1.0).otherwise(pl.col("amount")),
        time=pl.when(row == bad["time"])
        .then(pl.lit("soon"))
        .otherwise(pl.col("time").dt.to_string("iso:strict")),
    )
    events.write_parquet(path)
    mapping = folder / "weeks.toml"
    default = (MAPPINGS / "default.toml").read_text()
    mapping.write_text(re.sub(r"(?s)\[evaluation\].*", f"[evaluation]\n{WEEKS}", default))
    return path, mapping


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="subrosa-e2e-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def sandbox_run(folder: Path) -> SandboxRun:
    out = folder / "out"
    events, mapping = write_population(folder / "source")
    report, printed = run_sandbox(
        out,
        [
            *("--members", str(MEMBERS), "--events", str(events), "--mapping", str(mapping)),
            *("--capture", "--kill", f"{KILLED}@{KILLED_ON}:share"),
        ],
    )
    return SandboxRun(out, report, printed, events, MEMBERS, DAYS, KILLED, BAD_ROWS)


@pytest.fixture(scope="session")
def handbook_run(folder: Path) -> SandboxRun:
    """The main job in small: the handbook's own stream, three members, ten days."""
    if not HANDBOOK.exists():
        pytest.skip("the handbook's stream is not at ../shared/data/handbook/transactions.parquet")
    head = folder / "handbook" / "head.parquet"
    head.parent.mkdir()
    events = pl.scan_parquet(HANDBOOK)
    first = events.select(pl.col("TX_DATETIME").min()).collect().item()
    events.filter(pl.col("TX_DATETIME") < first + pl.duration(days=HANDBOOK_DAYS)).sink_parquet(head)
    out = folder / "handbook" / "out"
    report, printed = run_sandbox(
        out,
        [
            *("--members", str(HANDBOOK_MEMBERS), "--events", str(head)),
            *("--mapping", str(MAPPINGS / "handbook.toml")),
        ],
    )
    return SandboxRun(out, report, printed, head, HANDBOOK_MEMBERS, HANDBOOK_DAYS)
