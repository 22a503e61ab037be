"""What becomes of a batch is foreseen exactly, and foreseeing changes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.features import FeatureEngine, parse_spec
from scoring.schema import transaction_batch

SPEC = parse_spec(
    """
lateness = "10s"
correction_horizon = "40s"
[[feature]]
name = "n"
entity = "customer"
aggregation = "count"
window = "1m"
"""
)
ROW = st.tuples(st.integers(0, 8), st.integers(-30, 90), st.booleans(), st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(ROW, max_size=12), max_size=5), st.booleans())
def test_a_batch_is_foreseen(batches: list[list[tuple[int, int, bool, int]]], texts: bool) -> None:
    """Rows (id, seconds, correction, one in ten: a bad amount); the same ids within and between batches."""
    engine = FeatureEngine(SPEC)
    for rows in batches:
        batch = transaction_batch(
            event_id=[str(row[0]) for row in rows] if texts else np.array([row[0] for row in rows], np.int64),
            time_us=np.array([(1000 + row[1]) * 1_000_000 for row in rows], np.int64),
            amount=[-1.0 if row[3] == 0 else 1.0 for row in rows],
            channel="card",
            entities={"customer": [1] * len(rows)},
            correction=[row[2] for row in rows],
        )
        before = engine.state()
        foreseen = engine.foresee(batch)
        assert all(np.array_equal(array, before[name]) for name, array in engine.state().items())
        assert foreseen.tolist() == engine.update(batch).disposition.tolist()
