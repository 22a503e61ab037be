"""How log entries and checkpoints travel: body, salt and proofs, so that a reader verifies before it believes."""

from __future__ import annotations

from governance.messages.codec import Message


class CheckpointUpdate(Message, frozen=True):
    """A signed-note checkpoint (C2SP) and the proof that it extends the tree of ``first_size`` entries.

    ``consistency`` is empty when ``first_size`` is 0 or equals the new size.
    """

    note: str
    first_size: int
    consistency: list[bytes]


class LoggedEntry(Message, frozen=True):
    """One entry with its inclusion proof for the checkpoint it travels with.

    ``body`` is canonical JSON (RFC 8785) of the entry, ``salt`` 32 bytes; the leaf commits to both.
    """

    index: int
    salt: bytes
    body: bytes
    inclusion: list[bytes]


class LogPage(Message, frozen=True):
    """Consecutive entries the caller may read, under one checkpoint."""

    checkpoint: CheckpointUpdate
    entries: list[LoggedEntry]
