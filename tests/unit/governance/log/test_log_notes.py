"""Signed notes: the published C2SP key, strictness, and every bit of a note mattering."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

import pytest

from crypto.errors import InvalidSignatureError
from crypto.signing import SigningKey
from governance.log.notes import (
    Checkpoint,
    MalformedNoteError,
    open_checkpoint,
    parse_verifier_key,
    sign_checkpoint,
    verifier_key,
)

ORIGIN = "subrosa.example/log"
KEY = SigningKey(b"\x01" * 32)
VERIFIER = verifier_key(ORIGIN, KEY.verify_key)
CHECKPOINT = Checkpoint(ORIGIN, 42, bytes(range(32)), 1_790_000_000)
NOTE = sign_checkpoint(CHECKPOINT, KEY)

# From the documentation of golang.org/x/mod/sumdb/note (the reference implementation of C2SP signed notes).
PETER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
PETER_SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FF"
    "YC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
)


def test_checkpoint_round_trip() -> None:
    opened = open_checkpoint(NOTE, {ORIGIN: VERIFIER}, ORIGIN)
    assert opened.checkpoint == CHECKPOINT
    assert opened.signers == {ORIGIN}
    assert opened.unknown_signatures == 0
    lines = NOTE.split("\n")
    assert lines[0] == ORIGIN
    assert lines[1] == "42"
    assert lines[3] == "time 1790000000"
    assert lines[4] == ""
    assert lines[5].startswith(f"— {ORIGIN} ")


def test_reference_verifier_key() -> None:
    name, key = parse_verifier_key(PETER_KEY)
    assert name == "PeterNeumann"
    assert verifier_key(name, key) == PETER_KEY
    # The reference signature verifies; the text is no checkpoint, which is found only after that.
    with pytest.raises(InvalidSignatureError, match="no signature by the trusted key"):
        open_checkpoint(f"{PETER_TEXT}\n{PETER_SIGNATURE}\n", {ORIGIN: VERIFIER}, ORIGIN)
    with pytest.raises(MalformedNoteError, match="four lines"):
        open_checkpoint(f"{PETER_TEXT}\n{PETER_SIGNATURE}\n", {name: PETER_KEY}, name)
    with pytest.raises(InvalidSignatureError, match="does not verify"):
        open_checkpoint(f"x{PETER_TEXT}\n{PETER_SIGNATURE}\n", {name: PETER_KEY}, name)


def test_every_changed_byte_of_a_note_is_refused() -> None:
    raw = NOTE.encode()
    for position in range(len(raw)):
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(raw)
            changed[position] ^= flip
            try:
                text = changed.decode()
            except UnicodeDecodeError:
                continue
            with pytest.raises((MalformedNoteError, InvalidSignatureError)):
                open_checkpoint(text, {ORIGIN: VERIFIER}, ORIGIN)


def test_notes_with_several_signatures(cosign: Callable[[str, str, SigningKey], str]) -> None:
    witness = SigningKey(b"\x02" * 32)
    both = cosign(NOTE, "witness.example", witness)
    opened = open_checkpoint(both, {ORIGIN: VERIFIER}, ORIGIN)
    assert (opened.signers, opened.unknown_signatures) == ({ORIGIN}, 1)
    verifiers = {ORIGIN: VERIFIER, "witness.example": verifier_key("witness.example", witness.verify_key)}
    assert open_checkpoint(both, verifiers, ORIGIN).signers == {ORIGIN, "witness.example"}
    with pytest.raises(MalformedNoteError, match="two signatures"):
        open_checkpoint(cosign(both, "witness.example", witness), verifiers, ORIGIN)
    # A known witness whose signature is wrong refuses the note, an unknown one is ignored.
    broken = both[:-10] + ("A" if both[-10] != "A" else "B") + both[-9:]
    with pytest.raises(InvalidSignatureError, match=r"witness\.example"):
        open_checkpoint(broken, verifiers, ORIGIN)
    assert open_checkpoint(broken, {ORIGIN: VERIFIER}, ORIGIN).unknown_signatures == 1


def test_the_required_signer_must_be_the_origin(cosign: Callable[[str, str, SigningKey], str]) -> None:
    other = SigningKey(b"\x03" * 32)
    signed = cosign(NOTE, "other.example", other)
    verifiers = {"other.example": verifier_key("other.example", other.verify_key)}
    with pytest.raises(InvalidSignatureError, match="not of"):
        open_checkpoint(signed, verifiers, "other.example")


@pytest.mark.parametrize(
    "text",
    [
        "o\n1\nAAAA\ntime 1\n",
        f"o\n01\n{'A' * 43}=\ntime 1\n",
        f"o\n-1\n{'A' * 43}=\ntime 1\n",
        f"o\n1\n{'A' * 43}=\n",
        f"o\n1\n{'A' * 43}=\ntime 01\n",
        f"o\n1\n{'A' * 43}=\nTime 1\n",
        f"o\n1\n{'A' * 43}=\ntime 1\nextra\n",
        f"o\n1\n{'A' * 42}B=\ntime 1\n",
        f"o o\n1\n{'A' * 43}=\ntime 1\n",
        f"o\n1_0\n{'A' * 43}=\ntime 1\n",
    ],
)
def test_signed_nonsense_is_refused(text: str) -> None:
    key = SigningKey(b"\x04" * 32)
    hash_ = bytes.fromhex(verifier_key("o", key.verify_key).split("+")[1])
    line = f"— o {b64encode(hash_ + key.sign_raw(text.encode())).decode()}\n"
    with pytest.raises(MalformedNoteError):
        open_checkpoint(f"{text}\n{line}", {"o": verifier_key("o", key.verify_key)}, "o")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        "a+b",
        "a+00000000+",
        VERIFIER + "A",
        VERIFIER.replace("+A", "+B"),
        VERIFIER.replace("subrosa", "suborsa"),
        "a b" + VERIFIER[len(ORIGIN) :],
    ],
)
def test_malformed_verifier_keys(key: str) -> None:
    with pytest.raises(MalformedNoteError):
        parse_verifier_key(key)


def test_bounds() -> None:
    for note in (
        "",
        "\n\n",
        NOTE + "\n",
        NOTE[:-1],
        NOTE.replace("\n\n", "\n"),
        NOTE + "x" * 20_000,
        "\ud800",
    ):
        with pytest.raises(MalformedNoteError):
            open_checkpoint(note, {ORIGIN: VERIFIER}, ORIGIN)
    many = NOTE + NOTE.split("\n\n")[1] * 100
    with pytest.raises(MalformedNoteError):
        open_checkpoint(many, {ORIGIN: VERIFIER}, ORIGIN)
    for checkpoint in (
        Checkpoint("a b", 1, bytes(32), 1),
        Checkpoint("a", -1, bytes(32), 1),
        Checkpoint("a", 1, bytes(31), 1),
        Checkpoint("a", 1, bytes(32), -1),
    ):
        with pytest.raises(MalformedNoteError):
            sign_checkpoint(checkpoint, KEY)
    with pytest.raises(MalformedNoteError):
        open_checkpoint(NOTE, {"other": VERIFIER}, "other")
