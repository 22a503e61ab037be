"""The consortium's confirmed frauds per directory entity and day, as columns beside each event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from governance.indicators import InvalidIndicatorError, NormalForm, normalise_batch
from member_node.storage.outcomes import StreamStore
from member_node.streams.events import encoded
from member_node.streams.mapping import StreamMapping
from scoring.series import DailyCounts

WINDOWS = (1, 7, 30)
FIRST_DAY = "first_day"
_NOWHERE = np.uint64(2**64 - 1)


class PublicDirectory:
    """Cells of a public directory by normal form; lines of the file in their order."""

    def __init__(self, kind: str, ids: Sequence[str]) -> None:
        """``kind``: indicator kind whose normal form identifies an entry; raises ValueError for a wrong entry."""
        self.kind = kind
        self._cells: dict[str, int] = {}
        for line, form in enumerate(normalise_batch(kind, ids), start=1):
            if isinstance(form, InvalidIndicatorError):
                raise ValueError(f"line {line} of the public directory is no {kind}: {form.reason}")
            if self._cells.setdefault(form.text, line - 1) != line - 1:
                raise ValueError(f"line {line} of the public directory repeats an earlier one")
        self._known: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def cells(self, column: pa.Array) -> NDArray[np.int64]:
        """The cell of each row's value, -1 where it is missing or not in the directory."""
        codes, vocabulary = encoded(column)
        unseen = [value for value in vocabulary if value not in self._known]
        for value, form in zip(unseen, normalise_batch(self.kind, unseen), strict=True):
            self._known[value] = self._cells.get(form.text, -1) if isinstance(form, NormalForm) else -1
        found = np.array([*(self._known[value] for value in vocabulary), -1], dtype=np.int64)
        return found[codes]


class ConsortiumCounts:
    """Aggregates of matured days, the bank's own part of them, and their windows. Restored from the store."""

    def __init__(
        self, dataset: str, directory: PublicDirectory, mapping: StreamMapping, store: StreamStore
    ) -> None:
        """Restore what ``store`` holds."""
        self.dataset = dataset
        self.directory = directory
        self._mapping = mapping
        self._store = store
        self._others: DailyCounts | None = None
        self._own: DailyCounts | None = None
        self._first_day = store.cursor(FIRST_DAY)
        own = dict(store.aggregates(f"{dataset}.own"))
        for day, counts in store.aggregates(dataset):
            self._add(day, counts, own[day])

    @property
    def next_day(self) -> int | None:
        """The first day not yet held (of the stream's days); None before the stream's first event."""
        return self._first_day if self._others is None else self._others.next_day

    def start(self, first_day: int) -> None:
        """Declare the stream's first day, from which on counts are wanted; only the first call counts."""
        if self._first_day is None:
            self._store.advance({FIRST_DAY: first_day})
            self._first_day = first_day

    def add(self, first_day: int, aggregate: NDArray[np.int64], own: NDArray[np.int64]) -> None:
        """Take over aggregates over the whole cohort and the bank's own counts, both int64 [days, cells]."""
        # The own part goes first: on a restart every aggregate finds it.
        self._store.save_aggregates(f"{self.dataset}.own", first_day, own)
        self._store.save_aggregates(self.dataset, first_day, aggregate)
        for offset in range(len(aggregate)):
            self._add(first_day + offset, aggregate[offset], own[offset])

    def _add(self, day: int, aggregate: NDArray[np.int64], own: NDArray[np.int64]) -> None:
        if self._others is None or self._own is None:
            keys = np.arange(len(self.directory), dtype=np.uint64)
            self._others = DailyCounts(keys, day, day_of=self._mapping.day_of)
            self._own = DailyCounts(keys, day, day_of=self._mapping.day_of)
        # An outcome that came after the bank had answered is in its own counts but not in the aggregate.
        self._others.add_day(day, np.maximum(aggregate - own, 0))
        self._own.add_day(day, own)

    def is_current(self, day: int) -> bool:
        """Whether every day of the stream whose labels are known at the start of ``day`` is held."""
        return self.next_day is None or self.next_day >= day - self._mapping.label_delay_days

    def names(self) -> list[str]:
        """Column names, by window: others before all."""
        return [
            f"consortium_{self.dataset}_fraud_{days}d_{whose}"
            for days in WINDOWS
            for whose in ("others", "all")
        ]

    def columns(
        self, cells: NDArray[np.int64], time_us: NDArray[np.int64]
    ) -> tuple[Mapping[str, NDArray[np.float64]], Mapping[str, NDArray[np.float64]]]:
        """(columns with the consortium, the same with the bank's own counts only), each float64 [n]."""
        keys = np.where(cells < 0, _NOWHERE, cells.astype(np.uint64))
        shared: dict[str, NDArray[np.float64]] = {}
        alone: dict[str, NDArray[np.float64]] = {}
        for days in WINDOWS:
            start = f"consortium_{self.dataset}_fraud_{days}d"
            if self._others is None or self._own is None:
                others = own = np.zeros(len(cells))
            else:
                delay = self._mapping.label_delay_days
                others = self._others.window(keys, time_us, days, delay)
                own = self._own.window(keys, time_us, days, delay)
            shared |= {f"{start}_others": others, f"{start}_all": others + own}
            alone |= {f"{start}_others": np.zeros(len(cells)), f"{start}_all": own}
        return shared, alone
