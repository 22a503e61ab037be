"""One file of events becomes each bank's own stream: every cell checked, bad rows named, good rows dealt.

Only the sandbox ever holds everybody's rows; each bank's process is given its own file and nothing else.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from member_node.streams.files import EventFile, EventFileError, Reject, read_events, write_rejects
from member_node.streams.mapping import MappingError, StreamMapping
from sandbox.parties import bank_id
from scoring.schema import CHANNELS

EPOCH_DAY = dt.date(1970, 1, 1)
DAY_US = 86_400_000_000
REJECTS_FILE = "rejects.csv"


@dataclass(frozen=True)
class Source:
    """The good rows of a file, by time. ``frame``: the mapped columns under the file's own names, times in UTC.

    ``split`` int64 [n]: the key that deals rows to banks; ``day`` int64 [n]: days since 1970-01-01 in the data set's
    zone; ``rows``: rows in the file, of which ``rejected`` were refused for the reasons in ``rejects``.
    """

    frame: pl.DataFrame
    split: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]
    rows: int
    rejected: int = 0
    rejects: tuple[Reject, ...] = ()

    def owner(self, members: int) -> npt.NDArray[np.int64]:
        """The bank of each row: the split key modulo the number of members; int64 [n]."""
        return np.mod(self.split, members)

    def first_days(self, days: int) -> Source:
        """Only the rows of the first ``days`` days; ``rows`` and ``rejects`` stay those of the file."""
        kept = self.day < self.day[0] + days
        return replace(self, frame=self.frame.filter(kept), split=self.split[kept], day=self.day[kept])


@dataclass(frozen=True)
class DealtStream:
    """``files``: one Parquet a bank, time-ordered; ``directory``: public ids, one a line; days are inclusive."""

    files: list[Path]
    directory: Path
    first_day: dt.date
    last_day: dt.date
    events: int


def require_parts(mapping: StreamMapping) -> None:
    """Refuse a mapping that a bank could replay but a sandbox cannot deal or measure."""
    missing = [
        name
        for name, present in (
            ("[columns] customer", "customer" in mapping.columns),
            ("[labels]", mapping.label_column),
            ("[split]", mapping.split_column),
            ("[directory]", mapping.directory_entity),
            ("[evaluation]", mapping.evaluation),
        )
        if not present
    ]
    if missing:
        raise MappingError(f"mapping {mapping.name}: a sandbox also needs {', '.join(missing)}")


def read_source(path: Path, mapping: StreamMapping) -> Source:
    """Read and check a Parquet or CSV file of all banks.

    Raises :class:`~member_node.streams.files.EventFileError` when the file as a whole is of no use; single bad rows
    are set aside as rejects that give row (CSV: line), column and reason.
    """
    read = read_events(path, mapping, with_split=True)
    if not read.events.num_rows:
        first = read.rejects[0] if read.rejects else None
        why = f"; the first: row {first.row}, {first.column} {first.reason}" if first else ""
        raise EventFileError(f"{path}: none of its {read.rows:,} rows can be used{why}")
    assert read.split is not None
    times = np.asarray(read.events.column("time_us").to_numpy(), dtype=np.int64)
    return Source(
        frame=_frame(read, mapping),
        split=read.split,
        day=mapping.day_of(times),
        rows=read.rows,
        rejected=read.rejected,
        rejects=read.rejects,
    )


def _frame(read: EventFile, mapping: StreamMapping) -> pl.DataFrame:
    """What was read, under the file's column names, so that a bank reads it back through the same mapping."""
    values = pl.from_arrow(read.events)
    assert isinstance(values, pl.DataFrame)
    columns = {mapping.columns[name]: values.get_column(name) for name in mapping.entities}
    for name in ("event_id", "amount"):
        columns[mapping.columns[name]] = values.get_column(name)
    time = values.get_column("time_us").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    columns[mapping.columns["time"]] = time
    if "channel" in mapping.columns:
        words = {word: int(channel) for word, channel in CHANNELS.items()}
        words |= {word: int(CHANNELS[meaning]) for word, meaning in mapping.channels.items()}
        spelled = {code: word for word, code in words.items()}
        column = values.get_column("channel").replace_strict(spelled, return_dtype=pl.String)
        columns[mapping.columns["channel"]] = column
    known = pl.Series(np.maximum(read.fraud, 0))
    columns[mapping.label_column] = pl.select(pl.when(pl.Series(read.fraud >= 0)).then(known)).to_series()
    return pl.DataFrame([column.alias(name) for name, column in columns.items()])


def report_rejects(source: Source, out: Path) -> list[str]:
    """Write ``rejects.csv`` into ``out`` if there are any; the lines that tell the operator of them."""
    if not source.rejects:
        return []
    write_rejects(source.rejects, out / REJECTS_FILE)
    lines = [f"{source.rejected:,} of {source.rows:,} rows refused, all in {out / REJECTS_FILE}:"]
    for each in source.rejects[:5]:
        rows = f"row {each.row}" if each.last_row <= each.row else f"rows {each.row} to {each.last_row}"
        lines.append(f"  {rows}, {each.column}: {each.reason}")
    if len(source.rejects) > 5:
        lines.append(f"  and {len(source.rejects) - 5:,} more")
    return lines


def deal(
    source: Source, mapping: StreamMapping, members: int, out: Path, *, directory: Path | None = None
) -> DealtStream:
    """Split ``source`` by its key (modulo ``members``) into one file a bank below ``out``.

    ``directory``: the public directory's file; without one it is made of the ids that occur.
    """
    out.mkdir(parents=True, exist_ok=True)
    owner = source.owner(members)
    files = []
    for bank in range(members):
        path = out / f"{bank_id(bank)}.parquet"
        source.frame.filter(owner == bank).write_parquet(path, compression="zstd")
        files.append(path)
    if directory is None:
        directory = out / f"{mapping.directory_dataset}.txt"
        column = mapping.columns[mapping.directory_entity]
        ids = source.frame.get_column(column).drop_nulls().cast(pl.String).unique().sort()
        directory.write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")
    first, last = (EPOCH_DAY + dt.timedelta(int(source.day[at])) for at in (0, -1))
    return DealtStream(
        files=files, directory=directory, first_day=first, last_day=last, events=source.frame.height
    )


def day_start_ms(mapping: StreamMapping, day: dt.date) -> int:
    """When ``day`` begins in the data set's zone, unix milliseconds."""
    start = np.array([(day - EPOCH_DAY).days * DAY_US], dtype=np.int64)
    return int((start - mapping.offset_us(start))[0]) // 1000
