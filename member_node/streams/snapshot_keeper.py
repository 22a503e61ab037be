"""When to take snapshots, and how a stream hardly waits for them: a forked child writes each (decision 0020)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from member_node.streams.images import ForkError, gather, ready, spans_of
from member_node.streams.snapshots import Arrays, Begun, SnapshotError, SnapshotStore

LOGGER = logging.getLogger(__name__)
EVERY_EVENTS = 5_000_000
EVERY_SECONDS = 300.0


class SnapshotKeeper:
    """Decides when to take a snapshot and has a child write it; the stream waits only for the fork (decision 0020).

    ``state`` gives the engine's arrays, views or copies. ``before(sequence)`` runs in a thread while the child writes
    and must leave everything up to the frame in the history; ``after(sequence)`` runs when journal frames up to it are
    covered by two snapshots. One child at a time. Where there can be none, the arrays are copied instead.
    A failure is logged, counted, kept in ``last_error`` and tried again when the next one is due: the journal has it
    all.
    """

    def __init__(
        self,
        store: SnapshotStore,
        state: Callable[[], Arrays],
        *,
        before: Callable[[int], object],
        after: Callable[[int], object],
        every_events: int = EVERY_EVENTS,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._store, self._state = store, state
        self._before, self._after = before, after
        self._every_events, self._every_seconds = every_events, every_seconds
        self._events = 0
        self._since: float | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._writing: Future[None] | None = None
        self._spans: list[tuple[int, int]] = []
        self._gathers = True
        self.child: int | None = None
        self.last_error = ""
        self.failures = 0
        self.stall_seconds = 0.0
        self.write_seconds = 0.0
        hindrance = ready()
        self._forks = not hindrance
        if hindrance:
            LOGGER.warning("%s: every snapshot copies the state while the stream waits", hindrance)

    def due(self, events: int, now_seconds: float) -> bool:
        """Count applied events; whether a snapshot should be taken now (see :meth:`begin`)."""
        self._events += events
        if self._since is None:
            self._since = now_seconds
        old = now_seconds - self._since >= self._every_seconds
        if not self._events or not (old or self._events >= self._every_events):
            return False
        if self._writing is not None and not self._writing.done():
            return False
        self._events, self._since = 0, now_seconds
        return True

    def locate(self, sequence: int) -> None:
        """Note where the state lies, for :meth:`gather`; called while nothing changes it."""
        self._spans = spans_of(list(self._state().values())) if self._forks else []

    def gather(self) -> None:
        """Make the next :meth:`begin` quick (see ``images.gather``); the state may change meanwhile."""
        if self._gathers and not gather(self._spans):
            self._gathers = False
            LOGGER.info("this system (Linux before 6.1) gathers no huge pages: forking takes longer")

    def begin(self, sequence: int) -> bool:
        """Begin a snapshot of the state after a frame **that is on disk**; whether it was begun.

        Called while nothing changes the state and no snapshot is being written.
        """
        start = time.perf_counter()
        begun, arrays = None, {}
        try:
            state = self._state()
            begun = self._forked(sequence, state)
            if begun is None:
                arrays = {name: array.copy() for name, array in state.items()}
        except Exception as error:  # noqa: BLE001 - whatever it is, the stream goes on without a snapshot and says so
            self._failed(sequence, error)
            return False
        finally:
            self.stall_seconds = time.perf_counter() - start
        self.child = None if begun is None else begun.image.pid
        self._writing = self._thread.submit(self._write, sequence, begun, arrays)
        return True

    def save(self, sequence: int) -> None:
        """Take a snapshot now and wait for it (at a clean stop), while nothing changes the state.

        Raises what writing it raises.
        """
        if self._writing is not None:
            self._writing.result()
        try:
            arrays = self._state()
        except Exception as error:
            self._failed(sequence, error)
            raise
        self._write(sequence, None, arrays)
        if self.last_error:
            raise SnapshotError(self.last_error)

    def close(self) -> None:
        """Wait for the one that is being written."""
        self._thread.shutdown()

    def _forked(self, sequence: int, state: Arrays) -> Begun | None:
        try:
            return self._store.begin(sequence, state) if self._forks else None
        except ForkError as error:
            LOGGER.warning("%s: the snapshot at frame %d copies the state meanwhile", error, sequence)
            return None

    def _write(self, sequence: int, begun: Begun | None, arrays: Arrays) -> None:
        start = time.perf_counter()
        try:
            if begun is None:
                self._before(sequence)
                self._store.save(sequence, arrays)
            else:
                self._commit(begun)
            self._after(self._store.covered)
        except Exception as error:  # noqa: BLE001 - the same
            self._failed(sequence, error)
            return
        finally:
            self.child = None
        self.last_error = ""
        self.write_seconds = time.perf_counter() - start

    def _commit(self, begun: Begun) -> None:
        try:
            self._before(begun.sequence)
        except BaseException:
            self._store.abandon(begun)
            raise
        self._store.commit(begun)

    def _failed(self, sequence: int, error: Exception) -> None:
        self.failures += 1
        self.last_error = f"no snapshot at frame {sequence}: {error}"
        LOGGER.error("%s", self.last_error, exc_info=error)
