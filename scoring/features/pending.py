"""Outcomes that a stream has not come to yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.schema import OutcomeBatch

Part = tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.int64]]  # ids, fraud, known at
NOTHING_PENDING: Part = (np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty(0, np.int64))


class PendingOutcomes:
    """Outcomes sorted by the time they become known (ties: as given), until the stream has come so far."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def __len__(self) -> int:
        return sum(len(known) for _, _, known in self._parts)

    def add(self, ids: NDArray[np.uint64], outcomes: OutcomeBatch) -> None:
        order = np.argsort(outcomes.known_at_us, kind="stable")
        part = (ids[order], outcomes.fraud[order], outcomes.known_at_us[order])
        if self._parts and part[2][0] < self._parts[-1][2][-1]:
            ids, fraud, known = self._joined([*self._parts, part])
            order = np.argsort(known, kind="stable")
            self._parts = [(ids[order], fraud[order], known[order])]
        else:
            self._parts.append(part)

    def due(self, watermark_us: int | None, reach_us: int | None) -> Part:
        """All that may become visible within a batch whose latest time is ``reach_us``."""
        until = max((t for t in (watermark_us, reach_us) if t is not None), default=None)
        parts = []
        for ids, fraud, known in self._parts:
            count = 0 if until is None else int(np.searchsorted(known, until, side="right"))
            parts.append((ids[:count], fraud[:count], known[:count]))
            if count < len(known):
                break
        return self._joined(parts)

    def drop(self, count: int) -> None:
        while count and self._parts:
            ids, fraud, known = self._parts[0]
            taken = min(count, len(known))
            count -= taken
            if taken == len(known):
                self._parts.pop(0)
            else:
                self._parts[0] = (ids[taken:], fraud[taken:], known[taken:])

    def state(self) -> dict[str, NDArray[Any]]:
        """All that waits, enough for ``restore``: views, good until the next change."""
        ids, fraud, known = self._joined(self._parts)
        return {"ids": ids, "fraud": fraud, "known": known}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        part = (arrays["ids"].copy(), arrays["fraud"].copy(), arrays["known"].copy())
        self._parts = [part] if len(part[0]) else []

    @staticmethod
    def _joined(
        parts: list[Part],
    ) -> Part:
        if len(parts) == 1:
            return parts[0]
        return (
            np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part[1] for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part[2] for part in parts)]),
        )
