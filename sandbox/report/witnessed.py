"""Sections on what crossed between the parties: requests, what each party saw, the audit, the run itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox.report.markup import (
    Cell,
    Markup,
    Missing,
    code,
    details,
    join,
    paragraph,
    section,
    strong,
    table,
)
from sandbox.report.record import Json, RunRecord
from sandbox.report.traffic import calls_asked, flat, traffic_of


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
                _size(c.bytes_out),
                _size(c.bytes_in),
                _ms(c.p50_ms),
                _ms(c.p99_ms),
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
        body,
        _faults(record),
        _asked_table(record),
        _refusals(record),
    )


def _requests(audit: Json | None) -> list[Json]:
    rows = audit.get("requests") if audit else None
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _asked_table(record: RunRecord) -> Markup:
    if record.audit is None:
        return paragraph("Requests in the log: ", Missing(record.why("audit")), kind="note")
    rows: list[list[Cell]] = [
        [
            _text(r, "party"),
            _text(r, "action"),
            _text(r, "subject"),
            _text(r, "purpose"),
            _count(r, "requests"),
            _count(r, "amount"),
        ]
        for r in _requests(record.audit)
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
                rows.append([party, _text(fault, "party"), _text(fault, "what"), _text(fault, "reason")])
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
            _text(r, "party"),
            _text(r, "action"),
            _text(r, "subject"),
            _text(r, "reason"),
            _count(r, "requests"),
        ]
        for r in _requests(record.audit)
        if r.get("decision") == "refused"
    ]
    return table("Refused, from the log", ["party", "action", "about", "reason", "requests"], rows, words=4)


def seen_section(record: RunRecord) -> Markup:
    """What reached each party. Never a value: sizes, counts and names of calls."""
    if record.statuses is None:
        return section("seen", "What each party saw", paragraph(Missing(record.why("statuses")), kind="note"))
    rows: list[list[Cell]] = []
    for party, status in record.statuses.items():
        for row in traffic_of(status):
            rows.append(
                [
                    party,
                    "asked of" if row.get("direction") == "asked" else "answered to",
                    _text(row, "peer"),
                    _text(row, "call"),
                    _count(row, "requests"),
                    _count(row, "elements"),
                    _size(_count(row, "bytes_in")),
                    _size(_count(row, "bytes_out")),
                ]
            )
    own = [
        details(
            f"{party}: its node's own status",
            table(f"Status of {party}", ["what", "value"], [[k, _plain(v)] for k, v in flat(status).items()]),
        )
        for party, status in record.statuses.items()
    ]
    return section(
        "seen",
        "What each party saw",
        paragraph(
            "Bodies that crossed the boundary of each member, as the member counted them. They hold blinded points, "
            "proofs, ciphertexts, sealed labels and signatures; no raw identifier and no transaction."
        ),
        _party_table(record),
        details(
            f"All {len(rows)} pairs of parties and calls",
            table(
                "Requests by party",
                ["party", "direction", "peer", "call", "requests", "elements", "received", "sent"],
                rows,
                words=4,
            ),
        ),
        *own,
    )


def _party_table(record: RunRecord) -> Markup:
    """One row a party: what it answered for others, and, for the coordinator, what its log holds."""
    rows: list[list[Cell]] = []
    for party, status in (record.statuses or {}).items():
        answered = [r for r in traffic_of(status) if r.get("direction") == "answered"]
        asked = [r for r in traffic_of(status) if r.get("direction") == "asked"]
        rows.append(
            [
                party,
                sum(_count(r, "requests") for r in answered),
                sum(_count(r, "elements") for r in answered),
                sum(_count(r, "requests") for r in asked),
                _size(sum(_count(r, "bytes_in") for r in asked + answered)),
                _size(sum(_count(r, "bytes_out") for r in asked + answered)),
            ]
        )
    sums = table(
        "Members",
        ["party", "requests answered", "blinded points evaluated", "requests made", "received", "sent"],
        rows,
    )
    if record.audit is None:
        return sums
    permitted = [r for r in _requests(record.audit) if r.get("decision") != "refused"]
    actions = sorted({_text(r, "action") for r in permitted})
    kept: list[list[Cell]] = [
        [
            action,
            sum(_count(r, "requests") for r in permitted if r.get("action") == action),
            sum(_count(r, "amount") for r in permitted if r.get("action") == action),
        ]
        for action in actions
    ]
    return sums + table(
        "Coordinator: what its log holds of permitted requests (amount: points, sealed labels or cells)",
        ["action", "requests", "amount"],
        kept,
    )


def audit_section(record: RunRecord) -> Markup:
    """The log, verified from files alone."""
    audit = record.audit
    if audit is None:
        return section("audit", "The log", paragraph(Missing(record.why("audit")), kind="note"))
    entries = audit.get("entries")
    inquiries = audit.get("inquiries")
    pinned = audit.get("key_pinned")
    return section(
        "audit",
        "The log",
        paragraph(
            Markup('<span class="good">verified</span>'),
            " offline from the exported files: ",
            strong(_count(audit, "size")),
            " entries under one signed checkpoint",
            "" if pinned else " (the log's key was taken from the export itself: pin it with --key)",
            ".",
        ),
        table("Entries by type", ["type", "entries"], [[k, int(v)] for k, v in entries.items()])
        if isinstance(entries, Mapping)
        else paragraph("Entries by type: ", None),
        table("Inquiries by end", ["state", "inquiries"], [[k, int(v)] for k, v in inquiries.items()])
        if isinstance(inquiries, Mapping)
        else paragraph("Inquiries: ", None),
        paragraph("Root of the tree: ", code(str(audit.get("root", "?"))), kind="wide"),
        paragraph("Verify it again: ", code(record.audit_command)),
    )


def run_section(record: RunRecord) -> Markup:
    """How long it took, what broke, and how to do it again."""
    timings = record.timings
    parts = [
        table("Wall-clock time", ["part", "time"], [[k, _seconds(v)] for k, v in timings.items()])
        if timings is not None
        else paragraph("Times: ", Missing(record.why("timings")), kind="note"),
        _incidents(record.incidents),
        table(
            "Configuration", ["setting", "value"], [[k, _plain(v)] for k, v in record.configuration.items()]
        ),
        paragraph("Repeat it:"),
        Markup(f"<pre>{code(record.command).text}</pre>"),
    ]
    return section("run", "This run, and how to repeat it", *parts)


def _incidents(incidents: Sequence[str]) -> Markup:
    if not incidents:
        return paragraph("Nothing broke during the run.", kind="note")
    lines = "".join(f"<li>{Markup(paragraph(text).text).text}</li>" for text in incidents)
    return join([paragraph("What broke, and how it was mended:"), Markup(f"<ul>{lines}</ul>")])


def _text(row: Json, key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value)


def _count(row: Json, key: str) -> int:
    return int(row.get(key) or 0)


def _plain(value: Cell) -> Cell:
    return Markup(f"{value}") if isinstance(value, int) and not isinstance(value, bool) else value


def _ms(value: float | None) -> Cell:
    return Missing("no requests") if value is None else f"{value:,.1f} ms"


def _seconds(value: float | None) -> Cell:
    if value is None:
        return Missing("did not run")
    return f"{value:,.1f} s" if value < 90 else f"{int(value // 60)} min {value % 60:.0f} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
