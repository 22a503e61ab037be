"""Sealing: the RFC 8452 vector through our framing, sizes that tell nothing, and every changed bit refused."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import InvalidEncodingError, OutOfRangeError, UnsealingError
from crypto.sealing import OVERHEAD, seal, sealed_size, unseal

KEY = bytes(range(32))


@given(st.binary(max_size=96), st.binary(max_size=40))
def test_round_trip_in_one_size(plaintext: bytes, associated: bytes) -> None:
    sealed = seal(KEY, plaintext, associated, random=os.urandom, padded_size=96)
    assert len(sealed) == sealed_size(96) == 96 + OVERHEAD
    assert unseal(KEY, sealed, associated) == plaintext


def test_library_is_aes_256_gcm_siv() -> None:
    """RFC 8452, appendix C.2: the empty plaintext, and eight bytes."""
    key = bytes.fromhex("01" + "00" * 31)
    nonce = bytes.fromhex("03" + "00" * 11)
    assert AESGCMSIV(key).encrypt(nonce, b"", b"").hex() == "07f5f4169bbf55a8400cd47ea6fd400f"
    eight = bytes.fromhex("0100000000000000")
    assert (
        AESGCMSIV(key).encrypt(nonce, eight, b"").hex() == "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"
    )


def test_fresh_nonces_hide_equality() -> None:
    assert seal(KEY, b"x", b"", random=os.urandom, padded_size=4) != seal(
        KEY, b"x", b"", random=os.urandom, padded_size=4
    )


def test_every_changed_bit_is_refused() -> None:
    sealed = seal(KEY, b"two victims", b"terminal", random=os.urandom, padded_size=16)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(UnsealingError):
            unseal(KEY, bytes(changed), b"terminal")
    for wrong in (sealed[:-1], sealed + b"\0", b"", sealed[: OVERHEAD - 1]):
        with pytest.raises(UnsealingError):
            unseal(KEY, wrong, b"terminal")
    with pytest.raises(UnsealingError):
        unseal(KEY, sealed, b"merchant")
    with pytest.raises(UnsealingError):
        unseal(bytes(32), sealed, b"terminal")


@pytest.mark.parametrize(
    "padded", [b"\0\0\0\x05abc", b"\0\0\0\x01ab", b"\xff\xff\xff\xffabcd", b"\0\0\0\x00\0\0\x01"]
)
def test_foreign_padding_is_refused(padded: bytes) -> None:
    nonce = bytes(12)
    with pytest.raises(UnsealingError, match="padding"):
        unseal(KEY, nonce + AESGCMSIV(KEY).encrypt(nonce, padded, b""), b"")


def test_bounds() -> None:
    with pytest.raises(OutOfRangeError):
        seal(KEY, bytes(17), b"", random=os.urandom, padded_size=16)
    for key in (b"", bytes(16), bytes(33)):
        with pytest.raises(InvalidEncodingError):
            seal(key, b"", b"", random=os.urandom, padded_size=16)
    with pytest.raises(InvalidEncodingError, match="random source"):
        seal(KEY, b"", b"", random=lambda _: b"", padded_size=16)
