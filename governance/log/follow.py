"""Following the log: every step verifies, and returns the next state or raises (python-tuf's trusted set).

The state is a value: the caller stores ``note`` and ``origin``/``verify_key`` and resumes from them. Rejected
updates leave the old state untouched, and name the coordinator's fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from crypto.errors import CryptoError, InvalidProofError, InvalidSignatureError
from crypto.merkle import EMPTY_ROOT, verify_consistency, verify_inclusion
from governance.log.entries import Entry, MalformedEntryError, decode_entry
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, MalformedNoteError, open_checkpoint, parse_verifier_key
from governance.messages.log import CheckpointUpdate, LoggedEntry

# A coordinator's clock may run ahead of ours by this much (seconds) before its checkpoint is refused.
CLOCK_TOLERANCE = 60


class LogFollowError(Exception):
    """The log, or who serves it, did something a follower must not accept."""


class UntrustedCheckpointError(LogFollowError):
    """The note is malformed or not signed by the log's key."""


class StaleCheckpointError(LogFollowError):
    """The checkpoint is older than policy allows, or from the future: deny until there is a fresh one."""


class UnprovenGrowthError(LogFollowError):
    """The update proves nothing about the state we hold; ask again with ``since`` set to our size."""


class RollbackError(LogFollowError):
    """The log is smaller, or its checkpoint older, than one already seen."""


class ForkError(LogFollowError):
    """Two signed checkpoints cannot both be of one append-only log; ``notes`` are the evidence."""

    def __init__(self, message: str, notes: tuple[str, str]) -> None:
        super().__init__(message)
        self.notes = notes


class UnprovenEntryError(LogFollowError):
    """An entry is malformed or not in the log under the trusted checkpoint."""


@dataclass(frozen=True)
class TrustedLog:
    """What a follower believes: the newest verified checkpoint (None before the first) and its note."""

    origin: str
    verify_key: str
    checkpoint: Checkpoint | None = None
    note: str = field(default="", repr=False)

    @classmethod
    def start(cls, verify_key: str) -> TrustedLog:
        """Trust only ``verify_key`` (C2SP text form, whose name is the log's origin); no checkpoint yet."""
        origin, _ = parse_verifier_key(verify_key)
        return cls(origin, verify_key)

    @classmethod
    def resume(cls, verify_key: str, note: str) -> TrustedLog:
        """The state whose checkpoint was stored as ``note`` (empty: none yet); verified again."""
        state = cls.start(verify_key)
        return replace(state, checkpoint=state._open(note), note=note) if note else state

    @property
    def size(self) -> int:
        """Entries of the newest verified checkpoint; 0 before the first."""
        return self.checkpoint.size if self.checkpoint else 0

    def advance(self, update: CheckpointUpdate, *, now: int, max_age: int) -> TrustedLog:
        """The state after ``update``; ``now`` unix seconds, ``max_age`` seconds.

        Checks signature, freshness, that time and size do not go back, and consistency with the state held.
        """
        new = self._open(update.note)
        if new.time > now + CLOCK_TOLERANCE:
            raise StaleCheckpointError(f"the checkpoint of {self.origin} is {new.time - now} s in the future")
        if now - new.time > max_age:
            raise StaleCheckpointError(
                f"the newest checkpoint of {self.origin} is {now - new.time} s old, at most {max_age} are allowed"
            )
        old = self.checkpoint
        if old is None:
            if new.size == 0 and new.root != EMPTY_ROOT:
                raise UntrustedCheckpointError(f"{self.origin}: an empty log with a root of entries")
        elif old.size == new.size:
            if old.root != new.root:
                raise ForkError(
                    f"{self.origin} signed two roots for size {old.size}", (self.note, update.note)
                )
        elif new.size < old.size:
            raise RollbackError(f"the log of {self.origin} went back from {old.size} to {new.size} entries")
        elif old.size > 0:
            self._check_growth(old, new, update)
        if old is not None and new.time < old.time:
            raise RollbackError(f"the checkpoint of {self.origin} is older than the one held")
        return replace(self, checkpoint=new, note=update.note)

    def require_fresh(self, *, now: int, max_age: int) -> Checkpoint:
        """The held checkpoint if it is at most ``max_age`` seconds old, else StaleCheckpointError."""
        if self.checkpoint is None:
            raise StaleCheckpointError(f"no checkpoint of {self.origin} has been seen yet")
        age = now - self.checkpoint.time
        if age > max_age or age < -CLOCK_TOLERANCE:
            raise StaleCheckpointError(
                f"the held checkpoint of {self.origin} is {age} s old, at most {max_age} are allowed"
            )
        return self.checkpoint

    def verify_entry(self, logged: LoggedEntry) -> Entry:
        """The typed entry, proven to be in the log under the held checkpoint; else UnprovenEntryError."""
        if self.checkpoint is None:
            raise UnprovenEntryError(f"entry {logged.index}: no checkpoint of {self.origin} is held")
        try:
            leaf = entry_leaf_hash(logged.salt, logged.body)
            verify_inclusion(leaf, logged.index, self.checkpoint.size, logged.inclusion, self.checkpoint.root)
            return decode_entry(logged.body)
        except (CryptoError, MalformedEntryError) as error:
            raise UnprovenEntryError(f"entry {logged.index} of {self.origin}: {error}") from error

    def _check_growth(self, old: Checkpoint, new: Checkpoint, update: CheckpointUpdate) -> None:
        if update.first_size != old.size:
            raise UnprovenGrowthError(
                f"the update of {self.origin} starts from size {update.first_size}, we hold {old.size}: "
                f"ask again since {old.size}"
            )
        try:
            verify_consistency(old.size, new.size, update.consistency, old.root, new.root)
        except InvalidProofError as error:
            raise ForkError(
                f"{self.origin}: the log of {new.size} entries does not extend the one of {old.size}: {error}",
                (self.note, update.note),
            ) from error

    def _open(self, note: str) -> Checkpoint:
        try:
            return open_checkpoint(note, {self.origin: self.verify_key}, self.origin).checkpoint
        except (MalformedNoteError, InvalidSignatureError) as error:
            raise UntrustedCheckpointError(f"{self.origin}: {error}") from error
