"""The bank's scored history: one Parquet file per journal frame, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq


class HistoryStore:
    """Files ``NNNNNNNNNN.parquet`` below a directory, named by the journal frame whose events they hold.

    Columns: event_id, time_us, channel, amount, every mapped entity as it came; verdict and rule (with the
    consortium) and verdict_alone and rule_alone (the same rules with the bank's own labels and counts only); per
    indicator kind {kind}_victims_own, {kind}_victims_all, {kind}_labels; the features; the consortium's counts;
    degraded. The truth about fraud is never in it: see ``storage.outcomes``.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        for leftover in directory.glob("*.part"):
            leftover.unlink()

    def has(self, sequence: int) -> bool:
        """Whether the frame's verdicts were written."""
        return self._path(sequence).exists()

    def write(self, sequence: int, table: pa.Table) -> Path:
        """Write one frame's verdicts; a file that exists is left as it is."""
        path = self._path(sequence)
        if path.exists():
            return path
        part = path.with_suffix(".part")
        pq.write_table(table, part, compression="zstd")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
        return path

    def files(self) -> list[Path]:
        """All files in the order of their frames."""
        return sorted(self._directory.glob("*.parquet"))

    def rows(self) -> int:
        """Scored events so far."""
        return sum(pq.ParquetFile(path).metadata.num_rows for path in self.files())

    def find(self, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """``columns`` of the events with these ids (as text), in no particular order."""
        wanted = pa.array(event_ids, type=pa.string())
        tables = []
        for batch in self._scan(["event_id", *columns]):
            ids = pc.cast(batch.column("event_id"), pa.string())
            found = batch.filter(pc.is_in(ids, value_set=wanted))
            if found.num_rows:
                tables.append(pa.Table.from_batches([found]))
        if not tables:
            return pa.table({name: pa.array([], type=pa.string()) for name in ("event_id", *columns)})
        return pa.concat_tables(tables, promote_options="default")

    def _scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        files = self.files()
        if files:
            yield from ds.dataset(files, format="parquet").to_batches(columns=list(dict.fromkeys(columns)))

    def _path(self, sequence: int) -> Path:
        return self._directory / f"{sequence:010d}.parquet"
