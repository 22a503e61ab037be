"""Ed25519 with contexts: the published vector, what must be refused, and that secrets do not show."""

from __future__ import annotations

import pickle

import pytest

from crypto.errors import InvalidEncodingError, InvalidSignatureError
from crypto.signing import SigningKey, verify_raw_signature, verify_signature

# RFC 8032 section 7.1, TEST 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_published_vector() -> None:
    key = SigningKey(SEED)
    assert key.verify_key == PUBLIC
    assert key.sign_raw(b"\x72") == SIGNATURE
    verify_raw_signature(PUBLIC, b"\x72", SIGNATURE)


def test_the_key_does_not_show_and_does_not_travel() -> None:
    key = SigningKey(SEED)
    assert repr(key) == str(key) == "SigningKey(...)"
    with pytest.raises(TypeError, match="does not pickle"):
        pickle.dumps(key)
    assert key.seed() == SEED


@pytest.mark.parametrize("seed", [b"", SEED[:31], SEED + b"\0"])
def test_a_seed_of_another_length_is_refused(seed: bytes) -> None:
    with pytest.raises(InvalidEncodingError, match="32 bytes"):
        SigningKey(seed)


@pytest.mark.parametrize("context", ["", "a\0b", "\0"])
def test_a_context_is_text_without_zero_bytes(context: str) -> None:
    with pytest.raises(InvalidEncodingError, match="context"):
        SigningKey(SEED).sign(context, b"payload")


def test_one_kind_of_message_never_passes_as_another() -> None:
    key = SigningKey(SEED)
    signature = key.sign("contribution", b"payload")
    verify_signature(PUBLIC, "contribution", b"payload", signature)
    for context, payload in (
        ("veto", b"payload"),
        ("contribution", b"payloae"),
        ("contributionp", b"ayload"),
    ):
        with pytest.raises(InvalidSignatureError):
            verify_signature(PUBLIC, context, payload, signature)
    with pytest.raises(InvalidSignatureError):
        verify_raw_signature(PUBLIC, b"payload", signature)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (PUBLIC[:31], SIGNATURE),
        (PUBLIC + b"\0", SIGNATURE),
        (b"", SIGNATURE),
        (PUBLIC, SIGNATURE[:63]),
        (PUBLIC, SIGNATURE + b"\0"),
        (PUBLIC, b""),
        (bytes(32), SIGNATURE),
        (b"\xff" * 32, SIGNATURE),
        (PUBLIC, bytes([SIGNATURE[0] ^ 1]) + SIGNATURE[1:]),
        (PUBLIC, SIGNATURE[:-1] + bytes([SIGNATURE[-1] ^ 0x20])),
    ],
)
def test_wrong_keys_and_signatures_are_refused(key: bytes, signature: bytes) -> None:
    with pytest.raises(InvalidSignatureError):
        verify_raw_signature(key, b"\x72", signature)
