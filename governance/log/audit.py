"""Offline verification of an exported log, and of a single entry's proof. Files in, report or refusal out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from crypto.errors import CryptoError, InvalidSignatureError
from crypto.merkle import MerkleTree, verify_inclusion
from governance.log.entries import Entry, MalformedEntryError, decode_entry, entry_type
from governance.log.export import (
    CHECKPOINT_FILE,
    ENTRIES_FILE,
    PARTIES_FILE,
    AuditError,
    check_listing,
    encode_anchors,
    read_anchors,
    read_entries,
    read_note,
)
from governance.log.history import HistoryError, LogHistory
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, MalformedNoteError, open_checkpoint, parse_verifier_key
from governance.log.report import AuditReport, RequestTally

MAX_PROOF_BYTES = 4 * 2**20
_ENCODER = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True)
class ProvenEntry:
    """One entry, its place in the log and the checkpoint that proves it."""

    index: int
    entry: Entry
    checkpoint: Checkpoint


class _EntryProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file of a single entry's proof; hashes and salt in hex, ``body`` the entry's canonical JSON as text."""

    body: str
    checkpoint: str
    inclusion: list[str]
    index: int
    salt: str


def verify_export(directory: Path, pinned_key: str | None) -> AuditReport:
    """Verify the export in ``directory`` and tell who asked what, why and how often.

    ``pinned_key``: the log's verifier key (C2SP text form) known from elsewhere. With None the key named in the
    export itself is believed, which proves that the export is whole but not whose it is; the report says so.
    Raises :class:`AuditError` (what, where) after any change of any byte.
    """
    check_listing(directory)
    anchors, anchor_bytes = read_anchors(directory)
    if pinned_key is not None and anchors.log.verify_key != pinned_key:
        raise AuditError("the export names another log key than the pinned one", PARTIES_FILE)
    checkpoint = _open_note(read_note(directory), anchors.log.verify_key)
    if anchors.log.origin != checkpoint.origin:
        raise AuditError(f"the anchors are of {anchors.log.origin!r}", PARTIES_FILE)

    tree = MerkleTree()
    history = LogHistory()
    tally = RequestTally()
    types: Counter[str] = Counter()
    times: list[int] = []
    bodies: list[tuple[Entry, str]] = []
    for number, raw in enumerate(read_entries(directory), start=1):
        where = f"{ENTRIES_FILE} line {number}"
        if number > checkpoint.size:
            raise AuditError(f"more entries than the {checkpoint.size} of the checkpoint", where)
        try:
            entry = decode_entry(raw.body)
        except MalformedEntryError as error:
            raise AuditError(str(error), where) from error
        tree.append(entry_leaf_hash(raw.salt, raw.body))
        bodies.append((entry, where))
    if tree.size != checkpoint.size:
        raise AuditError(f"{tree.size} entries, the checkpoint has {checkpoint.size}", ENTRIES_FILE)
    if tree.root() != checkpoint.root:
        raise AuditError("the entries do not hash to the root that was signed", ENTRIES_FILE)

    # Meaning is judged only of bytes that the log's key stands for.
    for entry, where in bodies:
        try:
            history.apply(entry)
        except HistoryError as error:
            raise AuditError(str(error), where) from error
        tally.count(entry)
        types[entry_type(entry)] += 1
        times.append(entry.at)
    if history.roll is None:
        raise AuditError("the log is empty", ENTRIES_FILE)
    if anchor_bytes != encode_anchors(anchors.log.verify_key, checkpoint.origin, history.roll):
        raise AuditError("not the parties of the newest membership entry", PARTIES_FILE)
    return AuditReport(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        checkpoint_time=checkpoint.time,
        key_pinned=pinned_key is not None,
        first_at=min(times),
        last_at=max(times),
        clock_steps=history.clock_steps,
        members=[known.party for known in history.roll.roll if known.role == "member"],
        policy_epoch=history.policy_epoch,
        entries=dict(sorted(types.items())),
        inquiries=dict(sorted(Counter(history.inquiries.values()).items())),
        requests=tally.rows(),
    )


def prove_entry(directory: Path, index: int) -> bytes:
    """The proof file (canonical JSON) of entry ``index`` of an export; the export is verified on the way."""
    verify_export(directory, None)
    raws = list(read_entries(directory))
    if not 0 <= index < len(raws):
        raise AuditError(f"there is no entry {index}, the log has {len(raws)}", ENTRIES_FILE)
    tree = MerkleTree(entry_leaf_hash(raw.salt, raw.body) for raw in raws)
    proof = _EntryProof(
        body=raws[index].body.decode(),
        checkpoint=read_note(directory),
        inclusion=[node.hex() for node in tree.inclusion_proof(index)],
        index=index,
        salt=raws[index].salt.hex(),
    )
    return _ENCODER.encode(proof) + b"\n"


def verify_entry_proof(proof: bytes, verify_key: str) -> ProvenEntry:
    """Verify the file made by :func:`prove_entry` under the log's ``verify_key``; AuditError if it does not hold."""
    where = "entry proof"
    if len(proof) > MAX_PROOF_BYTES:
        raise AuditError(f"longer than the {MAX_PROOF_BYTES} bytes accepted", where)
    try:
        parsed = msgspec.json.decode(proof, type=_EntryProof)
        if _ENCODER.encode(parsed) + b"\n" != proof:
            raise AuditError("not canonical JSON", where)
        body = parsed.body.encode()
        checkpoint = _open_note(parsed.checkpoint, verify_key)
        verify_inclusion(
            entry_leaf_hash(_hex(parsed.salt), body),
            parsed.index,
            checkpoint.size,
            [_hex(node) for node in parsed.inclusion],
            checkpoint.root,
        )
        return ProvenEntry(parsed.index, decode_entry(body), checkpoint)
    except (msgspec.DecodeError, UnicodeError, RecursionError, MalformedEntryError, CryptoError) as error:
        raise AuditError(str(error), where) from error


def _open_note(note: str, verify_key: str) -> Checkpoint:
    try:
        origin, _ = parse_verifier_key(verify_key)
    except MalformedNoteError as error:
        raise AuditError(f"the log's verifier key: {error}", PARTIES_FILE) from error
    try:
        opened = open_checkpoint(note, {origin: verify_key}, origin)
    except (MalformedNoteError, InvalidSignatureError) as error:
        raise AuditError(str(error), CHECKPOINT_FILE) from error
    if opened.unknown_signatures:
        # A reader on the network ignores them; in an export they would be bytes that nothing checks.
        raise AuditError("a signature by a key that is not among the trust anchors", CHECKPOINT_FILE)
    return opened.checkpoint


def _hex(text: str) -> bytes:
    try:
        decoded = bytes.fromhex(text)
    except ValueError as error:
        raise AuditError("not hexadecimal", "entry proof") from error
    if decoded.hex() != text:
        raise AuditError("not lower-case hexadecimal", "entry proof")
    return decoded
