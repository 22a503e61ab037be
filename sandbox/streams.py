"""Deals one stream of events to the banks: who sees which rows, and the public directory all share.

Only the sandbox ever holds everybody's rows; each bank's process is given its own file and nothing else.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from member_node.streams.mapping import StreamMapping


@dataclass(frozen=True)
class DealtStream:
    """``files``: one Parquet a bank, time-ordered; ``directory``: public ids, one a line; days are inclusive."""

    files: list[Path]
    directory: Path
    first_day: dt.date
    last_day: dt.date
    events: int


def deal(
    events: pl.DataFrame, mapping: StreamMapping, members: int, out: Path, *, directory: Path | None = None
) -> DealtStream:
    """Split ``events`` by the mapping's split column (integers: value modulo ``members``) below ``out``.

    ``directory``: the public directory's file; without one it is made of the ids that occur.
    """
    out.mkdir(parents=True, exist_ok=True)
    time = mapping.columns["time"]
    owner = pl.col(mapping.split_column)
    if not events.schema[mapping.split_column].is_integer():
        raise ValueError(
            f"split column {mapping.split_column!r} must hold integers, not {events.schema[mapping.split_column]}"
        )
    files = []
    for bank in range(members):
        path = out / f"bank-{chr(ord('a') + bank)}.parquet"
        events.filter(owner % members == bank).write_parquet(path, compression="zstd")
        files.append(path)
    if directory is None:
        directory = out / f"{mapping.directory_dataset}.txt"
        column = mapping.columns[mapping.directory_entity]
        ids = events.get_column(column).drop_nulls().cast(pl.String).unique().sort()
        directory.write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")
    first, last = events.select(pl.col(time).min().alias("first"), pl.col(time).max().alias("last")).row(0)
    return DealtStream(
        files=files, directory=directory, first_day=first.date(), last_day=last.date(), events=events.height
    )
