"""Checkpoints of the log as C2SP signed notes, so that independent tools can check them.

Formats: c2sp.org/signed-note (text, blank line, signature lines ``— name base64(key hash || signature)``),
c2sp.org/tlog-checkpoint (origin, size, root, then extension lines; ours has exactly one, ``time <unix seconds>``).
Reading is strict: a note has one spelling, or it is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from crypto.errors import InvalidSignatureError
from crypto.merkle import HASH_SIZE
from crypto.signing import SIGNATURE_SIZE, VERIFY_KEY_SIZE, SigningKey, verify_raw_signature

MAX_NOTE_BYTES = 16_384
MAX_SIGNATURES = 100
_ED25519 = b"\x01"
_KEY_HASH_SIZE = 4
_NAME = re.compile(r"[!-*,-~]{1,255}\Z")  # printable ASCII without space and plus: a subset of C2SP's names
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")
_KEY_HASH = re.compile(r"[0-9a-f]{8}\Z")
_SIGNATURE_PREFIX = "— "


class MalformedNoteError(ValueError):
    """Text is not a note, checkpoint or verifier key in its one spelling."""


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: ``size`` entries under ``root`` (32 bytes), signed at ``time`` (unix seconds)."""

    origin: str
    size: int
    root: bytes
    time: int

    def text(self) -> str:
        """The signed text of the note, ending in a newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\ntime {self.time}\n"


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A verified checkpoint, the names that signed it, and how many signature lines were of unknown keys."""

    checkpoint: Checkpoint
    signers: frozenset[str]
    unknown_signatures: int


def verifier_key(name: str, verify_key: bytes) -> str:
    """``name+hash+base64(0x01 || key)``: the C2SP text form of an Ed25519 verify key (32 bytes)."""
    _check_name(name)
    if len(verify_key) != VERIFY_KEY_SIZE:
        raise MalformedNoteError(f"a verify key has {VERIFY_KEY_SIZE} bytes, not {len(verify_key)}")
    typed = _ED25519 + verify_key
    return f"{name}+{_key_hash(name, verify_key).hex()}+{base64.b64encode(typed).decode()}"


def parse_verifier_key(text: str) -> tuple[str, bytes]:
    """Read a verifier key; returns (name, 32 bytes) or raises :class:`MalformedNoteError`."""
    name, _, rest = text.partition("+")
    hash_text, _, key_text = rest.partition("+")
    _check_name(name)
    if not _KEY_HASH.match(hash_text):
        raise MalformedNoteError("a verifier key is name+hash+key, the hash of eight hex digits")
    typed = _decode_base64(key_text, "verifier key")
    if len(typed) != 1 + VERIFY_KEY_SIZE or typed[:1] != _ED25519:
        raise MalformedNoteError("a verifier key of another type than Ed25519")
    if _key_hash(name, typed[1:]).hex() != hash_text:
        raise MalformedNoteError("the hash of a verifier key does not match its name and key")
    return name, typed[1:]


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The signed note of ``checkpoint``; the key's name is the log's origin."""
    text = checkpoint.text()
    if _parse_checkpoint(text) != checkpoint:
        raise MalformedNoteError("a checkpoint that does not survive its own encoding")
    line = _signature_line(checkpoint.origin, key.verify_key, key.sign_raw(text.encode()))
    return f"{text}\n{line}"


def open_checkpoint(note: str, verifiers: Mapping[str, str], required: str) -> OpenedCheckpoint:
    """Verify ``note`` and read its checkpoint.

    ``verifiers`` maps names to verifier keys; ``required`` must be among the signers, and be the origin. As C2SP
    asks, a signature of an unknown key is counted and ignored, a wrong one of a known key refuses the note.
    Raises :class:`MalformedNoteError` or :class:`~crypto.errors.InvalidSignatureError`.
    """
    text, lines = _split_note(note)
    keys = {}
    for name, encoded in verifiers.items():
        written, verify_key = parse_verifier_key(encoded)
        if written != name:
            raise MalformedNoteError(f"the verifier key filed under {name!r} is of {written!r}")
        keys[name, _key_hash(name, verify_key)] = verify_key
    signers: set[str] = set()
    unknown = 0
    for line in lines:
        name, key_hash, signature = _parse_signature(line)
        known = keys.get((name, key_hash))
        if known is None:
            unknown += 1
            continue
        if name in signers:
            raise MalformedNoteError(f"two signatures of {name!r} on one note")
        try:
            verify_raw_signature(known, text.encode(), signature)
        except InvalidSignatureError as error:
            raise InvalidSignatureError(f"checkpoint: the signature of {name!r} does not verify") from error
        signers.add(name)
    if required not in signers:
        raise InvalidSignatureError(f"checkpoint: no signature by the trusted key of {required!r}")
    checkpoint = _parse_checkpoint(text)
    if checkpoint.origin != required:
        raise InvalidSignatureError(f"checkpoint of {checkpoint.origin!r}, not of {required!r}")
    return OpenedCheckpoint(checkpoint, frozenset(signers), unknown)


def _parse_checkpoint(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 5 or lines[4]:
        raise MalformedNoteError("a checkpoint has four lines: origin, size, root, time")
    origin, size, root_text, extension = lines[:4]
    _check_name(origin)
    if not _NUMBER.match(size):
        raise MalformedNoteError("the size of a checkpoint is not a decimal number")
    root = _decode_base64(root_text, "root")
    if len(root) != HASH_SIZE:
        raise MalformedNoteError(f"the root of a checkpoint has {HASH_SIZE} bytes, not {len(root)}")
    word, _, time = extension.partition(" ")
    if word != "time" or not _NUMBER.match(time):
        raise MalformedNoteError("the fourth line of a checkpoint is 'time <unix seconds>'")
    return Checkpoint(origin, int(size), root, int(time))


def _split_note(note: str) -> tuple[str, list[str]]:
    """(text with its final newline, signature lines without theirs)."""
    try:
        raw = note.encode()
    except UnicodeEncodeError as error:
        raise MalformedNoteError("a note that is not Unicode text") from error
    if len(raw) > MAX_NOTE_BYTES:
        raise MalformedNoteError(f"a note of {len(raw)} bytes, at most {MAX_NOTE_BYTES} are accepted")
    if any(byte < 0x20 and byte != 0x0A for byte in raw):
        raise MalformedNoteError("a note with control characters")
    text, separator, signatures = note.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise MalformedNoteError("a note is text, a blank line and signature lines, each ending in a newline")
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedNoteError(f"a note with {len(lines)} signatures")
    return text + "\n", lines


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    if not line.startswith(_SIGNATURE_PREFIX):
        raise MalformedNoteError("a signature line starts with an em dash and a space")
    name, _, encoded = line[len(_SIGNATURE_PREFIX) :].partition(" ")
    _check_name(name)
    signature = _decode_base64(encoded, "signature")
    if len(signature) <= _KEY_HASH_SIZE:
        raise MalformedNoteError("a signature line without a signature")
    return name, signature[:_KEY_HASH_SIZE], signature[_KEY_HASH_SIZE:]


def _signature_line(name: str, verify_key: bytes, signature: bytes) -> str:
    if len(signature) != SIGNATURE_SIZE:
        raise MalformedNoteError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    encoded = base64.b64encode(_key_hash(name, verify_key) + signature).decode()
    return f"{_SIGNATURE_PREFIX}{name} {encoded}\n"


def _key_hash(name: str, verify_key: bytes) -> bytes:
    """First four bytes of SHA-256(name || newline || 0x01 || key)."""
    return sha256(name.encode() + b"\n" + _ED25519 + verify_key).digest()[:_KEY_HASH_SIZE]


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise MalformedNoteError("a key name is printable ASCII without spaces and plus signs")


def _decode_base64(text: str, what: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedNoteError(f"a {what} is not base64") from error
    if base64.b64encode(decoded).decode() != text:
        raise MalformedNoteError(f"a {what} is not in its one base64 form")
    return decoded
