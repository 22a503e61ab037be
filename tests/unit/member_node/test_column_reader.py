"""Reading record batches: what the compiled pass gives is what pyarrow gives, for any slice and any nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from member_node.streams.events import EventSchemaError, event_schema, transactions_of
from scoring.schema import entity_keys

SCHEMA = event_schema(
    {"customer": True, "payee": False, "device": True},
    integer_ids=True,
    numbers=("lat",),
    correction=True,
)
INT64 = st.integers(-(2**63), 2**63 - 1)
ROW = st.fixed_dictionaries(
    {
        "event_id": INT64,
        "time_us": INT64,
        "channel": st.integers(0, 255),
        "amount": st.floats(),
        "customer": st.none() | INT64,
        "payee": st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
        "device": st.none() | INT64,
        "lat": st.none() | st.floats(),
        "correction": st.booleans(),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_a_slice_is_read_as_pyarrow_reads_it(rows: list[dict[str, Any]], start: int, length: int) -> None:
    events = pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(min(start, len(rows)), length)
    rows = events.to_pylist()
    batch = transactions_of(events)
    assert batch.event_id.tolist() == [row["event_id"] for row in rows]
    assert batch.time_us.tolist() == [row["time_us"] for row in rows]
    assert batch.channel.tolist() == [row["channel"] for row in rows]
    np.testing.assert_array_equal(batch.amount, np.array([row["amount"] for row in rows], np.float64))
    np.testing.assert_array_equal(batch.numbers["lat"], np.array([row["lat"] for row in rows], np.float64))
    assert list(batch.entities) == ["customer", "payee", "device"]
    for name, keys in batch.entities.items():
        values = np.array([row[name] for row in rows] + [None], dtype=object)[:-1]
        np.testing.assert_array_equal(keys, entity_keys(values))
    assert batch.correction is not None
    assert batch.correction.tolist() == [row["correction"] for row in rows]


@pytest.mark.parametrize("column", ["event_id", "time_us", "channel", "amount", "correction"])
def test_a_null_where_none_may_be_is_refused_only_in_the_rows_that_are_read(column: str) -> None:
    rows = [
        {"event_id": row, "time_us": row, "channel": 1, "amount": 1.0, "correction": False}
        for row in range(9)
    ]
    rows[4][column] = None  # type: ignore[assignment]
    loose = pa.schema([field.with_nullable(True) for field in SCHEMA])
    events = pa.RecordBatch.from_pylist(rows, schema=loose)
    with pytest.raises(EventSchemaError, match=f"'{column}' holds nulls"):
        transactions_of(events)
    assert len(transactions_of(events.slice(5))) == 4
