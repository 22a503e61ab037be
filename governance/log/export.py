"""The exported log: three files, every byte of which is determined by signed content.

``checkpoint``    the signed note, exactly as the coordinator signed it
``entries.jsonl`` one entry a line, canonical JSON ``{"body":{...},"salt":"<hex>"}``, in the order of the log
``parties.json``  the trust anchors: the log's verifier key, and the parties of the last membership entry

Nothing else may be in the directory, so a change of any byte is a change of something that is checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from governance.log.entries import MAX_BODY_BYTES, KnownParty, MembershipEntry, decode_entry
from governance.log.leaves import SALT_SIZE
from governance.log.notes import MAX_NOTE_BYTES

CHECKPOINT_FILE = "checkpoint"
ENTRIES_FILE = "entries.jsonl"
PARTIES_FILE = "parties.json"
FILES = frozenset({CHECKPOINT_FILE, ENTRIES_FILE, PARTIES_FILE})
MAX_PARTIES_BYTES = 2**20

_LINE_HEAD = b'{"body":'
_LINE_MIDDLE = b',"salt":"'
_LINE_TAIL = b'"}\n'
_SALT_DIGITS = 2 * SALT_SIZE
_SUFFIX_SIZE = len(_LINE_MIDDLE) + _SALT_DIGITS + len(_LINE_TAIL)
_MAX_LINE_BYTES = len(_LINE_HEAD) + MAX_BODY_BYTES + _SUFFIX_SIZE
_HEX_DIGITS = frozenset(b"0123456789abcdef")

_ENCODER = msgspec.json.Encoder(order="sorted")


class AuditError(Exception):
    """An exported log is not what its checkpoint and its own history promise: ``what`` is wrong, ``where``."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what = what
        self.where = where


class LogAnchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The log itself: its origin and verifier key (C2SP text form)."""

    origin: str
    verify_key: str


class TrustAnchors(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``parties.json``."""

    log: LogAnchor
    parties: list[KnownParty]
    roll_version: int


@dataclass(frozen=True)
class RawEntry:
    """One line of the export: ``salt`` 32 bytes, ``body`` canonical JSON."""

    salt: bytes
    body: bytes


def encode_line(raw: RawEntry) -> bytes:
    """The line of ``entries.jsonl``, with its newline."""
    return _LINE_HEAD + raw.body + _LINE_MIDDLE + raw.salt.hex().encode() + _LINE_TAIL


def decode_line(line: bytes, where: str) -> RawEntry:
    """Read one line (with its newline); AuditError unless it has exactly the form of :func:`encode_line`."""
    salt_text = line[-len(_LINE_TAIL) - _SALT_DIGITS : -len(_LINE_TAIL)]
    if (
        len(line) < len(_LINE_HEAD) + _SUFFIX_SIZE
        or not line.startswith(_LINE_HEAD)
        or not line.endswith(_LINE_TAIL)
        or line[-_SUFFIX_SIZE : -_SUFFIX_SIZE + len(_LINE_MIDDLE)] != _LINE_MIDDLE
        or not _HEX_DIGITS.issuperset(salt_text)
    ):
        raise AuditError('a line that is not {"body":...,"salt":...} in canonical JSON', where)
    return RawEntry(bytes.fromhex(salt_text.decode()), line[len(_LINE_HEAD) : -_SUFFIX_SIZE])


def encode_anchors(verify_key: str, origin: str, last_roll: MembershipEntry) -> bytes:
    """The only valid ``parties.json`` for a log with this key and this newest membership entry."""
    anchors = TrustAnchors(
        log=LogAnchor(origin=origin, verify_key=verify_key),
        parties=last_roll.roll,
        roll_version=last_roll.version,
    )
    return _ENCODER.encode(anchors) + b"\n"


def write_export(
    directory: Path, *, note: str, origin: str, verify_key: str, entries: Iterable[tuple[bytes, bytes]]
) -> int:
    """Write an export into ``directory``, which must be new or empty; returns the number of entries.

    ``entries``: (salt, body) of the first ``size`` entries under the checkpoint ``note``, in order.
    The caller runs ``verify_export`` afterwards: what it cannot verify it must not hand out.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise AuditError("the export goes into a new or empty directory", str(directory))
    last_roll: MembershipEntry | None = None
    count = 0
    with (directory / ENTRIES_FILE).open("wb") as sink:
        for salt, body in entries:
            sink.write(encode_line(RawEntry(salt, body)))
            count += 1
            if b'"type":"membership"' in body:
                entry = decode_entry(body)
                last_roll = entry if isinstance(entry, MembershipEntry) else last_roll
    if last_roll is None:
        raise AuditError("the log has no membership entry", ENTRIES_FILE)
    (directory / CHECKPOINT_FILE).write_bytes(note.encode())
    (directory / PARTIES_FILE).write_bytes(encode_anchors(verify_key, origin, last_roll))
    return count


def check_listing(directory: Path) -> None:
    """AuditError unless ``directory`` holds exactly the three files, none of them a link."""
    if not directory.is_dir():
        raise AuditError("not the directory of an exported log", str(directory))
    found = {item.name: item for item in os.scandir(directory)}
    for name in sorted(FILES - found.keys()):
        raise AuditError("this file of the export is missing", name)
    for name in sorted(found.keys() - FILES):
        raise AuditError("this file does not belong to an exported log", name)
    for name in sorted(FILES):
        if not found[name].is_file(follow_symlinks=False):
            raise AuditError("not a regular file", name)


def read_note(directory: Path) -> str:
    """The checkpoint note's text."""
    raw = _read_bounded(directory / CHECKPOINT_FILE, MAX_NOTE_BYTES)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise AuditError("the checkpoint is not UTF-8 text", CHECKPOINT_FILE) from error


def read_anchors(directory: Path) -> tuple[TrustAnchors, bytes]:
    """``parties.json`` decoded, and its bytes for comparison with :func:`encode_anchors`."""
    raw = _read_bounded(directory / PARTIES_FILE, MAX_PARTIES_BYTES)
    try:
        return msgspec.json.decode(raw, type=TrustAnchors), raw
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AuditError(f"not the trust anchors of an export: {error}", PARTIES_FILE) from error


def read_entries(directory: Path) -> Iterator[RawEntry]:
    """The raw entries in order; AuditError names the line."""
    number = 0
    with (directory / ENTRIES_FILE).open("rb") as source:
        while line := source.readline(_MAX_LINE_BYTES + 1):
            number += 1
            yield decode_line(line, f"{ENTRIES_FILE} line {number}")


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as source:
        raw = source.read(limit + 1)
    if len(raw) > limit:
        raise AuditError(f"longer than the {limit} bytes accepted", path.name)
    return raw
