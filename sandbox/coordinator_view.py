"""What the coordinator holds at the end of a run, read from its database without changing it.

This is what a curious coordinator could look at: how many labels of which kind, and which tags more than one bank
submitted (equal tags are equal indicators; DESIGN section 2 declares that the coordinator sees this).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DATABASE = "coordinator.sqlite3"
WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class KindView:
    """Labels of one kind. ``tags``: distinct ones; ``tags_of_several``: submitted by more than one bank."""

    kind: str
    labels: int
    tags: int
    tags_of_several: int
    bytes: int


@dataclass(frozen=True)
class CoordinatorView:
    """``deltas``: accepted batches; ``contributions_kept``: encrypted contributions not erased."""

    deltas: int
    kinds: tuple[KindView, ...]
    inquiries: int
    contributions_kept: int
    log_entries: int


@contextmanager
def _reading(directory: Path) -> Iterator[sqlite3.Connection]:
    path = (directory / DATABASE).resolve()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def read_view(directory: Path) -> CoordinatorView:
    """Read the database in a coordinator's data ``directory``, also while it serves."""
    with _reading(directory) as connection:

        def number(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])

        several = dict(
            connection.execute(
                "SELECT kind, COUNT(*) FROM (SELECT kind, tag FROM labels GROUP BY kind, tag"
                " HAVING COUNT(DISTINCT contributor) > 1) GROUP BY kind"
            )
        )
        kinds = tuple(
            KindView(kind, labels, tags, several.get(kind, 0), size)
            for kind, labels, tags, size in connection.execute(
                "SELECT kind, COUNT(*), COUNT(DISTINCT tag), SUM(LENGTH(payload) + LENGTH(signature))"
                " FROM labels GROUP BY kind ORDER BY kind"
            )
        )
        return CoordinatorView(
            deltas=number("SELECT COUNT(*) FROM deltas"),
            kinds=kinds,
            inquiries=number("SELECT COUNT(*) FROM inquiries"),
            contributions_kept=number(
                "SELECT COUNT(*) FROM inquiry_messages WHERE step = 'contribution' AND LENGTH(payload) > 0"
            ),
            log_entries=number("SELECT COUNT(*) FROM log_entries"),
        )


def inquiries_owed(directory: Path, party: str) -> int:
    """How many open inquiries wait for the contribution of ``party``."""
    with _reading(directory) as connection:
        row = connection.execute(
            "SELECT COUNT(*) FROM inquiries i WHERE state IN ('keys', 'contributions') AND NOT EXISTS (SELECT 1"
            " FROM inquiry_messages m WHERE m.inquiry_id = i.inquiry_id AND m.step = 'contribution'"
            " AND m.party = ?)",
            (party,),
        ).fetchone()
        return int(row[0])
