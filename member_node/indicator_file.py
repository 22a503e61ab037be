"""A CSV file of findings: kind, value, typology, victims, first_seen, last_seen. Bad rows never cost good ones.

Every line is a row of its own, so that an open quote cannot swallow what follows. Rows are numbered by their line
in the file, the header being line 1. No reason repeats a value.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from governance.indicators import KIND_GROUPS, InvalidIndicatorError, NormalForm, normalise
from member_node.command_line import CommandError, parse_time_ms

REQUIRED = ("kind", "value", "typology", "victims")
OPTIONAL = ("first_seen", "last_seen")
MAX_VICTIMS = 10**6
MAX_TYPOLOGY_CHARACTERS = 48
MAX_FILE_BYTES = 256 * 2**20

# A word of a catalogue: free text could carry what must not leave the bank.
_TYPOLOGY = re.compile(rf"[a-z][a-z0-9-]{{0,{MAX_TYPOLOGY_CHARACTERS - 1}}}")


class CellError(ValueError):
    """One cell is wrong: ``column`` and a reason without the value."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.column = column
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding as the node's bank-internal API takes it; the value does not print."""

    kind: str
    value: str = field(repr=False)
    typology: str
    distinct_victims: int
    first_seen_ms: int
    last_seen_ms: int


@dataclass(frozen=True)
class IndicatorFile:
    """What a file held, by row: good rows in their order, and what is wrong in each other one."""

    findings: dict[int, Finding]
    rejects: dict[int, CellError]


def read_indicators(path: Path, now_ms: int) -> IndicatorFile:
    """Read ``path``; empty times are ``now_ms``. Raises :class:`CommandError` if it is no such file at all."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandError(f"{path}: larger than {MAX_FILE_BYTES} bytes: split it")
        # Bytes that are not UTF-8 become lone surrogates, which are refused in their cell and not with the file.
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    lines = text.split("\n")
    header = [name.strip() for name in _cells(lines[0]) or []]
    if missing := [name for name in REQUIRED if name not in header]:
        raise CommandError(f"{path}: the header has no column {', '.join(missing)}")
    if unknown := [name for name in header if name not in REQUIRED + OPTIONAL]:
        raise CommandError(f"{path}: the header has the unknown column {unknown[0]!r}")
    if len(set(header)) != len(header):
        raise CommandError(f"{path}: the header has a column twice")
    return _read_rows(lines, header, now_ms)


def make_finding(
    kind: str, value: str, typology: str, victims: int, first_seen_ms: int, last_seen_ms: int
) -> tuple[Finding, NormalForm]:
    """A finding that the index can take, with its normal form; raises :class:`CellError`."""
    for column, text in (("kind", kind), ("value", value), ("typology", typology)):
        if not text.isprintable():
            raise CellError(column, "has bytes that are not UTF-8, or control characters")
    try:
        form = normalise(kind, value)
    except InvalidIndicatorError as error:
        raise CellError("value" if kind in KIND_GROUPS else "kind", error.reason) from None
    if not _TYPOLOGY.fullmatch(typology):
        raise CellError(
            "typology",
            f"is one word of a-z, 0-9 and -, at most {MAX_TYPOLOGY_CHARACTERS} long (no free text)",
        )
    if not 1 <= victims < MAX_VICTIMS:
        raise CellError("victims", f"is not between 1 and {MAX_VICTIMS - 1}")
    if last_seen_ms < first_seen_ms:
        raise CellError("last_seen", "is before first_seen")
    return Finding(kind, value, typology, victims, first_seen_ms, last_seen_ms), form


def _read_rows(lines: Sequence[str], header: Sequence[str], now_ms: int) -> IndicatorFile:
    findings: dict[int, Finding] = {}
    rejects: dict[int, CellError] = {}
    first_row: dict[NormalForm, int] = {}
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            finding, form = _read_row(line, header, now_ms)
            if form in first_row:
                raise CellError(
                    "value", f"is the same indicator as in row {first_row[form]}: keep one of them"
                )
        except CellError as error:
            rejects[row] = error
            continue
        first_row[form] = row
        findings[row] = finding
    return IndicatorFile(findings, rejects)


def _read_row(line: str, header: Sequence[str], now_ms: int) -> tuple[Finding, NormalForm]:
    cells = _cells(line)
    if cells is None:
        raise CellError(header[0], "the row is not CSV: a quote is open, or a cell is too long")
    if len(cells) != len(header):
        column = header[min(len(cells), len(header) - 1)]
        raise CellError(column, f"the row has {len(cells)} cells, the header {len(header)}")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    last_seen = _time(row, "last_seen", now_ms)
    return make_finding(
        row["kind"],
        row["value"],
        row["typology"],
        _count(row["victims"]),
        _time(row, "first_seen", last_seen),
        last_seen,
    )


def _cells(line: str) -> list[str] | None:
    """The cells of one line, None if it is not one row of CSV."""
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:
        return None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise CellError("victims", "is not a whole number")
    return int(text)


def _time(row: Mapping[str, str], column: str, default_ms: int) -> int:
    if not row.get(column):
        return default_ms
    try:
        return parse_time_ms(row[column])
    except ValueError as error:
        raise CellError(column, f"is {error}") from None
