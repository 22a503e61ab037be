"""Requests between the parties, gathered from what each member node counted itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sandbox.report.record import Json


@dataclass(frozen=True)
class CallSummary:
    """One kind of call over all members: how often, how much, how fast (milliseconds).

    ``p50_ms``: mean of the members' medians weighted by their requests. ``p99_ms``: the slowest member's.
    """

    call: str
    requests: int
    errors: int
    elements: int
    bytes_out: int
    bytes_in: int
    p50_ms: float | None
    p99_ms: float | None


def traffic_of(status: Json) -> list[Json]:
    """The rows of ``traffic`` in one status, empty where it has none."""
    rows = status.get("traffic")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def calls_asked(statuses: Mapping[str, Json]) -> list[CallSummary]:
    """What members asked of other parties, by call."""
    groups: dict[str, list[Json]] = {}
    for status in statuses.values():
        for row in traffic_of(status):
            if row.get("direction") == "asked":
                groups.setdefault(str(row.get("call", "?")), []).append(row)
    return [_summary(call, rows) for call, rows in sorted(groups.items())]


def _summary(call: str, rows: list[Json]) -> CallSummary:
    def total(field: str) -> int:
        return sum(int(row.get(field) or 0) for row in rows)

    medians = [(float(r["p50_ms"]), int(r.get("requests") or 0)) for r in rows if r.get("p50_ms") is not None]
    weight = sum(requests for _, requests in medians)
    slowest = [float(r["p99_ms"]) for r in rows if r.get("p99_ms") is not None]
    return CallSummary(
        call=call,
        requests=total("requests"),
        errors=total("errors"),
        elements=total("elements"),
        bytes_out=total("bytes_out"),
        bytes_in=total("bytes_in"),
        p50_ms=sum(median * requests for median, requests in medians) / weight if weight else None,
        p99_ms=max(slowest) if slowest else None,
    )


def flat(status: Json, prefix: str = "") -> dict[str, str | int | float]:
    """Numbers and short texts of a nested status under dotted names, without its traffic rows and other lists."""
    found: dict[str, str | int | float] = {}
    for key, value in status.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 80):
            found[name] = value
    return found
