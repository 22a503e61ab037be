"""What every benchmark prints: one object of the same shape, for machines and for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one operation on ``items`` items."""

    items: int
    seconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Items a second at the median repetition."""
        return self.items / float(np.median(self.seconds))

    def micros(self, percentile: float) -> float:
        """Microseconds an item at a percentile of the repetitions."""
        return float(np.percentile(self.seconds, percentile)) / self.items * 1e6


@dataclass(frozen=True)
class Bar:
    """A bar of the design: ``value`` against ``bar``; ``at_most`` turns the comparison round."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bar is met."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass(frozen=True)
class Histogram:
    """``counts`` of the milliseconds between neighbouring ``edges``; the last one includes all that is above."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    worst: float


@dataclass(frozen=True)
class BenchResult:
    """One benchmark. ``limits``: what the primitive operations alone would allow; ``notes``: why a field is null;
    ``histograms``: of milliseconds.

    ``limits`` and ``peers`` are items a second, measured in the same run.
    """

    name: str
    size: int
    timing: Timing
    limits: dict[str, float] = field(default_factory=dict)
    peers: dict[str, float] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The object ``--json`` prints."""
        own = self.timing.per_second
        return {
            "name": self.name,
            "size": self.size,
            "per_second": own,
            "p50_us": self.timing.micros(50),
            "p99_us": self.timing.micros(99) if len(self.timing.seconds) >= 20 else None,
            "peers": _ratios(own, self.peers),
            "limits": _ratios(own, self.limits),
            "bars": [
                {"what": bar.what, "value": bar.value, "bar": bar.bar, "holds": bar.holds}
                for bar in self.bars
            ],
            "histograms": {
                name: {"edges": histogram.edges, "counts": histogram.counts, "worst": histogram.worst}
                for name, histogram in self.histograms.items()
            },
            "notes": {"p99_us": "fewer than 20 repetitions", **self.notes}
            if len(self.timing.seconds) < 20
            else self.notes,
        }


def _ratios(own: float, others: dict[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"per_second": rate, "ratio": own / rate} for name, rate in others.items()}


def repeat(operation: Callable[[], object], *, items: int, times: int, warm_up: int = 1) -> Timing:
    """Time ``operation`` ``times`` times after ``warm_up`` untimed runs."""
    for _ in range(warm_up):
        operation()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - began)
    return Timing(items, tuple(seconds))
