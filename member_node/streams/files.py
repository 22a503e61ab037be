"""Reading event files: every cell is checked, bad rows are named and set aside, good rows are kept.

Parquet and CSV. A row that is refused is reported with its row number (CSV: the line in the file, the header is line 1;
Parquet: the row, counted from 1), the file's column and the reason, one report a bad cell. Reports never repeat the
cell's content, so they can be passed on.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from member_node.streams.events import EventBatch, event_schema
from member_node.streams.mapping import REQUIRED, UNITS, StreamMapping
from scoring.schema import CHANNELS, MAX_TEXT_LENGTH, MAX_TIME_US

UNKNOWN = -1
_ISO = "%Y-%m-%dT%H:%M:%S%.f"


class EventFileError(ValueError):
    """The file as a whole cannot be read; the message names it and what is missing."""


@dataclass(frozen=True)
class Reject:
    """One bad cell: ``row`` as the module says (``last_row`` for a damaged stretch), file column, reason."""

    row: int
    column: str
    reason: str
    last_row: int = 0


@dataclass(frozen=True)
class EventFile:
    """What a file held: ``events`` by time (ties in file order), ``fraud`` int8 [n] (1, 0, -1 unknown), rejects.

    ``rows``: rows in the file; ``rejected``: rows that are not among ``events``; ``split``: int64 [n], the mapping's
    split column, where it was asked for.
    """

    events: EventBatch
    fraud: NDArray[np.int8]
    rejects: tuple[Reject, ...]
    rows: int
    rejected: int
    split: NDArray[np.int64] | None = None


def read_events(path: Path, mapping: StreamMapping, *, with_split: bool = False) -> EventFile:
    """Read ``path`` (``.parquet`` or ``.csv``) through ``mapping``; raises :class:`EventFileError`.

    ``with_split``: read the split column too (a file of several banks), and refuse rows where it is no integer.
    """
    split = mapping.split_column if with_split else ""
    if path.suffix == ".parquet":
        raw = _read_parquet(path, mapping, split)
    elif path.suffix == ".csv":
        raw = _read_csv(path, mapping, split)
    else:
        raise EventFileError(f"{path}: events are read from .parquet or .csv files")
    return _checked(raw, mapping, by_time=True, split=split)


def read_rows(rows: Sequence[Mapping[str, object]], mapping: StreamMapping) -> EventFile:
    """Check rows that arrived one by one, keyed by schema field (``time`` in ISO 8601); their order is kept.

    Row numbers in the reports count from 1.
    """
    fields = (*REQUIRED, *(["channel"] if not mapping.channel else []), *mapping.entities)
    own = replace(mapping, columns={name: name for name in fields}, channels={}, label_column="")
    columns = {
        name: pl.Series(name, [_cell(row.get(name)) for row in rows], dtype=pl.String) for name in fields
    }
    numbers = np.arange(1, len(rows) + 1, dtype=np.int64)
    return _checked(_Raw(pl.DataFrame(columns), numbers, [], len(rows), 0), own, by_time=False)


def _cell(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """Write the reports as CSV: row, last_row, column, reason."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "last_row", "column", "reason"])
        writer.writerows((each.row, each.last_row or each.row, each.column, each.reason) for each in rejects)


@dataclass(frozen=True)
class _Raw:
    """File columns as they are (text for CSV), the row number of each row, and what was already refused."""

    frame: pl.DataFrame
    numbers: NDArray[np.int64]
    rejects: list[Reject]
    rows: int
    rejected: int


def _wanted(mapping: StreamMapping, split: str) -> list[str]:
    names = [*mapping.columns.values(), *(name for name in (mapping.label_column, split) if name)]
    return list(dict.fromkeys(names))


def _require(path: Path, present: Sequence[str], wanted: Sequence[str], mapping: StreamMapping) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise EventFileError(
            f"{path}: has no column {', '.join(missing)}, which the mapping {mapping.name!r} names"
        )


def _read_parquet(path: Path, mapping: StreamMapping, split: str) -> _Raw:
    try:
        source = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise EventFileError(f"{path}: not a readable Parquet file: {error}") from error
    with source:
        wanted = _wanted(mapping, split)
        _require(path, source.schema_arrow.names, wanted, mapping)
        tables: list[pa.Table] = []
        numbers: list[NDArray[np.int64]] = []
        rejects: list[Reject] = []
        first = 1
        for group in range(source.num_row_groups):
            count = source.metadata.row_group(group).num_rows
            try:
                tables.append(source.read_row_group(group, columns=wanted))
                numbers.append(np.arange(first, first + count, dtype=np.int64))
            except (OSError, pa.ArrowException):
                rejects += [
                    Reject(first, column, "this stretch of the file is damaged", first + count - 1)
                    for column in wanted
                    if not _readable(source, group, column)
                ]
            first += count
        schema = pa.schema([source.schema_arrow.field(name) for name in wanted])
        table = pa.concat_tables(tables) if tables else schema.empty_table()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    kept = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
    return _Raw(frame, kept, rejects, first - 1, first - 1 - len(kept))


def _readable(source: pq.ParquetFile, group: int, column: str) -> bool:
    try:
        source.read_row_group(group, columns=[column])
    except (OSError, pa.ArrowException):
        return False
    return True


def _read_csv(path: Path, mapping: StreamMapping, split: str) -> _Raw:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise EventFileError(f"{path}: cannot be read: {error}") from error
    if not lines:
        raise EventFileError(f"{path}: is empty; the first line names the columns")
    header = _fields(lines[0].removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace"))
    if header is None:
        raise EventFileError(f"{path}: the first line is no list of column names")
    wanted = _wanted(mapping, split)
    _require(path, header, wanted, mapping)
    positions = [header.index(name) for name in wanted]
    columns: list[list[str | None]] = [[] for _ in wanted]
    numbers: list[int] = []
    rejects: list[Reject] = []
    rows = rejected = 0
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        rows += 1
        try:
            cells = _fields(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            cells = None
            reason, column = "is not UTF-8", _column_at(line[: error.start], header)
        else:
            reason, column = "has an unfinished quotation", header[0]
            if cells is not None and len(cells) != len(header):
                reason = f"the line has {len(cells)} cells, the header {len(header)}"
                column = header[min(len(cells), len(header) - 1)]
                cells = None
        if cells is None:
            rejects.append(Reject(number, column, reason))
            rejected += 1
            continue
        numbers.append(number)
        for target, position in zip(columns, positions, strict=True):
            target.append(cells[position] or None)
    frame = pl.DataFrame(
        {name: pl.Series(name, cells, dtype=pl.String) for name, cells in zip(wanted, columns, strict=True)}
    )
    return _Raw(frame, np.array(numbers, dtype=np.int64), rejects, rows, rejected)


def _fields(line: str) -> list[str] | None:
    """The cells of one line, None if it cannot be one (quoted cells may not contain line breaks)."""
    if '"' not in line:
        return line.split(",")
    try:
        parsed = list(csv.reader([line], strict=True))
    except csv.Error:
        return None
    return parsed[0] if len(parsed) == 1 else None


def _column_at(before: bytes, header: list[str]) -> str:
    return header[min(before.count(b","), len(header) - 1)]


class _Checker:
    """Collects rejects column by column; a row is good while no cell of it was refused."""

    def __init__(self, raw: _Raw) -> None:
        self.frame = raw.frame
        self.numbers = raw.numbers
        self.good = np.ones(raw.frame.height, dtype=np.bool_)
        self.rejects: list[Reject] = []

    def refuse(self, bad: NDArray[np.bool_], column: str, reason: str) -> None:
        for row in np.flatnonzero(bad):
            self.rejects.append(Reject(int(self.numbers[row]), column, reason))
        self.good &= ~bad

    def parsed(self, column: str, values: pl.Series, what: str, *, required: bool) -> pl.Series:
        """Refuse cells that were given but became null in ``values``, and missing ones where required."""
        empty = self.frame.get_column(column).is_null().to_numpy()
        self.refuse(values.is_null().to_numpy() & ~empty, column, f"is not {what}")
        if required:
            self.refuse(empty, column, "is missing")
        return values

    def integers(self, column: str, *, required: bool) -> pl.Series:
        source = self.frame.get_column(column)
        if source.dtype.is_float():
            whole = source.is_finite() & (source == source.floor()) & (source.abs() < 2**53)
            values = pl.select(pl.when(whole).then(source)).to_series().cast(pl.Int64, strict=False)
        else:
            values = (
                _text(source).str.strip_chars().cast(pl.Int64, strict=False)
                if _is_text(source)
                else source.cast(pl.Int64, strict=False)
            )
        # int64's minimum stands for "missing" in the engine.
        values = pl.select(pl.when(values != -(2**63)).then(values)).to_series()
        return self.parsed(column, values, "an integer", required=required)

    def texts(self, column: str, *, required: bool) -> pl.Series:
        source = _text(self.frame.get_column(column)).str.strip_chars()
        values = pl.select(pl.when(source != "").then(source)).to_series()
        self.refuse(
            (values.str.len_chars() > MAX_TEXT_LENGTH).fill_null(False).to_numpy(),
            column,
            f"is longer than {MAX_TEXT_LENGTH} characters",
        )
        if required:
            self.refuse(values.is_null().to_numpy(), column, "is missing")
        return values

    def amounts(self, column: str) -> pl.Series:
        source = self.frame.get_column(column)
        values = (_text(source).str.strip_chars() if _is_text(source) else source).cast(
            pl.Float64, strict=False
        )
        values = self.parsed(column, values, "a number", required=True)
        self.refuse((~values.is_finite()).fill_null(False).to_numpy(), column, "is not finite")
        self.refuse(
            (values < 0).fill_null(False).to_numpy() & values.is_finite().fill_null(False).to_numpy(),
            column,
            "is negative",
        )
        return values

    def times(self, column: str, mapping: StreamMapping) -> pl.Series:
        source = self.frame.get_column(column)
        if source.dtype.is_integer():
            if not mapping.time_unit:
                raise EventFileError(
                    f"column {column!r} holds integers; the mapping's [time] must give their unit"
                )
            values = source.cast(pl.Int64) * UNITS[mapping.time_unit]
        elif isinstance(source.dtype, pl.Datetime):
            values = _to_utc(source, mapping.zone)
        else:
            text = _text(source).str.strip_chars().str.replace(" ", "T", literal=True)
            # A time with Z or an offset says where it is; the others are in the mapping's zone.
            aware = text.str.to_datetime(f"{_ISO}%#z", time_unit="us", time_zone="UTC", strict=False)
            naive = text.str.to_datetime(_ISO, time_unit="us", strict=False)
            values = _to_utc(aware, "UTC").fill_null(_to_utc(naive, mapping.zone))
            if mapping.time_unit:
                values = values.fill_null(text.cast(pl.Int64, strict=False) * UNITS[mapping.time_unit])
        return self._in_range(column, self.parsed(column, values, "a time", required=True))

    def _in_range(self, column: str, values: pl.Series) -> pl.Series:
        outside = ((values < 0) | (values > MAX_TIME_US)).fill_null(False)
        self.refuse(outside.to_numpy(), column, "lies outside 1970 to 2200")
        return values

    def channels(self, mapping: StreamMapping) -> pl.Series:
        if mapping.channel:
            return pl.Series("channel", np.full(self.frame.height, CHANNELS[mapping.channel], dtype=np.uint8))
        column = mapping.columns["channel"]
        words = _text(self.frame.get_column(column)).str.strip_chars().str.to_lowercase()
        codes = {word.replace("-", "_"): int(channel) for word, channel in CHANNELS.items()}
        codes |= {word: int(channel) for word, channel in CHANNELS.items()}
        codes |= {word: int(CHANNELS[meaning]) for word, meaning in mapping.channels.items()}
        values = words.replace_strict(codes, default=None, return_dtype=pl.UInt8)
        return self.parsed(column, values, f"a channel ({', '.join(CHANNELS)})", required=True)

    def labels(self, mapping: StreamMapping) -> NDArray[np.int8]:
        if not mapping.label_column:
            return np.full(self.frame.height, UNKNOWN, dtype=np.int8)
        source = self.frame.get_column(mapping.label_column)
        values = (
            source.cast(pl.Int8)
            if source.dtype == pl.Boolean
            else _text(source).str.strip_chars().cast(pl.Int64, strict=False)
        )
        values = self.parsed(mapping.label_column, values, "0 or 1", required=False)
        self.refuse(
            (~values.is_in([0, 1])).fill_null(False).to_numpy(), mapping.label_column, "is not 0 or 1"
        )
        labels = values.fill_null(UNKNOWN).to_numpy()
        return np.where((labels == 0) | (labels == 1), labels, UNKNOWN).astype(np.int8)


def _is_text(source: pl.Series) -> bool:
    return source.dtype == pl.String or source.dtype == pl.Categorical


def _text(source: pl.Series) -> pl.Series:
    return source if source.dtype == pl.String else source.cast(pl.String, strict=False)


def _to_utc(moments: pl.Series, zone: str) -> pl.Series:
    """UTC microseconds of datetimes; those without a zone are in ``zone``."""
    if moments.dtype == pl.Datetime and moments.dtype.time_zone is None:  # type: ignore[attr-defined]
        # An hour that exists twice is taken as the earlier one; an hour that does not exist becomes null.
        moments = moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return moments.dt.convert_time_zone("UTC").dt.epoch("us")


def _checked(raw: _Raw, mapping: StreamMapping, *, by_time: bool, split: str = "") -> EventFile:
    checker = _Checker(raw)
    frame = raw.frame
    columns: dict[str, pl.Series] = {}
    integer = {
        name: mapping.types.get(
            name, "integer" if frame.schema[mapping.columns[name]].is_integer() else "text"
        )
        == "integer"
        for name in ("event_id", *mapping.entities)
    }
    for name, whole in integer.items():
        read = checker.integers if whole else checker.texts
        columns[name] = read(mapping.columns[name], required=name == "event_id")
    columns["time_us"] = checker.times(mapping.columns["time"], mapping)
    columns["channel"] = checker.channels(mapping)
    columns["amount"] = checker.amounts(mapping.columns["amount"])
    fraud = checker.labels(mapping)
    banks = checker.integers(split, required=True) if split else None
    ids = columns["event_id"]
    repeated = (~ids.is_first_distinct() & ids.is_not_null()).to_numpy()
    checker.refuse(repeated & checker.good, mapping.columns["event_id"], "repeats the id of an earlier row")
    good = np.flatnonzero(checker.good)
    times = columns["time_us"].fill_null(0).to_numpy()[good]
    order = good[np.argsort(times, kind="stable")] if by_time else good
    schema = event_schema({name: integer[name] for name in mapping.entities}, integer_ids=integer["event_id"])
    arrays = [columns[field.name].gather(order).to_arrow().cast(field.type) for field in schema]
    events = pa.RecordBatch.from_arrays(arrays, schema=schema)
    rejects = sorted([*raw.rejects, *checker.rejects], key=lambda each: (each.row, each.column))
    rejected = raw.rejected + int(np.count_nonzero(~checker.good))
    keys = None if banks is None else banks.gather(order).to_numpy()
    return EventFile(events, fraud[order], tuple(rejects), raw.rows, rejected, keys)
