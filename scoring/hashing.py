"""SipHash-2-4 of text columns (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012), eight bytes a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

DEFAULT_KEY = b"subrosa/v1/keys."

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def hash_texts(texts: NDArray[Any], key: bytes) -> NDArray[np.uint64]:
    """Hashes uint64 [n] of a fixed-width unicode array; "" gives 0 and no other text does.

    The hash is over the little-endian UTF-32 code points without the padding NULs NumPy adds, so a text that differs
    only in trailing NULs has the same hash. ``key`` is 16 bytes. Raises ValueError for another length.
    """
    if len(key) != 16:
        raise ValueError(f"the hash key has {len(key)} bytes, not 16")
    width = texts.dtype.itemsize // 4
    if not len(texts) or not width:
        return np.zeros(len(texts), np.uint64)
    words = np.ascontiguousarray(texts.astype(texts.dtype.newbyteorder("="), copy=False))
    halves = np.frombuffer(key, "<u8").astype(np.uint64)
    hashes = siphash_words(words.view(np.uint32).reshape(len(texts), width), halves)
    hashes[hashes == 0] = 1
    hashes[texts == ""] = 0
    return hashes


def hash_pairs(first: NDArray[np.uint64], second: NDArray[np.uint64], key: bytes) -> NDArray[np.uint64]:
    """Hashes uint64 [n] of pairs of 64-bit words in order, 0 only where one of the two is 0; ``key`` is 16 bytes.

    Raises ValueError for a key of another length.
    """
    return _hash_pairs(first, second, _halves(key))


@lru_cache(maxsize=16)
def _halves(key: bytes) -> NDArray[np.uint64]:
    if len(key) != 16:
        raise ValueError(f"the hash key has {len(key)} bytes, not 16")
    return np.frombuffer(key, "<u8").astype(np.uint64)


@_compiled
def siphash_words(words: NDArray[np.uint32], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SipHash-2-4 of each row of 32-bit words up to its last non-zero word; uint64 [n]."""
    n, width = words.shape
    hashes = np.empty(n, np.uint64)
    for i in range(n):
        length = width
        while length > 0 and words[i, length - 1] == 0:
            length -= 1
        v0 = key[0] ^ np.uint64(0x736F6D6570736575)
        v1 = key[1] ^ np.uint64(0x646F72616E646F6D)
        v2 = key[0] ^ np.uint64(0x6C7967656E657261)
        v3 = key[1] ^ np.uint64(0x7465646279746573)
        pairs = length // 2
        for j in range(pairs + 1):
            if j < pairs:
                block = np.uint64(words[i, 2 * j]) | (np.uint64(words[i, 2 * j + 1]) << np.uint64(32))
            else:
                block = np.uint64((4 * length) & 255) << np.uint64(56)
                if length & 1:
                    block |= np.uint64(words[i, length - 1])
            v3 ^= block
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
            v0 ^= block
        v2 ^= np.uint64(0xFF)
        for _ in range(4):
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        hashes[i] = v0 ^ v1 ^ v2 ^ v3
    return hashes


@_compiled
def _hash_pairs(
    first: NDArray[np.uint64], second: NDArray[np.uint64], key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    # rows are equally wide, so that what siphash_words leaves out, zeros at the end, leaves two rows different
    words = np.empty((len(first), 4), np.uint32)
    for i in range(len(first)):
        words[i, 0] = first[i] & np.uint64(0xFFFFFFFF)
        words[i, 1] = first[i] >> np.uint64(32)
        words[i, 2] = second[i] & np.uint64(0xFFFFFFFF)
        words[i, 3] = second[i] >> np.uint64(32)
    hashes = siphash_words(words, key)
    for i in range(len(first)):
        if first[i] == 0 or second[i] == 0:
            hashes[i] = 0
        elif hashes[i] == 0:
            hashes[i] = 1
    return hashes


@_compiled
def _rotate(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@_compiled
def _round(
    v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    v0 += v1
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 += v3
    v3 = _rotate(v3, 16) ^ v2
    v0 += v3
    v3 = _rotate(v3, 21) ^ v0
    v2 += v1
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3
