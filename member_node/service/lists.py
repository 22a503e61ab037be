"""The bank's lists while the node runs: a snapshot for every batch, changes by staff, all of it on disk first.

A change is in force from the first batch that begins after it was answered. No value of an entry is in a log line or
in the text of an error.

What lets more through takes an approver (``may_loosen``): a new list, entries of allow and exemption lists, and taking
off or shortening those of block and watch lists. Whoever could do that alone could clear themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from member_node.storage.lists import ChangeRecord, ListRecord, ListStore
from scoring.hashing import DEFAULT_KEY
from scoring.lists import (
    EVERY_RULE,
    FOREVER_US,
    MAX_LISTS,
    ListEntry,
    ListKind,
    ListSet,
    ListTable,
    empty_list,
)
from scoring.lists_table import ABSENT
from scoring.lists_values import ListError, list_expiry, list_value

MAX_REASON = 500
MAX_RULE = 64
# Where a case that ends with "genuine" clears its customer; made when it is first needed.
CLEARED = "cleared_customers"
MAX_CLEARED_US = 90 * 86_400_000_000
_LOOSENING = frozenset({ListKind.ALLOW, ListKind.EXEMPTION})


@dataclass(frozen=True)
class EntryDraft:
    """An entry as it is asked for. ``value``: text or integer; ``reason`` "": that of the whole change."""

    value: object = field(repr=False)
    expires_us: int | None = None
    reason: str = ""
    rule: str = EVERY_RULE


@dataclass(frozen=True)
class EntryRefusal:
    """Why the draft at ``row`` (from 0) was left out; never says its value."""

    row: int
    code: str
    field: str
    reason: str


@dataclass(frozen=True)
class ChangeReport:
    """What a change did: entries new to the list, with another expiry than before, there already as they are, given
    twice (the first counts), removed; and the drafts that were refused."""

    added: int = 0
    renewed: int = 0
    known: int = 0
    duplicates: int = 0
    removed: int = 0
    refused: tuple[EntryRefusal, ...] = ()


class ListBook:
    """All lists of one bank."""

    def __init__(
        self, store: ListStore, clock_us: Callable[[], int], *, hash_key: bytes = DEFAULT_KEY
    ) -> None:
        """Load the lists; ``hash_key`` is the one the bank's stream keys its entities under."""
        self._store = store
        self._clock_us = clock_us
        self._hash_key = hash_key
        self._writing = threading.Lock()
        self._counts = store.counts()
        self._current = ListSet(self._load(record) for record in store.lists())

    def snapshot(self) -> ListSet:
        """The lists in force now: one attribute, to be read once a batch."""
        return self._current

    def create(
        self, name: str, kind: str, entity: str, *, reason: str, author: str, may_loosen: bool = False
    ) -> ListRecord:
        """Make an empty list. Raises ListError: ``bad-name``, ``unknown-kind``, ``wrong-entity``, ``list-exists``...

        Every list costs every event a look and cannot be taken away again, so it needs an approver.
        """
        if kind not in tuple(ListKind):
            raise ListError("unknown-kind", "kind", f"a list is one of {', '.join(ListKind)}")
        table = empty_list(name, ListKind(kind), entity, hash_key=self._hash_key)
        _words(reason, author)
        _check_approver(may_loosen, "a new list")
        with self._writing:
            if any(each.name == name for each in self._current.tables):
                raise ListError("list-exists", "name", "there is a list of that name")
            if len(self._current) >= MAX_LISTS:
                raise ListError("too-many-lists", "name", f"there are {MAX_LISTS} lists")
            record = ListRecord(name, kind, entity, reason, author, self._clock_us())
            self._store.create(record)
            self._current = self._current.with_table(table)
        return record

    def add(
        self,
        name: str,
        drafts: Sequence[EntryDraft],
        *,
        reason: str,
        author: str,
        now_us: int | None = None,
        entity: str = "",
        may_loosen: bool = False,
    ) -> ChangeReport:
        """Put entries on a list, all good ones in one transaction.

        ``now_us``: business time that expiries are held against (None: the clock); ``entity``, if given, must be the
        list's; ``may_loosen``: the author is an approver. Raises ListError for the change as a whole:
        ``unknown-list``, ``wrong-entity``, ``bad-reason``, ``needs-approver``.
        """
        _words(reason, author)
        at_us = self._clock_us()
        with self._writing:
            table = self._table(name, entity)
            if table.kind in _LOOSENING:
                _check_approver(may_loosen, f"an entry of an {table.kind} list")
            refused: list[EntryRefusal] = []
            fresh: dict[tuple[str, str], ListEntry] = {}
            rows: dict[tuple[str, str], int] = {}
            duplicates = 0
            for row, draft in enumerate(drafts):
                try:
                    entry = _entry(
                        draft, table.kind, reason, author, at_us, at_us if now_us is None else now_us
                    )
                except ListError as error:
                    refused.append(EntryRefusal(row, error.code, error.field, error.reason))
                    continue
                if fresh.setdefault((entry.value, entry.rule), entry) is not entry:
                    duplicates += 1
                rows.setdefault((entry.value, entry.rule), row)
            if not may_loosen and table.kind not in _LOOSENING:
                for key in _shortened(table, list(fresh.values())):
                    del fresh[key]
                    refused.append(
                        EntryRefusal(rows[key], "needs-approver", "expires", "is earlier than the end it has")
                    )
                refused.sort(key=lambda refusal: refusal.row)
            entries = list(fresh.values())
            values, rules = _columns(entries)
            expiries = _expiries(entries)
            before = table.held(values, rules)
            changed = np.flatnonzero(before != expiries).tolist()
            renewed = [place for place in changed if before[place] != ABSENT]
            if changed:
                self._store.put(
                    name,
                    [entries[place] for place in changed],
                    [entries[place] for place in renewed],
                    reason=reason,
                    author=author,
                    at_us=at_us,
                )
                self._current = self._current.with_table(
                    table.added(
                        [values[place] for place in changed],
                        expiries[changed],
                        [rules[place] for place in changed],
                    )
                )
                self._counts[name] = self._counts.get(name, 0) + len(changed) - len(renewed)
        return ChangeReport(
            added=len(changed) - len(renewed),
            renewed=len(renewed),
            known=len(entries) - len(changed),
            duplicates=duplicates,
            refused=tuple(refused),
        )

    def remove(
        self,
        name: str,
        values: Sequence[object],
        *,
        rule: str | None = None,
        reason: str,
        author: str,
        may_loosen: bool = False,
    ) -> ChangeReport:
        """Take values off a list (of an exemption list: under ``rule``, None for all rules).

        A value that is not there is refused with ``not-listed``. Raises ListError as :meth:`add`.
        """
        _words(reason, author)
        with self._writing:
            table = self._table(name, "")
            if table.kind not in _LOOSENING:
                _check_approver(may_loosen, f"to take a value off a {table.kind} list")
            refused: list[EntryRefusal] = []
            found: dict[tuple[str, str], ListEntry] = {}
            for row, value in enumerate(values):
                try:
                    entries = self._store.find(name, list_value(value))
                    entries = [entry for entry in entries if rule is None or entry.rule == rule]
                    if not entries:
                        raise ListError("not-listed", "value", "is not on the list")
                except ListError as error:
                    refused.append(EntryRefusal(row, error.code, error.field, error.reason))
                    continue
                found |= {(entry.value, entry.rule): entry for entry in entries}
            self._remove(table, list(found.values()), reason, author)
        return ChangeReport(removed=len(found), refused=tuple(refused))

    def drop_expired(self, name: str, before_us: int, *, reason: str, author: str) -> ChangeReport:
        """Take off what expired at or before a time; late events from before that are no longer on the list.

        Raises ListError as :meth:`add`, and ``bad-time`` for a time to come: nothing has expired by then.
        """
        _words(reason, author)
        if before_us > self._clock_us():
            raise ListError("bad-time", "before", "lies in the future: those entries still hold")
        with self._writing:
            table = self._table(name, "")
            expired = self._store.expired(name, before_us)
            self._remove(table, expired, reason, author)
        return ChangeReport(removed=len(expired))

    def check_exempt(self, customer: str, rule: str, until_us: int, *, reason: str, author: str) -> None:
        """Raise ListError if :meth:`exempt` would now."""
        at_us = self._clock_us()
        if until_us > at_us + MAX_CLEARED_US:
            raise ListError(
                "bad-time", "expires", f"a case clears for {MAX_CLEARED_US // 86_400_000_000} days at most"
            )
        _words(reason, author)
        _entry(EntryDraft(customer, until_us, reason, rule), ListKind.EXEMPTION, reason, author, at_us, at_us)

    def exempt(self, customer: str, rule: str, until_us: int, *, reason: str, author: str) -> None:
        """Exempt a customer from a rule ("": every rule) until a time, on the list ``cleared_customers``.

        It ends within ``MAX_CLEARED_US``; who may ask for it is the caller's to know. Raises ListError if the customer
        or the time cannot be listed.
        """
        self.check_exempt(customer, rule, until_us, reason=reason, author=author)
        if all(table.name != CLEARED for table in self._current.tables):
            try:
                self.create(
                    CLEARED,
                    "exemption",
                    "customer",
                    reason="cleared after manual review",
                    author=author,
                    may_loosen=True,
                )
            except ListError as error:
                if error.code != "list-exists":  # made by another thread meanwhile
                    raise
        drafts = [EntryDraft(customer, until_us, reason, rule)]
        for refusal in self.add(CLEARED, drafts, reason=reason, author=author, may_loosen=True).refused:
            raise ListError(refusal.code, refusal.field, refusal.reason)

    def find(self, name: str, value: object) -> list[ListEntry]:
        """The entries of one value. Raises ListError ``unknown-list`` or ``invalid-value``."""
        self._table(name, "")
        return self._store.find(name, list_value(value))

    def records(self) -> list[tuple[ListRecord, int]]:
        """All lists with the number of their entries, by name."""
        return [(record, self._counts.get(record.name, 0)) for record in self._store.lists()]

    def newest(self, name: str, limit: int = 100, offset: int = 0) -> list[ListEntry]:
        """Entries of a list, newest first. Raises ListError ``unknown-list``."""
        self._table(name, "")
        return self._store.newest(name, limit, offset)

    def changes(self, name: str, limit: int = 100, offset: int = 0) -> list[ChangeRecord]:
        """What was done to a list, newest first. Raises ListError ``unknown-list``."""
        self._table(name, "")
        return self._store.changes(name, limit, offset)

    def _table(self, name: str, entity: str) -> ListTable:
        table = self._current.table(name)
        if entity and entity != table.entity:
            raise ListError("wrong-entity", "entity", f"the list is over {table.entity}")
        return table

    def _remove(self, table: ListTable, entries: Sequence[ListEntry], reason: str, author: str) -> None:
        if not entries:
            return
        self._store.remove(table.name, entries, reason=reason, author=author, at_us=self._clock_us())
        values, rules = _columns(entries)
        self._current = self._current.with_table(table.removed(values, rules))
        self._counts[table.name] -= len(entries)

    def _load(self, record: ListRecord) -> ListTable:
        table = empty_list(record.name, ListKind(record.kind), record.entity, hash_key=self._hash_key)
        parts = list(self._store.load(record.name))
        if not parts:
            return table
        values = [value for part in parts for value in part.values]
        rules = [rule for part in parts for rule in part.rules]
        expiries = [_expiry(each) for part in parts for each in part.expires_us]
        return table.added(values, np.array(expiries, dtype=np.int64), rules)


def _entry(draft: EntryDraft, kind: ListKind, reason: str, author: str, at_us: int, now_us: int) -> ListEntry:
    value = list_value(draft.value)
    if draft.rule and kind is not ListKind.EXEMPTION:
        raise ListError("rule-not-allowed", "rule", "only entries of an exemption list name a rule")
    if len(draft.rule) > MAX_RULE or not draft.rule.isprintable():
        raise ListError("bad-rule", "rule", f"a rule's id has at most {MAX_RULE} printable characters")
    if len(draft.reason) > MAX_REASON or not draft.reason.isprintable():
        raise ListError("bad-reason", "reason", f"a reason is one line of at most {MAX_REASON} characters")
    expires_us = list_expiry(draft.expires_us, now_us)
    return ListEntry(value, expires_us, draft.reason or reason, author, at_us, draft.rule)


def _expiry(expires_us: int | None) -> int:
    return FOREVER_US if expires_us is None else expires_us


def _columns(entries: Sequence[ListEntry]) -> tuple[list[str], list[str]]:
    """Values and rules."""
    return [entry.value for entry in entries], [entry.rule for entry in entries]


def _expiries(entries: Sequence[ListEntry]) -> NDArray[np.int64]:
    return np.array([_expiry(entry.expires_us) for entry in entries], dtype=np.int64)


def _shortened(table: ListTable, entries: Sequence[ListEntry]) -> list[tuple[str, str]]:
    """Value and rule of the entries that would end earlier than those the list has."""
    before = table.held(*_columns(entries))
    places = np.flatnonzero((before != ABSENT) & (_expiries(entries) < before))
    return [(entries[place].value, entries[place].rule) for place in places.tolist()]


def _check_approver(may_loosen: bool, what: str) -> None:
    if not may_loosen:
        raise ListError("needs-approver", "role", f"{what} takes the role approver")


def _words(reason: str, author: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON or not reason.isprintable():
        raise ListError("bad-reason", "reason", f"say why, in one line of at most {MAX_REASON} characters")
    if not author:
        raise ListError("bad-author", "author", "say who")
