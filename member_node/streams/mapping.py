"""Mappings: how a file's columns become transactions. One TOML file a source::

[columns]                      # schema field = "file column"; event_id, time and amount are required
event_id = "TRANSACTION_ID"
time = "TX_DATETIME"
amount = "TX_AMOUNT"
customer = "CUSTOMER_ID"       # any entity of the schema; "channel" may be a column too
correction = "IS_CORRECTION"   # optional: 0 or 1; 1 replaces the event of the same id
device_components = "DEVICE"   # optional: a JSON object of fingerprint components

[numbers]                      # optional: further numeric attributes that features and rules may read
latitude = "TX_LATITUDE"       # name (an identifier) = "file column"

[types]                        # optional: "integer" or "text" for event_id and entities
customer = "integer"           # (default: integers where the file holds integers, text otherwise)

[constants]
channel = "card"               # for files without a channel column
currency = "EUR"

[channels]                     # optional: the file's word = the schema's word
atm = "withdrawal"

[time]
zone = "UTC"                   # zone of times without one, and of the data set's days
unit = "ms"                    # only for integer time columns: s, ms or us since 1970

[labels]
column = "TX_FRAUD"            # 0 or 1; becomes known delay_days after the transaction
delay_days = 7

[split]
column = "CUSTOMER_ID"         # which bank a row belongs to (the sandbox deals rows by it)

[indicators]
terminal = "terminal"          # schema entity = indicator kind

[directory]                    # the public directory that joint statistics address
dataset = "terminals"
entity = "terminal"

[evaluation]                   # read by reports only
"""

from __future__ import annotations

import datetime as dt
import tomllib
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from governance.indicators import Kind
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS, is_number_name
from scoring.schema import CHANNELS, ENTITIES
from scoring.series import utc_day

REQUIRED = ("event_id", "time", "amount")
FIELDS = (*REQUIRED, "channel", CORRECTION, DEVICE_COMPONENTS, *ENTITIES)
TYPES = ("integer", "text")
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_QUARTER_HOUR_US = 900_000_000
_HOUR_US = 3_600_000_000
_TABLES: dict[str, type | None] = {
    "columns": str,
    "numbers": str,
    "types": str,
    "constants": str,
    "channels": str,
    "time": str,
    "labels": None,
    "split": str,
    "indicators": str,
    "directory": str,
    "evaluation": None,
}


class MappingError(ValueError):
    """A mapping file is wrong; the message names the file, the key and what it must be."""


@dataclass(frozen=True)
class StreamMapping:
    """A checked mapping. ``columns``: schema field -> file column. Empty strings where the file has no such part.

    ``numbers``: further numeric attribute -> file column.

    ``channels``: the file's lower-case word -> the schema's; ``indicators``: entity -> kind; ``label_delay_days``:
    days after which a transaction's label is known; ``evaluation``: free for reports.
    """

    name: str
    columns: Mapping[str, str]
    numbers: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    channel: str = ""
    currency: str = ""
    channels: Mapping[str, str] = field(default_factory=dict)
    zone: str = "UTC"
    time_unit: str = ""
    label_column: str = ""
    label_delay_days: int = 0
    split_column: str = ""
    indicators: Mapping[str, str] = field(default_factory=dict)
    directory_dataset: str = ""
    directory_entity: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entities(self) -> tuple[str, ...]:
        """The mapped entities, in the schema's order."""
        return tuple(entity for entity in ENTITIES if entity in self.columns)

    @property
    def label_delay_us(self) -> int:
        """The label delay in microseconds."""
        return self.label_delay_days * 24 * _HOUR_US

    def offset_us(self, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Local time minus UTC of each instant, microseconds."""
        if self.zone == "UTC":
            return np.zeros(len(time_us), dtype=np.int64)
        zone = zoneinfo.ZoneInfo(self.zone)
        # Zones change their offset at quarter hours only, so few conversions serve many events.
        quarters, positions = np.unique(np.floor_divide(time_us, _QUARTER_HOUR_US), return_inverse=True)
        offsets = np.array([_offset_us(zone, int(quarter)) for quarter in quarters], dtype=np.int64)
        return offsets[positions]

    def local_us(self, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Wall-clock time in the data set's zone as microseconds since 1970 (for hours and weekdays)."""
        if self.zone == "UTC":
            return time_us.copy()
        return np.asarray(time_us + self.offset_us(time_us), dtype=np.int64)

    def day_of(self, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Days since 1970-01-01 in the data set's zone; int64 [n]."""
        return utc_day(self.local_us(time_us))


def _offset_us(zone: zoneinfo.ZoneInfo, quarter: int) -> int:
    instant = dt.datetime.fromtimestamp(quarter * 900, tz=zone)
    offset = instant.utcoffset()
    assert offset is not None
    return round(offset.total_seconds() * 1_000_000)


def channel_words(mapping: StreamMapping) -> dict[str, int]:
    """Every lower-case word for a channel, the mapping's own among them, and its code."""
    codes = {word.replace("-", "_"): int(channel) for word, channel in CHANNELS.items()}
    codes |= {word: int(channel) for word, channel in CHANNELS.items()}
    return codes | {word: int(CHANNELS[meaning]) for word, meaning in mapping.channels.items()}


def load_mapping(path: Path) -> StreamMapping:
    """Read and check a mapping file; raises :class:`MappingError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: cannot be read: {error}") from error
    return parse_mapping(text, name=path.stem, source=str(path))


def parse_mapping(text: str, *, name: str, source: str = "mapping") -> StreamMapping:
    """Check a mapping's text; raises :class:`MappingError` naming ``source``."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{source}: not TOML: {error}") from error
    tables = _tables(document, source)
    columns = tables["columns"]
    for required in REQUIRED:
        if required not in columns:
            raise MappingError(f'{source}: [columns] needs {required} = "file column"')
    _known(columns, FIELDS, "columns", source)
    for number in tables["numbers"]:
        if not is_number_name(number):
            raise MappingError(f"{source}: [numbers] {number!r} must be an identifier that is no other field")
    _known(tables["types"], ("event_id", *ENTITIES), "types", source)
    _known(tables["constants"], ("channel", "currency"), "constants", source)
    _known(tables["time"], ("zone", "unit"), "time", source)
    _known(tables["labels"], ("column", "delay_days"), "labels", source)
    _known(tables["split"], ("column",), "split", source)
    _known(tables["directory"], ("dataset", "entity"), "directory", source)
    for key, value in tables["types"].items():
        _one_of(value, TYPES, f"[types] {key}", source)
        if key not in columns:
            raise MappingError(f"{source}: [types] {key} is not mapped in [columns]")
    channel = tables["constants"].get("channel", "")
    if ("channel" in columns) == bool(channel):
        raise MappingError(f"{source}: give either [columns] channel or [constants] channel")
    for word in [channel] if channel else list(tables["channels"].values()):
        _one_of(word, tuple(CHANNELS), "channel", source)
    zone = tables["time"].get("zone", "UTC")
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise MappingError(f"{source}: [time] zone {zone!r} is unknown") from error
    unit = tables["time"].get("unit", "")
    if unit:
        _one_of(unit, tuple(UNITS), "[time] unit", source)
    for entity, kind in tables["indicators"].items():
        if entity not in columns or entity not in ENTITIES:
            raise MappingError(f"{source}: [indicators] {entity} is not a mapped entity")
        _one_of(kind, tuple(Kind), f"[indicators] {entity}", source)
    if len(set(tables["indicators"].values())) != len(tables["indicators"]):
        raise MappingError(f"{source}: [indicators] maps two entities to one kind")
    directory = tables["directory"]
    if directory and (set(directory) != {"dataset", "entity"} or directory["entity"] not in columns):
        raise MappingError(f"{source}: [directory] needs a dataset and a mapped entity")
    labels = tables["labels"]
    delay = labels.get("delay_days", 0)
    if labels and (
        not isinstance(labels.get("column"), str) or type(delay) is not int or not 0 <= delay <= 366
    ):
        raise MappingError(f'{source}: [labels] needs column = "file column" and delay_days = 0 to 366')
    return StreamMapping(
        name=name,
        columns=columns,
        numbers=tables["numbers"],
        types=tables["types"],
        channel=channel,
        currency=tables["constants"].get("currency", ""),
        channels={word.lower(): meaning for word, meaning in tables["channels"].items()},
        zone=zone,
        time_unit=unit,
        label_column=labels.get("column", ""),
        label_delay_days=delay,
        split_column=tables["split"].get("column", ""),
        indicators=tables["indicators"],
        directory_dataset=directory.get("dataset", ""),
        directory_entity=directory.get("entity", ""),
        evaluation=tables["evaluation"],
    )


def _tables(document: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    unknown = set(document) - set(_TABLES)
    if unknown:
        raise MappingError(
            f"{source}: unknown tables {', '.join(sorted(unknown))}; there are {', '.join(_TABLES)}"
        )
    tables: dict[str, dict[str, Any]] = {}
    for name, value_type in _TABLES.items():
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise MappingError(f"{source}: {name} must be a table, written [{name}]")
        for key, value in table.items():
            if value_type is not None and (not isinstance(value, value_type) or not value):
                raise MappingError(f"{source}: [{name}] {key} must be a text")
        tables[name] = table
    return tables


def _known(table: Mapping[str, Any], known: tuple[str, ...], name: str, source: str) -> None:
    unknown = set(table) - set(known)
    if unknown:
        raise MappingError(f"{source}: [{name}] has unknown keys {', '.join(sorted(unknown))}")


def _one_of(value: str, allowed: tuple[str, ...], what: str, source: str) -> None:
    if value not in allowed:
        raise MappingError(f"{source}: {what} {value!r} must be one of {', '.join(allowed)}")
