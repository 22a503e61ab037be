"""The section on requests: lookups, sums and refusals, with latencies."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.report.markup import Cell, Markup, Missing, details, paragraph, section, strong, table
from sandbox.report.record import RunRecord
from sandbox.report.traffic import LONG_POLLS, Operation, calls_asked, counting_of, operations_of, over_banks
from sandbox.report.units import count_of, logged_requests, milliseconds, size, text_of


def requests_section(record: RunRecord) -> Markup:
    """Lookups, aggregations and everything else that was asked, with latencies; refusals by reason."""
    if record.statuses is None:
        body = paragraph(Missing(record.why("statuses")), kind="note")
    else:
        rows: list[list[Cell]] = [
            [
                c.call,
                c.requests,
                c.errors,
                c.elements,
                size(c.bytes_out),
                size(c.bytes_in),
                *(_latency(c.call, value) for value in (c.p50_ms, c.p99_ms)),
            ]
            for c in calls_asked(record.statuses)
        ]
        body = table(
            "What members asked of other parties",
            [
                "call",
                "requests",
                "errors",
                "blinded elements",
                "sent",
                "received",
                "median",
                "99th percentile",
            ],
            rows,
        )
    return section(
        "requests",
        "Lookups, sums and refusals",
        _operations(record),
        body,
        _counting(record),
        _faults(record),
        _asked_table(record),
        _refusals(record),
    )


def _operations(record: RunRecord) -> Markup:
    found = operations_of(record.statuses or {})
    if not found:
        return paragraph("Whole operations: ", Missing("the nodes measured none"), kind="note")
    measures = ["times", "values, cells or rows", "median", "99th percentile"]
    return table(
        "Whole operations, as banks waited for them (median: mean over the banks; percentile: the slowest bank's)",
        ["operation", *measures],
        [[o.operation, *_measured(o)] for o in over_banks(found)],
    ) + details(
        "Each bank by itself",
        table(
            "Whole operations by bank",
            ["operation", "bank", *measures],
            [[o.operation, o.party, *_measured(o)] for o in found],
            words=2,
        ),
    )


def _measured(found: Operation) -> list[Cell]:
    return [found.count, found.items, milliseconds(found.p50_ms), milliseconds(found.p99_ms)]


def _counting(record: RunRecord) -> Markup:
    """Since when the counters above count: a node that was killed may have lost what it had counted."""
    restarted = [
        f"{party} since {since}, over {restarts} {'restart' if restarts == 1 else 'restarts'}"
        for party, since, restarts in counting_of(record.statuses or {})
        if restarts
    ]
    if restarted:
        text = f"Requests are counted by each member: {'; '.join(restarted)}; durations only since its last start."
        return paragraph(text, kind="note")
    if record.incidents and not counting_of(record.statuses or {}):
        return paragraph("A member that was started again counts its requests from then on.", kind="note")
    return Markup("")


def _latency(call: str, value: float | None) -> Cell:
    return (
        Markup('<span class="missing">waits for news</span>') if call in LONG_POLLS else milliseconds(value)
    )


def _asked_table(record: RunRecord) -> Markup:
    if record.audit is None:
        return paragraph("Requests in the log: ", Missing(record.why("audit")), kind="note")
    rows: list[list[Cell]] = [
        [
            text_of(r, "party"),
            text_of(r, "action"),
            text_of(r, "subject"),
            text_of(r, "purpose"),
            count_of(r, "requests"),
            count_of(r, "amount"),
        ]
        for r in logged_requests(record.audit)
        if r.get("decision") != "refused"
    ]
    return table(
        "Permitted, from the log: who asked what, why and how often",
        ["party", "action", "about", "purpose", "requests", "amount"],
        rows,
        words=4,
    )


def _faults(record: RunRecord) -> Markup:
    rows: list[list[Cell]] = []
    for party, status in (record.statuses or {}).items():
        found = status.get("faults")
        for fault in found if isinstance(found, list) else []:
            if isinstance(fault, Mapping):
                rows.append(
                    [party, text_of(fault, "party"), text_of(fault, "what"), text_of(fault, "reason")]
                )
    return table(
        "What members found wrong with another party",
        ["found by", "at fault", "what", "reason"],
        rows,
        words=4,
    )


def _refusals(record: RunRecord) -> Markup:
    if record.audit is None:
        return paragraph("Refusals: ", Missing(record.why("audit")), kind="note")
    rows: list[list[Cell]] = [
        [
            text_of(r, "party"),
            text_of(r, "action"),
            text_of(r, "subject"),
            text_of(r, "reason"),
            count_of(r, "requests"),
        ]
        for r in logged_requests(record.audit)
        if r.get("decision") == "refused"
    ]
    refused = table(
        "Refused, from the log", ["party", "action", "about", "reason", "requests"], rows, words=4
    )
    if record.probe is None:
        return refused
    return refused + paragraph(
        "One of these is the sandbox's own probe: at the end of the run it asked, with ",
        strong(record.probe.party),
        f"'s key, for {record.probe.asked}. The node itself would not have asked; the coordinator ",
        "refused, as it must, and logged it." if record.probe.refused else "should have refused and did not.",
        kind="note",
    )
