"""Several threads at one batch: the same to the bit, and what fails in one of them is raised."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from scoring.features import FeatureEngine, parse_spec
from scoring.features.windows import EntityWindows
from scoring.schema import transaction_batch

T = 1_700_000_000_000_000
TWO_KINDS = """
[[feature]]
name = "n"
entity = "customer"
aggregation = "count"
window = "1d"
[[feature]]
name = "m"
entity = "card"
aggregation = "count"
window = "1d"
"""


def test_threads_that_share_a_batch_change_nothing() -> None:
    spec = parse_spec((Path(__file__).parents[3] / "sandbox/features/reference.toml").read_text())
    random = np.random.default_rng(3)
    rows = 3 * 700
    entities = {name for each in spec.entities for name in each.split("+")}
    one, shared = FeatureEngine(spec), FeatureEngine(spec, threads=3)
    for first in range(0, rows, 700):
        batch = transaction_batch(
            event_id=np.arange(first, first + 700),
            time_us=T + np.arange(first, first + 700) * 60_000_000,
            amount=random.gamma(1.5, 60.0, 700),
            channel=random.integers(2, 6, 700),
            entities={name: random.integers(0, 40, 700) for name in entities},
        )
        alone = one.update(batch)
        np.testing.assert_array_equal(shared.update(batch).values, alone.values)
    for name, array in one.state().items():
        np.testing.assert_array_equal(shared.state()[name], array)
    assert alone.applied.all()


def test_what_fails_in_a_sharing_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FeatureEngine(parse_spec(TWO_KINDS), threads=2)
    begun = threading.Barrier(2, timeout=10)

    def advance(table: EntityWindows, frame: object) -> None:
        begun.wait()
        if table.entity == "card":
            raise MemoryError("no room")

    monkeypatch.setattr(EntityWindows, "advance", advance)
    ones = np.ones(600, np.int64)
    with pytest.raises(MemoryError, match="no room"):
        engine.update(
            transaction_batch(
                event_id=np.arange(600),
                time_us=T + np.arange(600),
                amount=ones,
                channel="card",
                entities={"customer": ones, "card": ones},
            )
        )
