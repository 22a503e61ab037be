"""A small stream of three banks with histories as their nodes would write them, made without any process."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sandbox.evaluation import ScoredStream, load_stream, truth_of
from sandbox.evaluation.daily import BankDayCounts
from sandbox.evaluation.windows import trailing
from scoring.features.spec import FeatureSpec, parse_spec

DAY_US = 86_400_000_000
FIRST_DAY = 20_000  # days since 1970-01-01
BANKS = ("bank-a", "bank-b", "bank-c")
TERMINALS = [f"T{n:03d}" for n in range(12)]
SPEC = """
[[feature]]
name = "EVENT"
field = "event_id"
[[feature]]
name = "CUSTOMER_COUNT"
entity = "customer"
aggregation = "count"
window = "7d"
[[feature]]
name = "TERMINAL_COUNT"
entity = "terminal"
aggregation = "count"
window = "7d"
delay = "2d"
[[feature]]
name = "TERMINAL_RISK"
entity = "terminal"
aggregation = "rate"
window = "7d"
delay = "2d"
"""
DELAY_DAYS = 2


@dataclass(frozen=True)
class Made:
    """Events as a file would hold them, histories on disk, and both joined."""

    events: pl.DataFrame
    truth: pl.DataFrame
    histories: dict[str, Path]
    stream: ScoredStream
    spec: FeatureSpec


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return make_stream(tmp_path_factory.mktemp("histories"))


def make_stream(folder: Path, *, rows: int = 3_000, days: int = 24) -> Made:
    """Frauds sit at two compromised terminals; verdicts and labels follow from counted victims."""
    random = np.random.default_rng(11)
    time_us = np.sort(random.integers(0, days * DAY_US, rows)) + FIRST_DAY * DAY_US
    customer = random.integers(0, 150, rows)
    bank = customer % len(BANKS)
    terminal = random.integers(0, len(TERMINALS), rows)
    day = time_us // DAY_US
    bad = (terminal < 2) & (day >= FIRST_DAY + 2)
    fraud = (bad & (random.random(rows) < 0.7)).astype(np.int8)
    events = pl.DataFrame(
        {
            "ID": np.arange(rows),
            "AT": time_us,
            "OWNER": customer,
            "PLACE": np.array(TERMINALS)[terminal],
            "AMOUNT": np.round(random.uniform(1, 90, rows), 2),
            "FRAUD": fraud,
        }
    )
    counts = BankDayCounts(bank, terminal, day, fraud, len(BANKS), len(TERMINALS))
    by_bank = counts.of_banks(5, DELAY_DAYS)
    own = by_bank[bank, np.arange(rows)]
    whole = by_bank.sum(axis=0)
    labels = [
        json.dumps({p: int(v) for p, v in zip(BANKS, column, strict=True) if v}) if column.any() else None
        for column in by_bank.T
    ]
    shared_key = terminal * len(BANKS) + bank
    seen, frauds = trailing(shared_key, time_us, fraud.astype(float), 7 * DAY_US, DELAY_DAYS * DAY_US)
    history = pl.DataFrame(
        {
            "event_id": np.arange(rows),
            "time_us": time_us,
            "channel": ["card"] * rows,
            "amount": events["AMOUNT"],
            "customer": customer,
            "terminal": events["PLACE"],
            "verdict": _verdicts(whole),
            "verdict_alone": _verdicts(own),
            "terminal_victims_own": own,
            "terminal_victims_all": whole,
            "terminal_labels": pl.Series(labels, dtype=pl.String),
            "EVENT": np.arange(rows).astype(float),
            "CUSTOMER_COUNT": trailing(customer, time_us, np.zeros(rows), 7 * DAY_US)[0].astype(float),
            "TERMINAL_COUNT": seen.astype(float),
            "TERMINAL_RISK": np.where(seen > 0, frauds / np.maximum(seen, 1), 0.0),
            "consortium_terminals_fraud_5d_all": whole.astype(float),
            "consortium_terminals_fraud_5d_others": (whole - own).astype(float),
        }
    )
    histories = {}
    for number, party in enumerate(BANKS):
        histories[party] = folder / party
        histories[party].mkdir()
        mine = history.filter(pl.Series(bank == number))
        mine[:400].write_parquet(histories[party] / "0001.parquet")
        mine[400:].write_parquet(histories[party] / "0002.parquet")
    truth = truth_of(
        events,
        columns={"event_id": "ID", "customer": "OWNER", "terminal": "PLACE"},
        bank=bank,
        label="FRAUD",
        directory=TERMINALS,
        directory_entity="terminal",
    )
    stream = load_stream(histories, truth, cells=len(TERMINALS))
    return Made(events, truth, histories, stream, parse_spec(SPEC))


def _verdicts(victims) -> list[str]:
    return np.array(["allow", "challenge", "block"])[(victims >= 2).astype(int) + (victims >= 4)].tolist()
