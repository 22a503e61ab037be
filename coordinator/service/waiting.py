"""Long polls: threads that wait for a state to change, and can all be sent home at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable


class WaitingRoom:
    """One condition for all waiting requests. A party holds at most ``per_party`` of them, more do not wait."""

    def __init__(self, *, max_seconds: float, per_party: int) -> None:
        self._changed = threading.Condition()
        self._max_seconds = max_seconds
        self._per_party = per_party
        self._waiting: Counter[str] = Counter()
        self._closed = False

    def wait_until(self, party: str, is_reached: Callable[[], bool], seconds: float) -> None:
        """Return when ``is_reached()``, when the time is over or when the room closes, whichever is first."""
        with self._changed:
            if self._waiting[party] >= self._per_party:
                return
            self._waiting[party] += 1
            try:
                self._changed.wait_for(
                    lambda: self._closed or is_reached(), timeout=min(seconds, self._max_seconds)
                )
            finally:
                self._waiting[party] -= 1

    def announce(self) -> None:
        """Something has changed: everyone looks again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
