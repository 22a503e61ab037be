"""Threads that work on their own while the node serves: one step at a time, stopped cleanly, failures visible."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

LOGGER = logging.getLogger(__name__)
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 15.0


class BackgroundLoop:
    """Calls ``step`` again and again; it returns the seconds to wait before the next call.

    A step that raises is logged, kept in ``last_error``, and tried again after a growing pause.
    """

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self.name = name
        self.last_error = ""
        self._step = step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end after its current step."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end up to ``timeout`` seconds; whether it ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self._stop.is_set():
            try:
                pause = self._step()
            except Exception as error:  # noqa: BLE001 - the loop must outlive whatever one step meets, and says what it was
                if self._stop.is_set():
                    return
                if str(error) != self.last_error:
                    LOGGER.warning("%s: %s: %s", self.name, type(error).__name__, error)
                self.last_error = str(error)
                pause, backoff = backoff, min(2 * backoff, MAX_BACKOFF_SECONDS)
            else:
                self.last_error = ""
                backoff = FIRST_BACKOFF_SECONDS
            self._stop.wait(pause)
