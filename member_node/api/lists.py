"""The bank's lists over the bank-internal API. Values travel in bodies only, since addresses are written to logs.

Anybody on the staff may add to block and watch lists; what lets more through takes the role approver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypedDict, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.api.operator import staff_of
from member_node.service.lists import ChangeReport, EntryDraft, ListBook
from member_node.service.staff import Role
from scoring.lists import ListEntry
from scoring.lists_values import ListError

MAX_ENTRIES = 50_000
MAX_SHOWN = 1000
_MAX_MS = 2**53
# Longer ones are refused one by one in the service; these only keep a body bounded.
_MAX_TEXT = 4096
T = TypeVar("T")

Value = Annotated[str, Field(max_length=_MAX_TEXT)] | int
Limit = Annotated[int, Query(ge=1, le=MAX_SHOWN)]
Offset = Annotated[int, Query(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CreateBody(_Body):
    """A new list: ``kind`` is block, allow, watch or exemption; ``entity`` one of the transaction schema's."""

    name: str = Field(max_length=64)
    kind: str = Field(max_length=16)
    entity: str = Field(max_length=32)
    reason: str = Field(max_length=_MAX_TEXT)


class AddBody(_Body):
    """Entries by column: one value each, and for each an expiry (unix milliseconds, null: never), reason and rule.

    A column of one item counts for all values; ``expires_ms``, ``reasons`` and ``rules`` may be left out. ``now_ms`` is
    the business time that expiries are held against (0: the clock).
    """

    values: list[Value] = Field(max_length=MAX_ENTRIES)
    expires_ms: list[Annotated[int, Field(ge=0, le=_MAX_MS)] | None] = Field(
        default=[None], max_length=MAX_ENTRIES
    )
    reasons: list[Annotated[str, Field(max_length=_MAX_TEXT)]] = Field(default=[""], max_length=MAX_ENTRIES)
    rules: list[Annotated[str, Field(max_length=_MAX_TEXT)]] = Field(default=[""], max_length=MAX_ENTRIES)
    reason: str = Field(max_length=_MAX_TEXT)
    entity: str = Field(default="", max_length=32)
    now_ms: int = Field(default=0, ge=0, le=_MAX_MS)


class RemoveBody(_Body):
    """Values to take off; ``rule`` null: whatever rule their entries name."""

    values: list[Value] = Field(max_length=MAX_ENTRIES)
    rule: str | None = Field(default=None, max_length=_MAX_TEXT)
    reason: str = Field(max_length=_MAX_TEXT)


class ExpiredBody(_Body):
    """Entries that expired at or before a time are taken off."""

    before_ms: int = Field(ge=0, le=_MAX_MS)
    reason: str = Field(max_length=_MAX_TEXT)


class FindBody(_Body):
    """One value to find."""

    value: Value


class _Author(TypedDict):
    author: str
    may_loosen: bool


def list_router(book: ListBook, party: str) -> APIRouter:
    """The bank-internal routes of the lists; the caller puts them behind the operator's door."""
    router = APIRouter()

    def run(verb: Callable[[], T]) -> T:
        try:
            return verb()
        except ListError as error:
            name = {"unknown-list": "not-found", "needs-approver": "not-permitted"}.get(
                error.code, "operator"
            )
            raise RequestError(name, f"{error.code}: {error.field}: {error.reason}", party) from error

    def who(request: Request) -> _Author:
        staff = staff_of(request)
        return _Author(author=staff.name, may_loosen=staff.has(Role.APPROVER))

    @router.get("/lists")
    def lists() -> dict[str, Any]:
        """All lists."""
        return {"lists": [asdict(record) | {"entries": entries} for record, entries in book.records()]}

    @router.post("/lists")
    def create(body: CreateBody, request: Request) -> dict[str, Any]:
        """Make an empty list."""
        by = who(request)
        return asdict(run(lambda: book.create(body.name, body.kind, body.entity, reason=body.reason, **by)))

    @router.get("/lists/{name}")
    def show(name: str, limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        """The newest entries of a list."""
        entries = run(lambda: book.newest(name, limit, offset))
        record, count = next(each for each in book.records() if each[0].name == name)
        return asdict(record) | {"entries": count, "newest": [_entry_row(entry) for entry in entries]}

    @router.get("/lists/{name}/changes")
    def changes(name: str, limit: Limit = 100, offset: Offset = 0) -> dict[str, Any]:
        """What was done to a list, newest first."""
        return {"changes": [asdict(record) for record in run(lambda: book.changes(name, limit, offset))]}

    @router.post("/lists/{name}/entries")
    def add(name: str, body: AddBody, request: Request) -> dict[str, Any]:
        """Put entries on a list: one, or up to fifty thousand in one transaction."""
        by, n = who(request), len(body.values)
        expires = _column(body.expires_ms, n, "expires_ms", party)
        reasons = _column(body.reasons, n, "reasons", party)
        rules = _column(body.rules, n, "rules", party)
        drafts = [
            EntryDraft(value, None if at_ms is None else at_ms * 1000, reason, rule)
            for value, at_ms, reason, rule in zip(body.values, expires, reasons, rules, strict=True)
        ]
        now_us = body.now_ms * 1000 or None
        return _report_row(
            run(lambda: book.add(name, drafts, reason=body.reason, now_us=now_us, entity=body.entity, **by))
        )

    @router.post("/lists/{name}/removals")
    def remove(name: str, body: RemoveBody, request: Request) -> dict[str, Any]:
        """Take values off a list."""
        by = who(request)
        return _report_row(
            run(lambda: book.remove(name, body.values, rule=body.rule, reason=body.reason, **by))
        )

    @router.post("/lists/{name}/expired")
    def drop_expired(name: str, body: ExpiredBody, request: Request) -> dict[str, Any]:
        """Take expired entries off a list."""
        author = staff_of(request).name
        return _report_row(
            run(lambda: book.drop_expired(name, body.before_ms * 1000, reason=body.reason, author=author))
        )

    @router.post("/lists/{name}/find")
    def find(name: str, body: FindBody) -> dict[str, Any]:
        """The entries of one value."""
        return {"entries": [_entry_row(entry) for entry in run(lambda: book.find(name, body.value))]}

    return router


def _column(items: Sequence[T], n: int, name: str, party: str) -> Sequence[T]:
    if len(items) == n:
        return items
    if len(items) != 1:
        raise RequestError("malformed", f"{name}: has {len(items)} items for {n} values", party)
    return list(items) * n


def _report_row(report: ChangeReport) -> dict[str, Any]:
    return asdict(report) | {"refused": [asdict(refusal) for refusal in report.refused]}


def _entry_row(entry: ListEntry) -> dict[str, Any]:
    return {
        "value": entry.value,
        "rule": entry.rule,
        "expires_ms": None if entry.expires_us is None else entry.expires_us // 1000,
        "reason": entry.reason,
        "author": entry.author,
        "added_ms": entry.added_us // 1000,
    }
