"""Of an event that was corrected the history holds every judgement; what counts in statistics is the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from member_node.service.decisions import CORRECTED, FRAME


class LastJudged:
    """Tells which rows of some files are an event's last judgement: by journal frame, corrections last within one.

    Made of *all* files of a history, since a correction may lie in the file of another day. Only row groups that hold
    corrections are read for it.
    """

    def __init__(self, files: Sequence[pq.ParquetFile]) -> None:
        found: list[pa.Table] = []
        for place, file in enumerate(files):
            start = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if _may_hold_corrections(file, group):
                    table = file.read_row_group(group, columns=["event_id", FRAME, CORRECTED])
                    at = np.flatnonzero(pc.fill_null(table.column(CORRECTED), False).to_numpy())
                    taken = table.select(["event_id", FRAME]).take(pa.array(at))
                    taken = taken.append_column("file", pa.array(np.full(len(at), place)))
                    found.append(taken.append_column("row", pa.array(at + start)))
                start += rows
        self._ids: pa.Array | None = None
        self._last: dict[pq.ParquetFile, NDArray[np.int64]] = {}
        corrections = pa.concat_tables(found) if found else None
        if corrections is None or not corrections.num_rows:
            return
        file_of, row, frame = (corrections.column(name).to_numpy() for name in ("file", "row", FRAME))
        encoded = corrections.column("event_id").combine_chunks().dictionary_encode()
        event = encoded.indices.to_numpy()
        order = np.lexsort((row, file_of, frame, event))
        last = order[np.append(event[order][1:] != event[order][:-1], True)]
        self._ids = encoded.dictionary
        self._last = {file: np.sort(row[last][file_of[last] == place]) for place, file in enumerate(files)}

    def rows(self, file: pq.ParquetFile, first: int, event_ids: pa.Array) -> NDArray[np.bool_]:
        """Whether each row from ``first`` on of a file counts, bool [n]; ``event_ids``: those of the rows."""
        if self._ids is None:
            return np.ones(len(event_ids), np.bool_)
        repeated = np.asarray(pc.is_in(event_ids, value_set=self._ids).to_numpy(zero_copy_only=False))
        last = self._last[file]
        here = last[np.searchsorted(last, first) : np.searchsorted(last, first + len(event_ids))]
        counts = ~repeated
        counts[here - first] = True
        return counts


def _may_hold_corrections(file: pq.ParquetFile, group: int) -> bool:
    if CORRECTED not in file.schema_arrow.names:
        return False
    column: Any = file.metadata.row_group(group).column(file.schema_arrow.names.index(CORRECTED))
    statistics = column.statistics
    return statistics is None or not statistics.has_min_max or bool(statistics.max)
