"""A CSV or Parquet file of list entries: value[, expires, reason, rule]. Bad rows never cost good ones.

Rows of CSV are numbered by line (the header is line 1), rows of Parquet from 1. No reason repeats a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from member_node.command_line import CommandError, parse_time_ms

REQUIRED, OPTIONAL = "value", ("expires", "reason", "rule")
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class ListFile:
    """Good rows by column (``rows``: their numbers in the file) and what is wrong with the others.

    ``expires_ms`` in unix milliseconds, None: never; ``rejects``: (row, column, reason).
    """

    rows: list[int]
    values: list[str] = field(repr=False)
    expires_ms: list[int | None]
    reasons: list[str]
    rules: list[str]
    rejects: list[tuple[int, str, str]]


def read_list_file(path: Path) -> ListFile:
    """Read ``path``; raises :class:`CommandError` if it is no such file at all."""
    # Loads polars, which no other command of lists needs.
    import polars as pl

    parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandError(f"{path}: larger than {MAX_FILE_BYTES} bytes: split it")
        frame = (
            pl.read_parquet(path) if parquet else pl.read_csv(path, infer_schema=False, encoding="utf8-lossy")
        )
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except pl.exceptions.PolarsError as error:
        # Its text may quote the file, so it is not passed on.
        raise CommandError(f"{path}: is not {'Parquet' if parquet else 'CSV with one header'}") from error
    frame = frame.rename({name: name.strip() for name in frame.columns})
    if REQUIRED not in frame.columns:
        raise CommandError(f"{path}: there is no column {REQUIRED}")
    if unknown := sorted(set(frame.columns) - {REQUIRED, *OPTIONAL}):
        raise CommandError(f"{path}: there is the unknown column {unknown[0]!r}")
    columns = {name: _texts(frame, name, path) for name in (REQUIRED, *OPTIONAL)}
    return _checked(columns, first=1 if parquet else 2)


def _texts(frame: object, name: str, path: Path) -> list[str]:
    import polars as pl

    assert isinstance(frame, pl.DataFrame)
    if name not in frame.columns:
        return [""] * frame.height
    column = frame.get_column(name)
    kind = column.dtype
    if isinstance(kind, pl.Datetime):
        column = column.dt.strftime("%Y-%m-%dT%H:%M:%S" + ("%:z" if kind.time_zone else ""))
    elif not (kind == pl.String or kind.is_integer() or kind in (pl.Categorical, pl.Date, pl.Null)):
        raise CommandError(f"{path}: the column {name} holds {kind}, not texts, integers or times")
    return [str(text) for text in column.cast(pl.String).str.strip_chars().fill_null("").to_list()]


def _checked(columns: dict[str, list[str]], *, first: int) -> ListFile:
    held = ListFile([], [], [], [], [], [])
    times: dict[str, int | None] = {"": None}
    for row, value in enumerate(columns[REQUIRED]):
        expires = columns["expires"][row]
        if not value:
            held.rejects.append((row + first, REQUIRED, "is empty"))
            continue
        if expires not in times:
            try:
                times[expires] = parse_time_ms(expires)
            except ValueError as error:
                held.rejects.append((row + first, "expires", f"is {error}"))
                continue
        held.rows.append(row + first)
        held.values.append(value)
        held.expires_ms.append(times[expires])
        held.reasons.append(columns["reason"][row])
        held.rules.append(columns["rule"][row])
    return held
