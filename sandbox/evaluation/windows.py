"""Trailing windows over all banks' rows at once: a second, independent way to compute what the engine streams.

A window of width ``w`` and delay ``d`` at event time ``T`` covers ``(T - d - w, T - d]``. Without delay it includes the
event itself and, among equal times, those that arrived before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SharedWindow:
    """A feature that changes when all banks' rows are in one place. ``statistic``: ``count`` or ``rate`` of frauds."""

    feature: str
    entity: str
    statistic: str
    window_us: int
    delay_us: int


def trailing(
    key: Ints, time_us: Ints, value: Floats, window_us: int, delay_us: int = 0
) -> tuple[Ints, Floats]:
    """Count and sum of ``value`` over each row's window among rows of equal ``key``; all of shape ``[n]``.

    Rows must be in time order, ties in arrival order; negative keys have no window (0 and 0). Sums are differences
    of prefix sums: exact for integers below 2**53, which is what they are used for.
    """
    order = np.argsort(key, kind="stable")
    codes = np.unique(key[order], return_inverse=True)[1].astype(np.int64)
    when = time_us[order]
    first = int(when.min()) if len(when) else 0
    reach = window_us + delay_us + 1
    span = (int(when.max()) - first if len(when) else 0) + reach + 1
    if len(codes) and (int(codes[-1]) + 1) * span > 2**62:
        raise OverflowError("too many keys for so long a stream in one composite order")
    line = codes * span + (when - first) + reach  # one sorted line: keys apart by more than any window
    end = (
        np.arange(1, len(line) + 1) if delay_us == 0 else np.searchsorted(line, line - delay_us, side="right")
    )
    start = np.searchsorted(line, line - delay_us - window_us, side="right")
    prefix = np.concatenate([[0.0], np.cumsum(value[order])])
    count, total = np.empty(len(key), np.int64), np.empty(len(key))
    count[order], total[order] = end - start, prefix[end] - prefix[start]
    absent = key < 0
    count[absent], total[absent] = 0, 0.0
    return count, total


def shared_window(window: SharedWindow, key: Ints, time_us: Ints, fraud: npt.NDArray[np.int8]) -> Floats:
    """The values of one shared feature, shape ``[n]``; the rate of an empty window is 0."""
    count, frauds = trailing(key, time_us, fraud.astype(np.float64), window.window_us, window.delay_us)
    if window.statistic == "count":
        return count.astype(np.float64)
    if window.statistic == "rate":
        return np.where(count > 0, frauds / np.maximum(count, 1), 0.0)
    raise ValueError(f"{window.feature}: no statistic {window.statistic!r} here, only count and rate")
