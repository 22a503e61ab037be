"""Events as Arrow record batches: the one form in which a bank reads, journals and replays its transactions.

Columns: ``event_id`` (int64 or string), ``time_us`` (int64, UTC microseconds), ``channel`` (uint8, codes of
``scoring.schema.Channel``), ``amount`` (float64), then every mapped entity by its schema name (int64 or string, null
where not given). Raw values stay in Arrow; the engine sees only keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scoring.schema import ENTITIES, TransactionBatch, entity_keys

# pyarrow ships no types; the aliases keep signatures readable.
EventBatch: TypeAlias = pa.RecordBatch
FIXED = ("event_id", "time_us", "channel", "amount")


class EventSchemaError(ValueError):
    """A record batch does not have the columns and types of events."""


def event_schema(entity_types: Mapping[str, bool], *, integer_ids: bool) -> pa.Schema:
    """The Arrow schema; ``entity_types`` says for each mapped entity whether it holds integers."""
    fields = [
        pa.field("event_id", pa.int64() if integer_ids else pa.string(), nullable=False),
        pa.field("time_us", pa.int64(), nullable=False),
        pa.field("channel", pa.uint8(), nullable=False),
        pa.field("amount", pa.float64(), nullable=False),
    ]
    for entity in ENTITIES:
        if entity in entity_types:
            fields.append(pa.field(entity, pa.int64() if entity_types[entity] else pa.string()))
    return pa.schema(fields)


def entities_of(events: EventBatch) -> tuple[str, ...]:
    """The entities of a batch, in column order."""
    return tuple(name for name in events.schema.names if name not in FIXED)


def transactions_of(events: EventBatch) -> TransactionBatch:
    """The engine's view of a record batch: numbers and entity keys, without raw values."""
    check_events(events)
    return TransactionBatch(
        event_id=ids_of(events),
        time_us=_numbers(events, "time_us", np.int64),
        channel=_numbers(events, "channel", np.uint8),
        amount=_numbers(events, "amount", np.float64),
        entities={name: _keys(events.column(name), name) for name in entities_of(events)},
    )


def check_events(events: EventBatch) -> None:
    """Raise :class:`EventSchemaError` unless columns and types are those of this module."""
    names = events.schema.names
    if tuple(names[:4]) != FIXED or any(name not in ENTITIES for name in names[4:]):
        raise EventSchemaError(f"columns {names} are not those of events")
    types = {field.name: field.type for field in events.schema}
    wanted = {"time_us": pa.int64(), "channel": pa.uint8(), "amount": pa.float64()}
    for name, kind in types.items():
        if name in wanted:
            if kind != wanted[name]:
                raise EventSchemaError(f"column {name!r} holds {kind}, not {wanted[name]}")
        elif kind not in (pa.int64(), pa.string()):
            raise EventSchemaError(f"column {name!r} holds {kind}, not int64 or string")


def ids_of(events: EventBatch) -> NDArray[np.int64] | NDArray[np.object_]:
    """Event ids as int64 [n] or object [n] of str."""
    column = events.column("event_id")
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _numbers(events: EventBatch, name: str, dtype: type) -> Any:
    return np.ascontiguousarray(events.column(name).to_numpy(zero_copy_only=False), dtype=dtype)


def _keys(column: pa.Array, name: str) -> NDArray[np.uint64]:
    if column.type == pa.int64():
        keys = entity_keys(pc.fill_null(column, 0).to_numpy(zero_copy_only=False), column=name)
        if column.null_count:
            keys[column.is_null().to_numpy(zero_copy_only=False)] = 0
        return keys
    codes, vocabulary = encoded(column)
    known = entity_keys(np.array([*vocabulary, None], dtype=object), column=name)
    return known[codes]


def encoded(column: pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """A column as (codes int32 [n], -1 where null; distinct values as text in order of appearance)."""
    dictionary = pc.dictionary_encode(column)
    codes = np.asarray(pc.fill_null(dictionary.indices, -1).to_numpy(zero_copy_only=False), dtype=np.int32)
    return codes, [str(value) for value in dictionary.dictionary.to_pylist()]
