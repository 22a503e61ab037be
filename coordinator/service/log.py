"""The governance log as the coordinator keeps it: append, sign, serve.

One order, always: stage the entries -> sign the checkpoint over them -> commit both together with whatever the
entries speak of -> publish. What a reader sees is a published head; a crash before the commit leaves nothing
behind, a crash after it is repaired by rebuilding the tree from the stored entries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coordinator.storage import log as stored
from coordinator.storage.database import Connection, Database
from coordinator.storage.log import StoredEntry
from crypto.errors import CryptoError
from crypto.merkle import MerkleTree
from crypto.signing import SigningKey
from governance.log.entries import Entry, encode_entry
from governance.log.leaves import SALT_SIZE, entry_leaf_hash
from governance.log.notes import (
    Checkpoint,
    MalformedNoteError,
    open_checkpoint,
    sign_checkpoint,
    verifier_key,
)
from governance.messages.log import CheckpointUpdate, LoggedEntry, LogPage
from governance.messages.problems import RequestError

MAX_PAGE_ENTRIES = 512


class LogCorruptError(Exception):
    """The stored log contradicts its own signed checkpoint; nothing may be appended to it."""


@dataclass(frozen=True)
class Head:
    """A published checkpoint: its note over the first ``size`` entries, signed at ``time`` (unix s)."""

    size: int
    time: int
    note: str


@dataclass
class LogTransaction:
    """Entries staged together with the statements run on ``connection``; all of it commits or none."""

    connection: Connection
    first: int
    at: int
    staged: list[tuple[bytes, list[str]]] = field(default_factory=list)

    def append(self, entry: Entry) -> int:
        """Stage ``entry`` (its ``at`` is this transaction's) and return the index it will have."""
        self.staged.append((encode_entry(entry), entry.parties))
        return self.first + len(self.staged) - 1


class GovernanceLog:
    """The Merkle tree in memory over the entries in the database. Safe to use from many threads."""

    def __init__(
        self,
        database: Database,
        *,
        origin: str,
        key: SigningKey,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """Rebuild the tree; :class:`LogCorruptError` if it is not the one the stored checkpoint signed."""
        self._database = database
        self._origin = origin
        self._key = key
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._tree = MerkleTree()
        self._head = Head(0, 0, "")
        with database.read() as connection:
            self._rebuild(connection)

    @property
    def verifier_key(self) -> str:
        """The C2SP verifier key that auditors pin."""
        return verifier_key(self._origin, self._key.verify_key)

    @property
    def head(self) -> Head:
        """The newest published checkpoint."""
        return self._head

    @contextmanager
    def transaction(self) -> Iterator[LogTransaction]:
        """One durable step: what the block writes and appends, with a checkpoint over it, or nothing."""
        with self._lock:
            with self._database.write() as connection:
                self._catch_up(connection)
                head = self._head
                transaction = LogTransaction(connection, self._tree.size, self._now())
                yield transaction
                if transaction.staged:
                    head = self._stage(transaction)
            self._head = head

    def fresh_head(self, max_age: int) -> Head:
        """The newest checkpoint, signed again if its time is ``max_age`` seconds old or more."""
        if self._clock() - self._head.time < max_age:
            return self._head
        with self._lock:
            head = self._head
            if self._clock() - head.time >= max_age:
                with self._database.write() as connection:
                    self._catch_up(connection)
                    head = self._sign(connection, self._now())
                self._head = head
            return head

    def update(self, since: int, head: Head | None = None) -> CheckpointUpdate:
        """``head`` (default: the newest) with the proof that it extends the caller's tree of ``since`` entries."""
        head = head or self._head
        if not 0 <= since <= head.size:
            raise RequestError("conflict", f"the log has {head.size} entries, it never had {since}")
        proof = self._tree.consistency_proof(since, head.size) if 0 < since < head.size else []
        return CheckpointUpdate(note=head.note, first_size=since, consistency=proof)

    def prove(self, entry: StoredEntry, head: Head) -> LoggedEntry:
        """``entry`` with its inclusion proof under ``head``."""
        proof = self._tree.inclusion_proof(entry.index, head.size)
        return LoggedEntry(index=entry.index, salt=entry.salt, body=entry.body, inclusion=proof)

    def logged(self, index: int, head: Head) -> LoggedEntry:
        """The entry at ``index`` (below ``head.size``) with its proof."""
        with self._database.read() as connection:
            return self.prove(stored.entry_at(connection, index), head)

    def page(self, first: int, count: int, since: int, reader: str | None) -> LogPage:
        """Up to ``count`` entries from ``first`` on that ``reader`` may read (None: every entry)."""
        head = self._head
        count = min(count, MAX_PAGE_ENTRIES)
        with self._database.read() as connection:
            entries = stored.entries_from(connection, first, head.size, count, reader)
        return LogPage(
            checkpoint=self.update(since, head), entries=[self.prove(entry, head) for entry in entries]
        )

    def _now(self) -> int:
        """Unix seconds; never earlier than what was already signed, even if the clock is set back."""
        return max(int(self._clock()), self._head.time)

    def _stage(self, transaction: LogTransaction) -> Head:
        rows = [
            (StoredEntry(transaction.first + offset, self._random(SALT_SIZE), body), readers)
            for offset, (body, readers) in enumerate(transaction.staged)
        ]
        self._tree.extend(entry_leaf_hash(entry.salt, entry.body) for entry, _ in rows)
        stored.add_entries(transaction.connection, rows)
        return self._sign(transaction.connection, transaction.at)

    def _sign(self, connection: Connection, now: int) -> Head:
        size = self._tree.size
        note = sign_checkpoint(Checkpoint(self._origin, size, self._tree.root(), now), self._key)
        stored.put_checkpoint(connection, size, now, note)
        return Head(size, now, note)

    def _catch_up(self, connection: Connection) -> None:
        """Rebuild the tree if a commit of ours failed, or if another process (an export) has appended.

        Until then readers notice nothing: they prove within the published size.
        """
        if not self._tree.size == self._head.size == stored.newest_size(connection):
            self._rebuild(connection)

    def _rebuild(self, connection: Connection) -> None:
        note = stored.newest_checkpoint(connection)
        leaves: list[bytes] = []
        for entry in stored.every_entry(connection):
            if entry.index != len(leaves):
                raise LogCorruptError(f"the stored log lacks entry {len(leaves)}: restore the database")
            leaves.append(entry_leaf_hash(entry.salt, entry.body))
        tree = MerkleTree(leaves)
        head = Head(0, 0, "")
        if note is not None:
            head = self._verified_head(note, tree)
        elif leaves:
            raise LogCorruptError("the stored log has entries but no checkpoint: restore the database")
        self._tree, self._head = tree, head

    def _verified_head(self, note: str, tree: MerkleTree) -> Head:
        try:
            opened = open_checkpoint(note, {self._origin: self.verifier_key}, self._origin)
        except (MalformedNoteError, CryptoError) as error:
            raise LogCorruptError(
                f"the stored checkpoint is not one this log key signed ({error}): restore database and key"
            ) from error
        checkpoint = opened.checkpoint
        if checkpoint.size != tree.size or checkpoint.root != tree.root():
            raise LogCorruptError(
                f"the {tree.size} stored entries are not the {checkpoint.size} that the stored checkpoint "
                "signed: the database was changed; restore it"
            )
        return Head(checkpoint.size, checkpoint.time, note)
