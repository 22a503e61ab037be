"""What an audit says: who asked what, why, how often, and what was refused."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from governance.log.entries import (
    DeltaEntry,
    Entry,
    EvaluationTotalsEntry,
    ExportEntry,
    InquiryIntentEntry,
    InquiryRefusalEntry,
    InquiryVetoEntry,
    ReadsEntry,
    RefusalEntry,
)

READ_SUBJECTS = {"mirror": "the index", "read-log": "log entries"}
_Key = tuple[str, str, str, str, str, str]


class RequestCount(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of ``party`` of one sort.

    ``action``: evaluate, contribute, mirror, read-log, inquire, veto, export, or what a refusal names. ``subject``:
    kind group, kinds, what was read, or template and data set. ``decision``: permitted or refused. ``amount``: elements
    evaluated (each lookup counts at every key holder that answered it), labels contributed or cells asked for.
    """

    party: str
    action: str
    subject: str
    purpose: str
    decision: str
    reason: str
    requests: int
    amount: int


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """A verified log. Times in unix seconds; ``key_pinned`` False means that only the export vouches for its key.

    ``clock_steps``: entries dated before an earlier one. ``inquiries``: how many ended in which state.
    """

    origin: str
    size: int
    root: str
    checkpoint_time: int
    key_pinned: bool
    first_at: int
    last_at: int
    clock_steps: int
    members: list[str]
    policy_epoch: int | None
    entries: dict[str, int]
    inquiries: dict[str, int]
    requests: list[RequestCount]

    def refusals(self) -> int:
        """How many requests were refused."""
        return sum(row.requests for row in self.requests if row.decision == "refused")

    def to_json(self) -> bytes:
        """Sorted JSON for machines."""
        return msgspec.json.encode(self, order="sorted")

    def to_text(self) -> str:
        """A few lines and a table for people."""
        believed = "pinned" if self.key_pinned else "as named in the export: pin it with --key"
        lines = [
            f"log        {self.origin}, {self.size} entries, root {self.root[:16]}..., key {believed}",
            f"members    {', '.join(self.members)}",
            f"entries    {', '.join(f'{name} {count}' for name, count in self.entries.items())}",
            f"inquiries  {', '.join(f'{name} {count}' for name, count in self.inquiries.items()) or 'none'}",
        ]
        if self.clock_steps:
            lines.append(f"warning    {self.clock_steps} entries are dated before an earlier entry")
        header = ("party", "action", "subject", "purpose", "decision", "requests", "amount")
        table = [header] + [
            (
                row.party,
                row.action,
                row.subject,
                row.purpose,
                f"{row.decision}: {row.reason}" if row.reason else row.decision,
                str(row.requests),
                str(row.amount),
            )
            for row in self.requests
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        lines.append("")
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table
        ]
        return "\n".join(_printable(line.rstrip()) for line in lines) + "\n"


def _printable(line: str) -> str:
    """Refused requests are logged as they were claimed: no such text may steer a terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line
    )


class RequestTally:
    """Adds up entries into :class:`RequestCount` rows."""

    def __init__(self) -> None:
        self._counts: defaultdict[_Key, list[int]] = defaultdict(lambda: [0, 0])

    def count(self, entry: Entry) -> None:
        """Take ``entry`` into account; entries that are no request change nothing."""
        match entry:
            case EvaluationTotalsEntry():
                for count in entry.counts:
                    decision = "refused" if count.refusal else "permitted"
                    subject = f"{count.kind_group} ({count.quota})"
                    key = (count.caller, "evaluate", subject, count.purpose, decision, count.refusal)
                    self._add(key, count.requests, count.elements)
            case DeltaEntry():
                key = (
                    entry.contributor,
                    "contribute",
                    " ".join(entry.kinds),
                    entry.purpose,
                    "permitted",
                    "",
                )
                self._add(key, 1, entry.labels)
            case InquiryIntentEntry():
                subject = f"{entry.template} over {entry.dataset}"
                self._add(
                    (entry.requester, "inquire", subject, entry.purpose, "permitted", ""), 1, entry.cells
                )
            case InquiryRefusalEntry():
                subject = f"{entry.template} over {entry.dataset}"
                self._add((entry.requester, "inquire", subject, entry.purpose, "refused", entry.reason), 1, 0)
            case InquiryVetoEntry():
                self._add((entry.member, "veto", "an inquiry", "", "permitted", entry.reason), 1, 0)
            case RefusalEntry():
                key = (entry.party, entry.action, entry.resource, entry.purpose, "refused", entry.reason)
                self._add(key, entry.requests, 0)
            case ReadsEntry():
                subject = READ_SUBJECTS.get(entry.action, entry.action)
                key = (entry.party, entry.action, subject, entry.purpose, "permitted", "")
                self._add(key, entry.requests, 0)
            case ExportEntry():
                self._add(
                    (entry.reader, "export", "the whole log", "oversight", "permitted", ""), 1, entry.size
                )

    def rows(self) -> list[RequestCount]:
        """All rows, sorted by party, action, subject, purpose, decision and reason."""
        return [
            RequestCount(
                party=party,
                action=action,
                subject=subject,
                purpose=purpose,
                decision=decision,
                reason=reason,
                requests=requests,
                amount=amount,
            )
            for (party, action, subject, purpose, decision, reason), (requests, amount) in sorted(
                self._counts.items()
            )
        ]

    def _add(self, key: _Key, requests: int, amount: int) -> None:
        cell = self._counts[key]
        cell[0] += requests
        cell[1] += amount
