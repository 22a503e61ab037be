"""Pairwise masks: bound to their purpose, hostile keys refused by name, a fixed stream, secrets that do not print."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crypto.errors import InvalidEncodingError, OutOfRangeError
from crypto.masks import MaskSecret, generate_mask_key, mask_vector

P = 35_184_371_884_033
A, B = MaskSecret(b"\x11" * 32), MaskSecret(b"\x22" * 32)


def masks(binding: bytes = b"inquiry", length: int = 50, modulus: int = P) -> tuple[np.ndarray, np.ndarray]:
    first = mask_vector(
        A, "bank-a", {"bank-b": B.public_key}, binding=binding, length=length, modulus=modulus
    )
    second = mask_vector(
        B, "bank-b", {"bank-a": A.public_key}, binding=binding, length=length, modulus=modulus
    )
    return first, second


def test_stream_is_the_documented_one() -> None:
    """An independent derivation: HKDF-SHA256 over length-prefixed parts, ChaCha20, 64-bit words cut to 45 bits."""
    shared = X25519PrivateKey.from_private_bytes(b"\x11" * 32).exchange(
        X25519PublicKey.from_public_bytes(B.public_key)
    )
    parts = [b"subrosa/v1/pairwise-mask", b"inquiry", b"bank-a", A.public_key, b"bank-b", B.public_key]
    info = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(shared)
    words = struct.unpack("<60Q", Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(480)))
    expected = [word & (2**45 - 1) for word in words if word & (2**45 - 1) < P][:50]
    first, second = masks()
    assert first.tolist() == expected
    assert second.tolist() == [P - value for value in expected]
    assert first.dtype == second.dtype == np.int64


@pytest.mark.parametrize("modulus", [2, 3, 5, 2**33 + 1, P, 2**62])
def test_rejection_keeps_the_range_and_the_law(modulus: int) -> None:
    first, second = masks(length=5000, modulus=modulus)
    assert first.min() >= 0
    assert first.max() < modulus
    assert not ((first + second) % modulus).any()
    assert len(np.unique(first)) > min(modulus, 4000) // 2


def test_small_moduli_are_uniform() -> None:
    first, _ = masks(length=30_000, modulus=3)
    counts = np.bincount(first, minlength=3)
    assert (abs(counts - 10_000) < 500).all()


def test_another_binding_gives_another_mask() -> None:
    assert (masks(b"one")[0] != masks(b"two")[0]).all()


def test_secret_is_stored_and_never_shown() -> None:
    secret = generate_mask_key(lambda count: b"\x33" * count)
    assert repr(secret) == str(secret) == "MaskSecret(...)"
    assert MaskSecret.decode(secret.encode()).public_key == secret.public_key
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        # RFC 7748's curve has low-order points besides 0 and 1; p - 1, p and p + 1 are aliases of such.
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_low_order_keys_are_refused_by_name(point: bytes) -> None:
    with pytest.raises(InvalidEncodingError, match="bank-b"):
        mask_vector(A, "bank-a", {"bank-b": point}, binding=b"", length=4, modulus=P)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_keys_of_another_length_are_refused_by_name(key: bytes) -> None:
    with pytest.raises(InvalidEncodingError, match="bank-b"):
        mask_vector(A, "bank-a", {"bank-b": key}, binding=b"", length=4, modulus=P)


def test_copied_keys_are_refused() -> None:
    with pytest.raises(InvalidEncodingError, match=r"bank-b.*bank-a"):
        mask_vector(A, "bank-a", {"bank-b": A.public_key}, binding=b"", length=4, modulus=P)
    peers = {"bank-b": B.public_key, "bank-c": B.public_key}
    with pytest.raises(InvalidEncodingError, match=r"bank-c.*bank-b"):
        mask_vector(A, "bank-a", peers, binding=b"", length=4, modulus=P)


def test_bounds() -> None:
    peers = {"bank-b": B.public_key}
    for length in (0, -1, 2**24 + 1):
        with pytest.raises(OutOfRangeError):
            mask_vector(A, "bank-a", peers, binding=b"", length=length, modulus=P)
    for modulus in (0, 1, 2**62 + 1):
        with pytest.raises(OutOfRangeError):
            mask_vector(A, "bank-a", peers, binding=b"", length=4, modulus=modulus)
    for own, cohort in (("bank-a", {}), ("bank-b", peers)):
        with pytest.raises(OutOfRangeError):
            mask_vector(A, own, cohort, binding=b"", length=4, modulus=P)
    for secret in (b"", bytes(31), bytes(33)):
        with pytest.raises(InvalidEncodingError):
            MaskSecret(secret)
