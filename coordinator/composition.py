"""A coordinator put together: store, log, what is in force, services, and the thread that lets time pass."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from coordinator.api.gate import Gate
from coordinator.service.consortium import publish
from coordinator.service.index import IndexService
from coordinator.service.inquiries import InquiryService
from coordinator.service.log import GovernanceLog
from coordinator.service.permission import Permission
from coordinator.service.totals import TotalsService
from coordinator.service.waiting import WaitingRoom
from coordinator.settings import Settings
from coordinator.storage.database import Database
from coordinator.storage.replay import NonceStore

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5
SWEEP_SECONDS = 60.0


class Coordinator:
    """All of one coordinator. Making it opens the store, verifies the log and publishes what is new."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float]) -> None:
        self.settings = settings
        self._clock = clock
        self._database = Database.in_directory(settings.directory, settings.database_url)
        try:
            self._put_together()
        except BaseException:
            self._database.close()
            raise
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def _put_together(self) -> None:
        settings, clock = self.settings, self._clock
        self.log = GovernanceLog(
            self._database,
            origin=settings.origin,
            key=settings.log_key,
            clock=clock,
            random=secrets.token_bytes,
        )
        self.consortium = publish(self._database, self.log, settings.party, settings.identity)
        self.permission = Permission(self._database, self.consortium, self.log, clock)
        self.index = IndexService(
            self._database,
            self.log,
            self.consortium,
            self.permission,
            key=settings.identity,
            label_clock=settings.label_clock,
            clock=clock,
        )
        self.totals = TotalsService(self.log, self.consortium)
        self._room = WaitingRoom(max_seconds=settings.max_wait_seconds, per_party=settings.waits_per_party)
        self.inquiries = InquiryService(
            self._database,
            self.log,
            self.consortium,
            self.permission,
            self._room,
            clock=clock,
            checkpoint_age=settings.checkpoint_refresh_seconds,
        )
        self._nonces = NonceStore(self._database)
        self.gate = Gate(
            settings.party,
            settings.identity,
            self.consortium.keys,
            self.consortium.policy.policy_epoch,
            self._nonces.remember,
            clock,
        )

    def start(self) -> None:
        """Let time pass until :meth:`close`: inquiries expire, counts become entries, old nonces are forgotten."""
        self._thread = threading.Thread(target=self._pass_time, name="coordinator-time", daemon=True)
        self._thread.start()

    def release_waiting(self) -> None:
        """End all long polls now; later ones do not wait."""
        self._room.close()

    def close(self) -> None:
        """Stop the thread, end all long polls, log what is counted and close the store."""
        self._stopping.set()
        self.release_waiting()
        if self._thread is not None:
            self._thread.join()
        try:
            self.permission.close_all()
        finally:
            self._database.close()

    def _pass_time(self) -> None:
        next_sweep = self._clock() + SWEEP_SECONDS
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self.inquiries.expire_due()
                self.permission.close_due()
                if self._clock() >= next_sweep:
                    self._nonces.sweep(int(self._clock()))
                    next_sweep = self._clock() + SWEEP_SECONDS
            except Exception:
                # The next tick tries again: an expiry that is late is better than none.
                logger.exception("the coordinator's clock thread failed")
