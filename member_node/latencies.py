"""How long a bank's own operations take as a whole, lookups that cost no network apart from those that do."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

SAMPLES = 4096


def quantile_ms(ordered: Sequence[float], share: float) -> float | None:
    """The quantile of ascending seconds, in milliseconds; None of nothing."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


class HitRate:
    """How many of the values that were asked for were in the cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._asked = 0

    def count(self, hits: int, asked: int) -> None:
        """Add one request for ``asked`` values."""
        with self._lock:
            self._hits += hits
            self._asked += asked

    def report(self) -> dict[str, float | None]:
        """``asked``, ``hits`` and their ``share``; None before anything was asked."""
        with self._lock:
            share = self._hits / self._asked if self._asked else None
            return {"asked": self._asked, "hits": self._hits, "share": share}


@dataclass
class _Row:
    count: int = 0
    items: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Latencies:
    """Counts, items and the newest 4096 times of each operation since the process started. Thread safe."""

    def __init__(self) -> None:
        self.hit_rate = HitRate()
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}

    def record(self, operation: str, seconds: float, items: int = 1) -> None:
        """Add one operation over ``items`` values, rows or cells."""
        with self._lock:
            row = self._rows.setdefault(operation, _Row())
            row.count += 1
            row.items += items
            row.seconds.append(seconds)

    @contextmanager
    def time(self, operation: str, items: int = 1) -> Iterator[None]:
        """Record what happens inside, unless it raises."""
        began = time.perf_counter()
        yield
        self.record(operation, time.perf_counter() - began, items)

    def report(self) -> list[dict[str, object]]:
        """One JSON object an operation: operation, count, items, p50_ms, p99_ms (over the newest samples)."""
        with self._lock:
            rows = [(name, row, sorted(row.seconds)) for name, row in sorted(self._rows.items())]
            return [
                {
                    "operation": name,
                    "count": row.count,
                    "items": row.items,
                    "p50_ms": quantile_ms(seconds, 0.5),
                    "p99_ms": quantile_ms(seconds, 0.99),
                }
                for name, row, seconds in rows
            ]
