"""The durable store of used nonces: a request is accepted once, also across a restart.

Storing one does not wait for the disk: a power cut outlasts the sixty seconds that a request is valid, a crash of
the process does not, and after that the nonce is there.
"""

from __future__ import annotations

from sqlalchemy import delete, insert

from coordinator.storage.database import Database, IntegrityError
from coordinator.storage.tables import replay_nonces

KEEP_SECONDS = 60


class NonceStore:
    """``remember`` is what :func:`governance.messages.http_signatures.verify_request` asks for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember(self, party: str, nonce: str, expires: int) -> bool:
        """Store the nonce; False if ``party`` used it before. ``expires`` in unix seconds."""
        try:
            with self._database.write(wait_for_disk=False) as connection:
                connection.execute(insert(replay_nonces).values(party=party, nonce=nonce, expires=expires))
        except IntegrityError:
            return False
        return True

    def sweep(self, now: int) -> int:
        """Forget nonces whose request could not be accepted any more; returns how many."""
        with self._database.write(wait_for_disk=False) as connection:
            return connection.execute(
                delete(replay_nonces).where(replay_nonces.c.expires < now - KEEP_SECONDS)
            ).rowcount
