"""Sections on what each party saw, the audit, and the run itself."""

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
from sandbox.report.record import RunRecord
from sandbox.report.traffic import flat, traffic_of
from sandbox.report.units import count_of, logged_requests, seconds, size, text_of


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
                    text_of(row, "peer"),
                    text_of(row, "call"),
                    count_of(row, "requests"),
                    count_of(row, "elements"),
                    size(count_of(row, "bytes_in")),
                    size(count_of(row, "bytes_out")),
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
        _coordinator_table(record),
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
                sum(count_of(r, "requests") for r in answered),
                sum(count_of(r, "elements") for r in answered),
                sum(count_of(r, "requests") for r in asked),
                size(sum(count_of(r, "bytes_in") for r in asked + answered)),
                size(sum(count_of(r, "bytes_out") for r in asked + answered)),
            ]
        )
    sums = table(
        "Members",
        ["party", "requests answered", "blinded points evaluated", "requests made", "received", "sent"],
        rows,
    )
    if record.audit is None:
        return sums
    permitted = [r for r in logged_requests(record.audit) if r.get("decision") != "refused"]
    actions = sorted({text_of(r, "action") for r in permitted})
    kept: list[list[Cell]] = [
        [
            action,
            sum(count_of(r, "requests") for r in permitted if r.get("action") == action),
            sum(count_of(r, "amount") for r in permitted if r.get("action") == action),
        ]
        for action in actions
    ]
    return sums + table(
        "Coordinator: what its log holds of permitted requests (amount: points, sealed labels or cells)",
        ["action", "requests", "amount"],
        kept,
    )


def _coordinator_table(record: RunRecord) -> Markup:
    """What a curious coordinator could look at: sealed labels, and which tags are equal."""
    view = record.coordinator
    if view is None:
        return paragraph("What the coordinator holds: ", Missing(record.why("coordinator")), kind="note")
    traffic = [
        row
        for status in (record.statuses or {}).values()
        for row in traffic_of(status)
        if row.get("direction") == "asked" and row.get("peer") == "coordinator"
    ]
    rows: list[list[Cell]] = [
        [k.kind, k.labels, k.tags, k.tags_of_several, size(k.bytes)] for k in view.kinds
    ]
    return join(
        [
            table(
                "Coordinator: what its database holds of the index",
                ["kind", "sealed labels", "different tags", "tags of more than one bank", "size"],
                rows,
            ),
            paragraph(
                f"It took in {view.deltas:,} batches of labels and {view.inquiries:,} inquiries, received "
                f"{size(sum(count_of(r, 'bytes_out') for r in traffic))} and sent "
                f"{size(sum(count_of(r, 'bytes_in') for r in traffic))}. It cannot open a label, but it sees which "
                "banks submitted equal tags, so hold evidence on the same thing. It still keeps "
                f"{view.contributions_kept:,} encrypted contributions (they are erased when an inquiry closes).",
                kind="note",
            ),
        ]
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
            strong(count_of(audit, "size")),
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
        table("Wall-clock time", ["part", "time"], [[k, seconds(v)] for k, v in timings.items()])
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


def _plain(value: Cell) -> Cell:
    return Markup(f"{value}") if isinstance(value, int) and not isinstance(value, bool) else value
