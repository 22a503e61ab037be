"""Authenticated encryption at rest and of labels: AES-256-GCM-SIV (RFC 8452), random nonce, one padded size.

GCM-SIV because a repeated nonce (a cloned machine, a replayed random state) then reveals no more than the
equality of two sealed values. The plaintext's length is hidden by padding to ``padded_size``.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from crypto.errors import InvalidEncodingError, OutOfRangeError, UnsealingError

KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16
_LENGTH_SIZE = 4
# How much longer than ``padded_size`` a sealed value is.
OVERHEAD = NONCE_SIZE + _LENGTH_SIZE + TAG_SIZE


def sealed_size(padded_size: int) -> int:
    """Bytes of every value sealed with ``padded_size``."""
    return padded_size + OVERHEAD


def seal(
    key: bytes, plaintext: bytes, associated: bytes, *, random: Callable[[int], bytes], padded_size: int
) -> bytes:
    """``nonce || ciphertext || tag`` of the padded plaintext, :func:`sealed_size` bytes.

    ``key`` 32 bytes; ``associated`` is authenticated, not hidden; ``random`` a secure source called with a byte
    count. OutOfRangeError if ``plaintext`` is longer than ``padded_size``.
    """
    if len(plaintext) > padded_size:
        raise OutOfRangeError(f"{len(plaintext)} bytes do not fit into {padded_size}")
    padded = len(plaintext).to_bytes(_LENGTH_SIZE, "big") + plaintext.ljust(padded_size, b"\0")
    nonce = random(NONCE_SIZE)
    if len(nonce) != NONCE_SIZE:
        raise InvalidEncodingError(f"the random source gave {len(nonce)} bytes, not {NONCE_SIZE}")
    return nonce + _cipher(key).encrypt(nonce, padded, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext, or :class:`UnsealingError` if key, ciphertext or associated data are not those of the seal."""
    if len(sealed) < OVERHEAD:
        raise UnsealingError(f"a sealed value has at least {OVERHEAD} bytes, not {len(sealed)}")
    try:
        padded = _cipher(key).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], associated)
    except InvalidTag as error:
        raise UnsealingError("wrong key, changed ciphertext or changed associated data") from error
    length = int.from_bytes(padded[:_LENGTH_SIZE], "big")
    plaintext, padding = padded[_LENGTH_SIZE : _LENGTH_SIZE + length], padded[_LENGTH_SIZE + length :]
    if len(plaintext) != length or padding.strip(b"\0"):
        raise UnsealingError("sealed with another padding than ours")
    return plaintext


def _cipher(key: bytes) -> AESGCMSIV:
    if len(key) != KEY_SIZE:
        raise InvalidEncodingError(f"a sealing key has {KEY_SIZE} bytes, not {len(key)}")
    return AESGCMSIV(key)
