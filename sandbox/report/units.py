"""Fields of the nodes' JSON and how quantities are written in the report."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.report.markup import Cell, Missing
from sandbox.report.record import Json


def logged_requests(audit: Json | None) -> list[Json]:
    """The rows of an audit that count requests."""
    rows = audit.get("requests") if audit else None
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def text_of(row: Json, key: str) -> str:
    """One field as text; empty where it is missing."""
    value = row.get(key)
    return "" if value is None else str(value)


def count_of(row: Json, key: str) -> int:
    """One field as a whole number; 0 where it is missing."""
    return int(row.get(key) or 0)


def milliseconds(value: float | None) -> Cell:
    """A latency."""
    if value is None:
        return Missing("no requests")
    return f"{value:,.1f} ms" if value >= 1 else f"{value:.3f} ms"


def seconds(value: float | None) -> Cell:
    """A duration."""
    if value is None:
        return Missing("did not run")
    return f"{value:,.1f} s" if value < 90 else f"{int(value // 60)} min {value % 60:.0f} s"


def size(count: int) -> str:
    """A number of bytes."""
    rest = float(count)
    for unit in ("B", "kB", "MB"):
        if rest < 1000:
            return f"{rest:,.0f} {unit}" if unit == "B" else f"{rest:,.1f} {unit}"
        rest /= 1000
    return f"{rest:,.2f} GB"
