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

from member_node.streams.cells import UNKNOWN, CellChecker
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS, EventBatch, event_schema
from member_node.streams.mapping import REQUIRED, StreamMapping
from member_node.streams.rejects import EventFileError, Reject, write_rejects
from scoring.row_codes import RowCode

__all__ = ["UNKNOWN", "EventFile", "EventFileError", "Reject", "read_events", "read_rows", "write_rejects"]
_DAMAGED = RowCode.MALFORMED.text


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


def read_events(
    path: Path, mapping: StreamMapping, *, with_split: bool = False, latest_us: int | None = None
) -> EventFile:
    """Read ``path`` (``.parquet`` or ``.csv``) through ``mapping``; raises :class:`EventFileError`.

    ``with_split``: read the split column too (a file of several banks), and refuse rows where it is no integer.
    ``latest_us``: rows dated after it are refused (None: any time will do).
    """
    split = mapping.split_column if with_split else ""
    if path.suffix == ".parquet":
        raw = _read_parquet(path, mapping, split)
    elif path.suffix == ".csv":
        raw = _read_csv(path, mapping, split)
    else:
        raise EventFileError(f"{path}: events are read from .parquet or .csv files")
    return _checked(raw, mapping, by_time=True, split=split, latest_us=latest_us)


def read_rows(
    rows: Sequence[Mapping[str, object]], mapping: StreamMapping, latest_us: int | None = None
) -> EventFile:
    """Check rows that arrived one by one, keyed by schema field (``time`` in ISO 8601); their order is kept.

    Row numbers in the reports count from 1; ``latest_us`` as in :func:`read_events`.
    """
    fields = [*REQUIRED, *(["channel"] if not mapping.channel else []), *mapping.entities]
    fields += [name for name in (CORRECTION, DEVICE_COMPONENTS) if name in mapping.columns]
    own = replace(
        mapping,
        columns={name: name for name in fields},
        numbers={name: name for name in mapping.numbers},
        channels={},
        label_column="",
    )
    columns = {
        name: pl.Series(name, [_cell(row.get(name)) for row in rows], dtype=pl.String)
        for name in (*fields, *mapping.numbers)
    }
    numbers = np.arange(1, len(rows) + 1, dtype=np.int64)
    raw = _Raw(pl.DataFrame(columns), numbers, [], len(rows), 0)
    return _checked(raw, own, by_time=False, latest_us=latest_us)


def _cell(value: object) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    return None if value is None or value == "" else str(value)


@dataclass(frozen=True)
class _Raw:
    """File columns as they are (text for CSV), the row number of each row, and what was already refused."""

    frame: pl.DataFrame
    numbers: NDArray[np.int64]
    rejects: list[Reject]
    rows: int
    rejected: int


def _wanted(mapping: StreamMapping, split: str) -> list[str]:
    names = [
        *mapping.columns.values(),
        *mapping.numbers.values(),
        *(name for name in (mapping.label_column, split) if name),
    ]
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
                    Reject(first, column, "this stretch of the file is damaged", first + count - 1, _DAMAGED)
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
            rejects.append(Reject(number, column, reason, code=_DAMAGED))
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


def _checked(
    raw: _Raw, mapping: StreamMapping, *, by_time: bool, split: str = "", latest_us: int | None = None
) -> EventFile:
    checker = CellChecker(raw.frame, raw.numbers)
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
    columns["time_us"] = checker.times(mapping.columns["time"], mapping, latest_us)
    columns["channel"] = checker.channels(mapping)
    columns["amount"] = checker.amounts(mapping.columns["amount"])
    columns |= {name: checker.attributes(column) for name, column in mapping.numbers.items()}
    ids = columns["event_id"]
    first = ids.is_first_distinct().to_numpy()
    if CORRECTION in mapping.columns:
        columns[CORRECTION] = checker.corrections(mapping.columns[CORRECTION])
        # A correction has the id of what it replaces; of the other rows one may have it.
        correction = columns[CORRECTION].to_numpy()
        first = correction.copy()
        first[~correction] = ids.filter(~columns[CORRECTION]).is_first_distinct().to_numpy()
    if DEVICE_COMPONENTS in mapping.columns:
        columns[DEVICE_COMPONENTS] = checker.bundles(mapping.columns[DEVICE_COMPONENTS])
    fraud = checker.labels(mapping)
    banks = checker.integers(split, required=True) if split else None
    repeated = ~first & ids.is_not_null().to_numpy()
    checker.refuse(
        repeated & checker.good,
        mapping.columns["event_id"],
        "repeats the id of an earlier row",
        RowCode.MALFORMED,
    )
    good = np.flatnonzero(checker.good)
    times = columns["time_us"].fill_null(0).to_numpy()[good]
    order = good[np.argsort(times, kind="stable")] if by_time else good
    schema = event_schema(
        {name: integer[name] for name in mapping.entities},
        integer_ids=integer["event_id"],
        numbers=tuple(mapping.numbers),
        correction=CORRECTION in columns,
        device_components=DEVICE_COMPONENTS in columns,
    )
    arrays = [columns[field.name].gather(order).to_arrow().cast(field.type) for field in schema]
    events = pa.RecordBatch.from_arrays(arrays, schema=schema)
    rejects = sorted([*raw.rejects, *checker.rejects], key=lambda each: (each.row, each.column))
    rejected = raw.rejected + int(np.count_nonzero(~checker.good))
    keys = None if banks is None else banks.gather(order).to_numpy()
    return EventFile(events, fraud[order], tuple(rejects), raw.rows, rejected, keys)
