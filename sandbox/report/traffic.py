"""Requests between the parties, gathered from what each member node counted itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox.report.record import Json

# Calls that wait until there is something to tell: their durations are no latencies.
LONG_POLLS = frozenset({"tasks", "inquiry-status"})


@dataclass(frozen=True)
class CallSummary:
    """One kind of call over all members: how often, how much, how fast (milliseconds; None: nothing to measure).

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

    if call in LONG_POLLS:
        rows = [{**row, "p50_ms": None, "p99_ms": None} for row in rows]
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


@dataclass(frozen=True)
class Operation:
    """A whole operation as a member's own clock saw it: a lookup with all its key holders, an inquiry, a batch scored.

    ``items``: values, cells or rows in all of them; milliseconds.
    """

    party: str
    operation: str
    count: int
    items: int
    p50_ms: float | None
    p99_ms: float | None


def operations_of(statuses: Mapping[str, Json]) -> list[Operation]:
    """The rows of ``latencies`` of all members, by operation; empty where the nodes measured none."""
    found = []
    for party, status in statuses.items():
        rows = status.get("latencies")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, Mapping):
                found.append(
                    Operation(
                        party=party,
                        operation=str(row.get("operation", "?")),
                        count=int(row.get("count") or 0),
                        items=int(row.get("items") or 0),
                        p50_ms=_milliseconds(row, "p50_ms"),
                        p99_ms=_milliseconds(row, "p99_ms"),
                    )
                )
    return sorted(found, key=lambda each: (each.operation, each.party))


def over_banks(found: Sequence[Operation]) -> list[Operation]:
    """One row an operation: medians averaged by how often each bank did it, the slowest bank's percentile."""
    groups: dict[str, list[Operation]] = {}
    for each in found:
        groups.setdefault(each.operation, []).append(each)
    rows = []
    for operation, group in groups.items():
        medians = [(each.p50_ms, each.count) for each in group if each.p50_ms is not None]
        weight = sum(count for _, count in medians)
        slowest = [each.p99_ms for each in group if each.p99_ms is not None]
        rows.append(
            Operation(
                party="",
                operation=operation,
                count=sum(each.count for each in group),
                items=sum(each.items for each in group),
                p50_ms=sum(median * count for median, count in medians) / weight if weight else None,
                p99_ms=max(slowest) if slowest else None,
            )
        )
    return rows


def _milliseconds(row: Json, key: str) -> float | None:
    value = row.get(key)
    return None if value is None else float(value)


def _moment(value: object) -> str:
    """Unix seconds as a time that people read; a text stays what it is."""
    if isinstance(value, int):
        return dt.datetime.fromtimestamp(value, dt.UTC).isoformat(sep=" ", timespec="seconds")
    return str(value)


def counting_of(statuses: Mapping[str, Json]) -> list[tuple[str, str, int]]:
    """(party, since when its counters count, restarts they have seen), for the members that say so."""
    return [
        (party, _moment(status["counting_since"]), int(status.get("restarts") or 0))
        for party, status in statuses.items()
        if status.get("counting_since") is not None
    ]
