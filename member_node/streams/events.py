"""Events as Arrow record batches: the one form in which a bank reads, journals and replays its transactions.

Columns: ``event_id`` (int64 or string), ``time_us`` (int64, UTC microseconds), ``channel`` (uint8, codes of
``scoring.schema.Channel``), ``amount`` (float64), then in any order

- entities by their schema names (int64 or string, null where not given),
- further numeric attributes under other identifiers (float64, null where not given),
- ``correction`` (bool): the row replaces the event of the same id,
- ``device_components`` (string, null where not given): a JSON object of fingerprint components.

Raw values stay in Arrow; the engine sees only keys and numbers.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from member_node.streams.column_reader import ColumnReader, Read
from scoring.schema import ENTITIES, TransactionBatch, entity_keys

# pyarrow ships no types; the aliases keep signatures readable.
EventBatch: TypeAlias = pa.RecordBatch
FIXED = ("event_id", "time_us", "channel", "amount")
CORRECTION, DEVICE_COMPONENTS = "correction", "device_components"
_TYPES = {
    "time_us": pa.int64(),
    "channel": pa.uint8(),
    "amount": pa.float64(),
    CORRECTION: pa.bool_(),
    DEVICE_COMPONENTS: pa.string(),
}
_NEVER_NULL = (*FIXED, CORRECTION)
# Integers and texts alike are entities and ids; what is not named here is a number.
_READ = {
    "time_us": Read.WHOLE,
    "channel": Read.OCTET,
    CORRECTION: Read.FLAG,
    DEVICE_COMPONENTS: Read.NOTHING,
}
_TAKEN = frozenset((*FIXED, CORRECTION, DEVICE_COMPONENTS, "time", *ENTITIES))


class EventSchemaError(ValueError):
    """A record batch does not have the columns and types of events."""


def is_number_name(name: str) -> bool:
    """Whether a further numeric attribute may have this name: a free identifier, so that rules can read it."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in _TAKEN


def event_schema(
    entity_types: Mapping[str, bool],
    *,
    integer_ids: bool,
    numbers: Sequence[str] = (),
    correction: bool = False,
    device_components: bool = False,
) -> pa.Schema:
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
    fields += [pa.field(name, pa.float64()) for name in numbers]
    if correction:
        fields.append(pa.field(CORRECTION, pa.bool_(), nullable=False))
    if device_components:
        fields.append(pa.field(DEVICE_COMPONENTS, pa.string()))
    return pa.schema(fields)


def numbers_of(schema: pa.Schema) -> tuple[str, ...]:
    """The further numeric attributes of a schema of events, in column order."""
    return tuple(name for name in schema.names if name not in _TAKEN)


def transactions_of(events: EventBatch) -> TransactionBatch:
    """The engine's view of a record batch: numbers and entity keys, without raw values."""
    places = _places_of(events.schema)
    read = places.reader.read(events)
    if read.null >= 0:
        raise _nulls(events, read.null)
    numbers = dict(zip(places.numbers, read.numbers[1:], strict=True)) if places.numbers else {}
    return TransactionBatch(
        event_id=ids_of(events) if places.text_ids else read.wholes[0],
        time_us=read.wholes[-1],
        channel=read.octets[0],
        amount=read.numbers[0],
        entities={
            name: _text_keys(events.column(place), name) if row < 0 else read.keys[row]
            for name, place, row in places.entities
        },
        numbers=numbers,
        correction=read.flags[0] if places.corrections else None,
    )


@dataclass(frozen=True, eq=False)
class _Places:
    """What a checked schema has: entities as (name, column, row among those that hold integers or -1), numbers."""

    entities: tuple[tuple[str, int, int], ...]
    numbers: tuple[str, ...]
    text_ids: bool
    corrections: bool
    never_null: tuple[int, ...]
    reader: ColumnReader


def check_events(events: EventBatch) -> None:
    """Raise :class:`EventSchemaError` unless columns and types are those of this module."""
    for place in _places_of(events.schema).never_null:
        if events.column(place).null_count:
            raise _nulls(events, place)


def _nulls(events: EventBatch, place: int) -> EventSchemaError:
    return EventSchemaError(f"column {events.schema.names[place]!r} holds nulls")


# Schemas that were found good with their places: a stream has one, and checking it costs as much as reading an event.
_good: tuple[tuple[pa.Schema, _Places], ...] = ()


def _places_of(schema: pa.Schema) -> _Places:
    global _good
    for known, places in _good:
        if known.equals(schema):
            return places
    _check_schema(schema)
    places = _find_places(schema)
    _good = ((schema, places), *_good[:15])
    return places


def _find_places(schema: pa.Schema) -> _Places:
    names: list[str] = schema.names
    whole = [kind == pa.int64() for kind in schema.types]
    reads = [_READ.get(name, Read.NUMBER) for name in names]
    entities: list[tuple[str, int, int]] = []
    for place, name in enumerate(names):
        if name == "event_id":
            reads[place] = Read.WHOLE if whole[place] else Read.NOTHING
        elif name in ENTITIES:
            reads[place] = Read.KEY if whole[place] else Read.NOTHING
            entities.append((name, place, reads[:place].count(Read.KEY) if whole[place] else -1))
    return _Places(
        tuple(entities),
        numbers_of(schema),
        reads[0] is Read.NOTHING,
        CORRECTION in names,
        tuple(place for place, name in enumerate(names) if name in _NEVER_NULL),
        ColumnReader(reads, [name in _NEVER_NULL for name in names]),
    )


def _check_schema(schema: pa.Schema) -> None:
    names = schema.names
    if tuple(names[:4]) != FIXED or len(set(names)) != len(names):
        raise EventSchemaError(f"columns {names} are not those of events")
    for name, kind in zip(names, schema.types, strict=True):
        if name in _TYPES:
            if kind != _TYPES[name]:
                raise EventSchemaError(f"column {name!r} holds {kind}, not {_TYPES[name]}")
        elif name == "event_id" or name in ENTITIES:
            if kind not in (pa.int64(), pa.string()):
                raise EventSchemaError(f"column {name!r} holds {kind}, not int64 or string")
        elif not is_number_name(name):
            raise EventSchemaError(f"columns {names} are not those of events: {name!r} is no attribute")
        elif kind != pa.float64():
            raise EventSchemaError(f"column {name!r} holds {kind}, not double")


def ids_of(events: EventBatch) -> NDArray[np.int64] | NDArray[np.object_]:
    """Event ids as int64 [n] or object [n] of str."""
    # Arrow's memory is read-only, to compiled loops another type: copied, as all columns are.
    return np.array(events.column(0).to_numpy(zero_copy_only=False))


def _text_keys(column: pa.Array, name: str) -> NDArray[np.uint64]:
    codes, vocabulary = encoded(column)
    known = entity_keys(np.array([*vocabulary, None], dtype=object), column=name)
    return known[codes]


def encoded(column: pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """A column as (codes int32 [n], -1 where null; distinct values as text in order of appearance)."""
    dictionary = pc.dictionary_encode(column)
    indices = pc.fill_null(dictionary.indices, -1) if column.null_count else dictionary.indices
    codes = np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int32)
    return codes, [str(value) for value in dictionary.dictionary.to_pylist()]
