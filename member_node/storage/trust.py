"""What the member has verified and must not forget: roll, policy, checkpoint, used nonces, and faults of others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import and_, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from member_node.storage.database import Database
from member_node.storage.models import FAULTS, SEEN_NONCES, TRUSTED

FORGET_AFTER_SECONDS = 60
SWEEP_EVERY = 512


class TrustStore:
    """The newest verified document of each name (``roll``, ``policy``, ``checkpoint``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, name: str) -> bytes | None:
        """The stored bytes, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(TRUSTED.c.content).where(TRUSTED.c.name == name)).first()
        return None if row is None else bytes(row[0])

    def save(self, name: str, version: int, content: bytes) -> None:
        """Replace the document of ``name``; an older version than the stored one is not written."""
        with self._database.write() as connection:
            row = connection.execute(select(TRUSTED.c.version).where(TRUSTED.c.name == name)).first()
            if row is not None:
                if row[0] > version:
                    return
                connection.execute(delete(TRUSTED).where(TRUSTED.c.name == name))
            connection.execute(insert(TRUSTED).values(name=name, version=version, content=content))


class ReplayStore:
    """Nonces of signed requests, kept until a minute after they expire; survives restarts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since_sweep = 0

    def remember(self, party: str, nonce: str, expires: int, *, now: int) -> bool:
        """Store the nonce durably; False if it is there already. Times in unix seconds."""
        try:
            with self._database.write() as connection:
                connection.execute(insert(SEEN_NONCES).values(party=party, nonce=nonce, expires=expires))
                self._since_sweep += 1
                if self._since_sweep >= SWEEP_EVERY:
                    self._since_sweep = 0
                    old = SEEN_NONCES.c.expires < now - FORGET_AFTER_SECONDS
                    connection.execute(delete(SEEN_NONCES).where(old))
        except IntegrityError:
            return False
        return True


@dataclass(frozen=True)
class Fault:
    """Something a party must answer for. ``evidence`` is what it signed (may be empty)."""

    party: str
    at: int
    what: str
    reason: str
    evidence: bytes


class FaultStore:
    """Wrong answers and broken promises of other parties, with the evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, fault: Fault) -> None:
        """Append ``fault``."""
        with self._database.write() as connection:
            connection.execute(insert(FAULTS).values(asdict(fault)))

    def record_once(self, fault: Fault) -> None:
        """Append ``fault`` unless the same is recorded already, whenever that was: for what is seen again and again."""
        same = and_(
            FAULTS.c.party == fault.party, FAULTS.c.what == fault.what, FAULTS.c.reason == fault.reason
        )
        with self._database.write() as connection:
            if connection.execute(select(FAULTS.c.number).where(same)).first() is None:
                connection.execute(insert(FAULTS).values(asdict(fault)))

    def latest(self, limit: int = 100) -> list[Fault]:
        """The newest faults first."""
        columns = (FAULTS.c.party, FAULTS.c.at, FAULTS.c.what, FAULTS.c.reason, FAULTS.c.evidence)
        query = select(*columns).order_by(FAULTS.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [Fault(*row) for row in connection.execute(query)]

    def count(self) -> int:
        """How many there are."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(FAULTS)).scalar_one())
