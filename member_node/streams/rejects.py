"""What a file's reader refuses: cells by row and column, or the file as a whole. Reports never repeat a cell's content,
so they can be passed on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class EventFileError(ValueError):
    """The file as a whole cannot be read; the message names it and what is missing."""


@dataclass(frozen=True)
class Reject:
    """One bad cell: ``row`` as the module says (``last_row`` for a damaged stretch), file column, reason.

    ``code``: the ``RowCode`` that a live event with this fault is refused with.
    """

    row: int
    column: str
    reason: str
    last_row: int = 0
    code: str = field(default="", compare=False)


def write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """Write the reports as CSV: row, last_row, column, reason."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "last_row", "column", "reason"])
        writer.writerows((each.row, each.last_row or each.row, each.column, each.reason) for each in rejects)
