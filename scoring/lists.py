"""Block, allow, watch and exemption lists: what they hold, and what a batch of transactions finds on them.

A list is over one entity. Everything here is immutable: a writer makes the next :class:`ListTable` and a
:class:`ListSet` of it, readers go on with the one they hold. An entry holds for events *before* its expiry, by the
event's own time, whenever they are scored.

How values are keyed is said in ``lists_values``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scoring.hashing import DEFAULT_KEY
from scoring.lists_table import ABSENT, KeyMap, KeyMaps
from scoring.lists_values import ListError, list_keys
from scoring.rules.columns import Column, ColumnType
from scoring.schema import ENTITIES, entity_keys
from scoring.verdicts import Verdict

EVERY_RULE: Final = ""
FOREVER_US = np.iinfo(np.int64).max
MAX_LISTS = 1000
NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_SEED = np.uint64(0x9E3779B97F4A7C15)
_NOTHING: Final = KeyMap.of(np.zeros(0, np.uint64), np.zeros(0, np.int64))


class ListKind(StrEnum):
    """What a hit does: block and allow force a verdict, watch is for rules, exemption takes rules out of play."""

    BLOCK = "block"
    ALLOW = "allow"
    WATCH = "watch"
    EXEMPTION = "exemption"


@dataclass(frozen=True)
class ListEntry:
    """One entry. Times in UTC microseconds, ``expires_us`` None: never. The value does not print.

    ``rule``: exemptions only, the rule's id ("" for every rule).
    """

    value: str = field(repr=False)
    expires_us: int | None
    reason: str
    author: str
    added_us: int
    rule: str = EVERY_RULE


@dataclass(frozen=True, eq=False)
class ListTable:
    """One named list. ``expiries``: key -> expiry in microseconds (``FOREVER_US``: none).

    Of an exemption list ``expiries`` is keyed by value and rule together, and ``holders`` counts by value alone how
    many entries there are, which spares most events the look at every rule. Make one with :func:`empty_list`.
    """

    name: str
    kind: ListKind
    entity: str
    hash_key: bytes = field(default=DEFAULT_KEY, repr=False)
    expiries: KeyMap = field(default=_NOTHING, repr=False)
    holders: KeyMap = field(default=_NOTHING, repr=False)
    rules: frozenset[str] = frozenset()

    @property
    def column(self) -> str:
        """The boolean column rules read."""
        return f"listed_{self.name}"

    @property
    def nbytes(self) -> int:
        return self.expiries.nbytes + self.holders.nbytes

    def added(
        self, values: Sequence[str], expires_us: NDArray[np.int64], rules: Sequence[str] | None = None
    ) -> ListTable:
        """With these entries; one that is there (of the same rule) gets the new expiry. ``rules`` for exemptions."""
        keys, places = list_keys(values, hash_key=self.hash_key)
        return self._changed(keys, expires_us[places], places, rules)

    def removed(self, values: Sequence[str], rules: Sequence[str] | None = None) -> ListTable:
        """Without these entries; one that is not there is left out."""
        keys, places = list_keys(values, hash_key=self.hash_key)
        return self._changed(keys, np.full(len(keys), ABSENT), places, rules)

    def held(self, values: Sequence[str], rules: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Expiry int64 [n] of these very entries (``FOREVER_US``: none), ``ABSENT`` where there is none."""
        keys = entity_keys(np.array(values, dtype=object), hash_key=self.hash_key)
        if self.kind is ListKind.EXEMPTION:
            seeds = {rule: _rule_seed(rule) for rule in set(rules or [EVERY_RULE])}
            named = rules if rules is not None else [EVERY_RULE] * len(values)
            keys = _pair(keys, np.array([seeds[rule] for rule in named], dtype=np.uint64))
        return self.expiries.find(keys)

    def hits(self, keys: NDArray[np.uint64], time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [n]: on the list at the event's time. Of an exemption list: exempt from every rule."""
        if self.kind is ListKind.EXEMPTION:
            keys = _with_rule(keys, EVERY_RULE)
        return np.asarray(self.expiries.find(keys) > time_us)

    def exempt(
        self, keys: NDArray[np.uint64], time_us: NDArray[np.int64], rule_ids: Sequence[str]
    ) -> NDArray[np.bool_] | None:
        """bool [n, rules] of an exemption list, None where no row has an entry."""
        rows = np.flatnonzero(self.holders.find(keys) > 0)
        if not len(rows):
            return None
        held, times = keys[rows], time_us[rows]
        exempt = np.zeros((len(keys), len(rule_ids)), np.bool_)
        if EVERY_RULE in self.rules:
            exempt[rows] = self.hits(held, times)[:, None]
        for place, rule in enumerate(rule_ids):
            if rule in self.rules:
                exempt[rows, place] |= self.expiries.find(_with_rule(held, rule)) > times
        return exempt if exempt.any() else None

    def _changed(
        self,
        keys: NDArray[np.uint64],
        values: NDArray[np.int64],
        places: NDArray[np.int64],
        rules: Sequence[str] | None,
    ) -> ListTable:
        if self.kind is not ListKind.EXEMPTION:
            return replace(self, expiries=self.expiries.changed(keys, values))
        named = list(rules) if rules is not None else [EVERY_RULE] * (int(places.max(initial=-1)) + 1)
        distinct = sorted(set(named))
        seeds = np.array([_rule_seed(rule) for rule in distinct], dtype=np.uint64)
        codes = np.searchsorted(np.array(distinct), np.array(named))[places]
        pairs = _pair(keys, seeds[codes])
        # Of a pair given twice the last counts, in the counts of holders too.
        _, backwards = np.unique(pairs[::-1], return_index=True)
        last = len(pairs) - 1 - backwards
        pairs, keys, values = pairs[last], keys[last], values[last]
        was = self.expiries.find(pairs) != ABSENT
        step = (values != ABSENT).astype(np.int64) - was.astype(np.int64)
        owners, inverse = np.unique(keys, return_inverse=True)
        held = np.maximum(self.holders.find(owners), 0)
        np.add.at(held, inverse, step)
        return replace(
            self,
            expiries=self.expiries.changed(pairs, values),
            holders=self.holders.changed(owners, np.where(held > 0, held, ABSENT)),
            rules=self.rules | set(distinct),
        )


def empty_list(name: str, kind: ListKind, entity: str, *, hash_key: bytes = DEFAULT_KEY) -> ListTable:
    """A list without entries. Raises ListError ``bad-name`` or ``wrong-entity``."""
    if not NAME.fullmatch(name):
        raise ListError("bad-name", "name", "a list's name is a-z, 0-9 and _, from a letter on, 48 at most")
    if entity not in ENTITIES:
        raise ListError("wrong-entity", "entity", f"a list is over one of {', '.join(ENTITIES)}")
    return ListTable(name, kind, entity, hash_key)


class ListSet:
    """An immutable snapshot of all lists, in order of name."""

    def __init__(self, tables: Iterable[ListTable] = ()) -> None:
        self.tables: tuple[ListTable, ...] = tuple(sorted(tables, key=lambda table: table.name))
        if len({table.name for table in self.tables}) != len(self.tables):
            raise ValueError("two lists have one name")
        self._by_name = {table.name: table for table in self.tables}
        self._deciding = [
            (place, table.column, Verdict.BLOCK if table.kind is ListKind.BLOCK else Verdict.ALLOW)
            for kind in (ListKind.ALLOW, ListKind.BLOCK)  # what comes last has the last word
            for place, table in reversed(list(enumerate(self.tables)))
            if table.kind is kind
        ]
        self._exemptions = [table for table in self.tables if table.kind is ListKind.EXEMPTION]
        # What is looked up: an entity's keys, or those of the entity with every rule.
        looked_up = [(table.entity, table.kind is ListKind.EXEMPTION) for table in self.tables]
        self._looked_up = tuple(dict.fromkeys(looked_up))
        self._expiries = KeyMaps(
            [table.expiries for table in self.tables], [self._looked_up.index(each) for each in looked_up]
        )
        self._columns = tuple(table.column for table in self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def table(self, name: str) -> ListTable:
        """The list of that name; raises ListError ``unknown-list``."""
        if name not in self._by_name:
            raise ListError("unknown-list", "name", "there is no list of that name")
        return self._by_name[name]

    def with_table(self, table: ListTable) -> ListSet:
        """The set with this list, in place of the one of its name."""
        return ListSet((self._by_name | {table.name: table}).values())

    def columns(self) -> list[Column]:
        """The boolean columns ``listed_NAME``; an exemption list's tells that *every* rule is exempt."""
        return [Column(table.column, ColumnType.BOOLEAN) for table in self.tables]

    def probe(
        self, keys: Mapping[str, NDArray[np.uint64]], time_us: NDArray[np.int64]
    ) -> dict[str, NDArray[np.bool_]]:
        """Hits bool [n] by column; an entity that the stream does not have is on no list."""
        if not self.tables:
            return {}
        matrix = np.zeros((len(self._looked_up), len(time_us)), np.uint64)
        for place, (entity, exempt) in enumerate(self._looked_up):
            if entity in keys:
                matrix[place] = _with_rule(keys[entity], EVERY_RULE) if exempt else keys[entity]
        return dict(zip(self._columns, self._expiries.beyond(matrix, time_us), strict=True))

    def effects(
        self, hits: Mapping[str, NDArray[np.bool_]], n: int
    ) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """Forced verdict int8 [n] (-1: none) and the list's position int16 [n] in :attr:`tables` (-1: none).

        A block list forces block; an allow list forces allow where no block list hits; of several the first by name.
        """
        forced, which = np.empty(n, np.int8), np.empty(n, np.int16)
        forced.fill(-1)
        which.fill(-1)
        for place, column, verdict in self._deciding:
            if np.count_nonzero(hits[column]):
                rows = hits[column].nonzero()[0]
                forced[rows], which[rows] = verdict, place
        return forced, which

    def exempt(
        self, keys: Mapping[str, NDArray[np.uint64]], time_us: NDArray[np.int64], rule_ids: Sequence[str]
    ) -> NDArray[np.bool_] | None:
        """bool [n, rules]: rules that do not count for a row; None where no row is exempt from any."""
        found: NDArray[np.bool_] | None = None
        for table in self._exemptions:
            if table.entity in keys:
                exempt = table.exempt(keys[table.entity], time_us, rule_ids)
                if exempt is not None:
                    found = exempt if found is None else found | exempt
        return found


def _rule_seed(rule: str) -> np.uint64:
    return np.uint64(entity_keys(np.array([f"rule/{rule}"], dtype=object))[0])


def _with_rule(keys: NDArray[np.uint64], rule: str) -> NDArray[np.uint64]:
    return _pair(keys, _rule_seed(rule))


def _pair(keys: NDArray[np.uint64], seeds: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """One key for a value and a rule; 0 stays 0. Of m pairs any two collide with probability about m^2 / 2^65."""
    pairs = (keys * _SEED) ^ seeds
    pairs ^= pairs >> np.uint64(32)
    pairs *= np.uint64(0xD6E8FEB86659FD93)
    pairs ^= pairs >> np.uint64(32)
    return np.where(keys == 0, np.uint64(0), np.where(pairs == 0, np.uint64(1), pairs))
