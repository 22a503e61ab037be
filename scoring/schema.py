"""The transaction schema: columns of a batch, entity keys, channels, and what makes a row unacceptable.

A batch holds rows in *arrival order*. Usually that is time order; a row whose time is earlier than one before it
is a late event. Every entity (who or what took part) is a column of unsigned 64-bit keys, 0 meaning "not given".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.hashing import DEFAULT_KEY, hash_pairs, hash_texts

MAX_TIME_US = 7_258_118_400_000_000  # 2200-01-01: later times are typing errors, not transactions
MAX_TEXT_LENGTH = 256
MISSING = np.uint64(0)
MISSING_INT = int(np.iinfo(np.int64).min)
_INT64, _UINT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint64), np.dtype(np.uint8)
_FLOAT64, _BOOL, _OBJECT = np.dtype(np.float64), np.dtype(np.bool_), np.dtype(object)

ENTITIES = (
    "customer",
    "account",
    "card",
    "payee",
    "device",
    "ip",
    "phone",
    "email",
    "terminal",
    "merchant",
)


class Channel(IntEnum):
    """How the transaction reached the bank; the value is what the ``channel`` column holds (uint8)."""

    LOGIN = 1
    TRANSFER = 2
    PAYMENT = 3
    WITHDRAWAL = 4
    CARD = 5
    CROSS_BORDER = 6

    @property
    def text(self) -> str:
        """Name used in files and specs: lower case, ``-`` between words."""
        return self.name.lower().replace("_", "-")


CHANNELS: Mapping[str, Channel] = {channel.text: channel for channel in Channel}


class SchemaError(ValueError):
    """A whole column has the wrong name, length or type; ``column`` names it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column {column!r}: {reason}")
        self.column = column
        self.reason = reason

    def __reduce__(self) -> tuple[type[SchemaError], tuple[str, str]]:
        return SchemaError, (self.column, self.reason)  # it comes back whole from another process


@dataclass(frozen=True, eq=False)
class TransactionBatch:
    """``n`` transactions in arrival order.

    event_id    int64 [n], or object [n] of str
    time_us     int64 [n], microseconds since 1970 UTC
    channel     uint8 [n], values of ``Channel``
    amount      float64 [n]
    entities    name of ``ENTITIES`` -> uint64 [n] from ``entity_keys`` (0: not given)
    texts       name -> object [n] of str or None: the raw value of an entity where indicators need it
    numbers     name -> float64 [n]: further numeric attributes, NaN where not given
    correction  bool [n]: the row replaces the event of the same id; None means no row does
    """

    event_id: NDArray[Any]
    time_us: NDArray[np.int64]
    channel: NDArray[np.uint8]
    amount: NDArray[np.float64]
    entities: Mapping[str, NDArray[np.uint64]]
    texts: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    correction: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.time_us)
        _check("time_us", self.time_us, n, _INT64)
        _check("channel", self.channel, n, _UINT8)
        _check("amount", self.amount, n, _FLOAT64)
        _check("event_id", self.event_id, n, None)
        if self.event_id.dtype != np.int64 and self.event_id.dtype != object:
            raise SchemaError("event_id", f"holds {self.event_id.dtype}, not int64 or object")
        for name, keys in self.entities.items():
            if name not in ENTITIES:
                raise SchemaError(name, f"is no entity; entities are {', '.join(ENTITIES)}")
            _check(name, keys, n, _UINT64)
        for name, texts in self.texts.items():
            _check(name, texts, n, _OBJECT)
        for name, numbers in self.numbers.items():
            _check(name, numbers, n, _FLOAT64)
        if self.correction is not None:
            _check("correction", self.correction, n, _BOOL)

    def __len__(self) -> int:
        return len(self.time_us)

    def take(self, rows: NDArray[Any] | slice) -> TransactionBatch:
        """The rows of an index array, mask or slice, in that order."""
        return TransactionBatch(
            event_id=self.event_id[rows],
            time_us=self.time_us[rows],
            channel=self.channel[rows],
            amount=self.amount[rows],
            entities={name: keys[rows] for name, keys in self.entities.items()},
            texts={name: texts[rows] for name, texts in self.texts.items()},
            numbers={name: numbers[rows] for name, numbers in self.numbers.items()},
            correction=None if self.correction is None else self.correction[rows],
        )


@dataclass(frozen=True, eq=False)
class OutcomeBatch:
    """What became known of events: ``event_id`` as in their batch, ``fraud`` bool [m], ``known_at_us`` int64 [m]."""

    event_id: NDArray[Any]
    fraud: NDArray[np.bool_]
    known_at_us: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.known_at_us)
        _check("known_at_us", self.known_at_us, n, _INT64)
        _check("fraud", self.fraud, n, _BOOL)
        _check("event_id", self.event_id, n, None)

    def __len__(self) -> int:
        return len(self.known_at_us)


def transaction_batch(
    *,
    event_id: Any,
    time_us: Any,
    amount: Any,
    channel: Any,
    entities: Mapping[str, Any],
    texts: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    correction: Any = None,
) -> TransactionBatch:
    """Build a batch from plain columns.

    ``event_id``: integers or strings. ``time_us``: integers, or datetime64 (taken as UTC). ``channel``: one name or
    ``Channel`` for all rows, or a column of names or codes (unknown names become 0, which ``validate`` refuses).
    ``entities``: raw values, see ``entity_keys``.
    Raises SchemaError naming the column.
    """
    times = np.asarray(time_us)
    if times.dtype.kind == "M":
        times = times.astype("datetime64[us]")
    elif times.dtype.kind not in "iu":
        raise SchemaError("time_us", f"holds {times.dtype}, not integers or datetime64")
    times = np.ascontiguousarray(times.astype(np.int64))
    n = len(times)
    return TransactionBatch(
        event_id=event_ids(event_id),
        time_us=times,
        channel=channel_codes(channel, n),
        amount=_floats("amount", amount),
        entities={name: entity_keys(values, column=name) for name, values in entities.items()},
        texts={name: _objects(values) for name, values in (texts or {}).items()},
        numbers={name: _floats(name, values) for name, values in (numbers or {}).items()},
        correction=None if correction is None else np.ascontiguousarray(correction, dtype=np.bool_),
    )


def event_ids(values: Any) -> NDArray[Any]:
    """Integers as int64 [n], anything else as object [n] of str."""
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return np.ascontiguousarray(array, dtype=np.int64)
    return _objects(values)


def channel_codes(values: Any, rows: int) -> NDArray[np.uint8]:
    """Codes uint8 [rows] of channel names or codes; an unknown name or code becomes 0."""
    if isinstance(values, str):
        return np.full(rows, CHANNELS.get(values, 0), np.uint8)
    if isinstance(values, Channel):
        return np.full(rows, values, np.uint8)
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        known = (array >= min(Channel)) & (array <= max(Channel))
        return np.where(known, array, 0).astype(np.uint8)
    return np.fromiter((CHANNELS.get(value, 0) for value in array.tolist()), np.uint8, len(array))


def entity_keys(values: Any, *, column: str = "entity", hash_key: bytes = DEFAULT_KEY) -> NDArray[np.uint64]:
    """Keys uint64 [n] of raw entity values; 0 where the value is missing (None, NaN, "" or int64's minimum).

    Integers map one to one (x >= 0 to x + 1, x < 0 to its two's complement), so they never collide. Strings map
    through SipHash-2-4 (Aumasson and Bernstein 2012) of their code points under ``hash_key`` (16 bytes), the same in
    every run: among m distinct strings any two collide with probability about m^2 / 2^65, for 20 million 1.1e-5. The
    default key is public; a bank whose counterparties choose their own identifiers passes a secret one.
    An integer and its decimal text are different values: one column has one type. Raises SchemaError.
    """
    if type(values) is np.ndarray and values.dtype == _INT64 and values.ndim == 1:
        return _integer_keys(values.copy())  # the usual; loops are compiled for solid, writable arrays
    array = _one_column(column, values)
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        return np.ascontiguousarray(array + np.uint64(1))
    if array.dtype.kind in "iub":
        return _integer_keys(array.astype(np.int64))
    if array.dtype.kind == "f":
        missing = np.isnan(array)
        whole = np.where(missing, 0.0, array)
        if not np.all((np.abs(whole) < 2.0**53) & (whole == np.floor(whole))):
            raise SchemaError(
                column, "holds fractions, infinities or integers beyond 2^53: give integers or strings"
            )
        keys = _integer_keys(whole.astype(np.int64))
        keys[missing] = MISSING
        return keys
    if array.dtype.kind == "U":
        return hash_texts(_bounded(column, array), hash_key)
    if array.dtype == object:
        return _object_keys(column, array, hash_key)
    raise SchemaError(column, f"holds {array.dtype}, not integers or strings")


def pair_keys(
    first: NDArray[np.uint64], second: NDArray[np.uint64], *, hash_key: bytes = DEFAULT_KEY
) -> NDArray[np.uint64]:
    """Keys uint64 [n] of pairs of entities, such as a card at a terminal; 0 where either is missing.

    SipHash-2-4 of the two keys in order: among m distinct pairs any two collide with probability about m^2 / 2^65, for
    200 million 1.1e-3, also when the keys are small integers.
    """
    return hash_pairs(first, second, hash_key)


def _check(column: str, array: NDArray[Any], rows: int, dtype: np.dtype[Any] | None) -> None:
    if type(array) is np.ndarray and array.shape == (rows,) and (dtype is None or array.dtype is dtype):
        return
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise SchemaError(column, "is not a one-dimensional array")
    if dtype is not None and array.dtype != dtype:
        raise SchemaError(column, f"holds {array.dtype}, not {dtype}")
    if len(array) != rows:
        raise SchemaError(column, f"has {len(array)} rows where time has {rows}")


def _floats(column: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SchemaError(column, "holds values that are not numbers") from error


def _objects(values: Any) -> NDArray[np.object_]:
    items: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _one_column(column: str, values: Any) -> NDArray[Any]:
    if not isinstance(values, np.ndarray):
        values = list(values)
        if any(value is None or isinstance(value, str) for value in values):
            return _objects(values)  # NumPy would turn what stands beside a text into text
        values = np.asarray(values)
    if values.ndim != 1:
        raise SchemaError(column, "is not one-dimensional")
    return cast(NDArray[Any], values)


@compiled
def _integer_keys(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    keys = np.empty(len(values), np.uint64)
    for row in range(len(values)):
        value = values[row]
        # Numba makes a float64 of "0 if ... else key".
        if value == MISSING_INT:
            keys[row] = 0
        elif value >= 0:
            keys[row] = value + 1
        else:
            keys[row] = value
    return keys


def _bounded(column: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.itemsize > 4 * MAX_TEXT_LENGTH:
        raise SchemaError(column, f"holds a text longer than {MAX_TEXT_LENGTH} characters")
    return array


def _object_keys(column: str, array: NDArray[Any], hash_key: bytes) -> NDArray[np.uint64]:
    items = ["" if item is None or item != item else item for item in array.tolist()]
    if all(type(item) is str for item in items):
        if max(map(len, items), default=0) > MAX_TEXT_LENGTH:
            raise SchemaError(column, f"holds a text longer than {MAX_TEXT_LENGTH} characters")
        return hash_texts(np.array(items, dtype=np.str_), hash_key)
    integers = [MISSING_INT if item == "" else item for item in items]
    if all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in integers):
        try:
            return _integer_keys(np.array(integers, dtype=np.int64))
        except OverflowError as error:
            raise SchemaError(column, "holds an integer outside 64 bits") from error
    raise SchemaError(column, "mixes integers and strings, or holds something that is neither")
