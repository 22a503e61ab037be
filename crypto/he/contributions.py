"""Encrypting a masked vector to the requester, and adding ciphertexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tenseal import _ts_cpp

from crypto.errors import InvalidEncodingError, OutOfRangeError
from crypto.he.contexts import PublicContext
from crypto.he.envelope import check_ciphertexts
from crypto.he.parameters import MAX_LENGTH, RING, P, ciphertext_count

__all__ = ["add_column", "check_ciphertexts", "ciphertext_count", "encrypt_vector"]


def encrypt_vector(context: PublicContext, values: npt.NDArray[np.int64]) -> list[bytes]:
    """Encrypt ``values``: int64 of shape (n,) in [0, P). One ciphertext per 4,096, the last padded with zeros."""
    if values.ndim != 1 or values.dtype != np.int64:
        raise OutOfRangeError(f"a contribution is one row of int64, not {values.ndim} of {values.dtype}")
    if not 1 <= len(values) <= MAX_LENGTH:
        raise OutOfRangeError(f"a contribution has 1..{MAX_LENGTH} integers, not {len(values)}")
    if values.min() < 0 or values.max() >= P:
        raise OutOfRangeError("a contribution with integers outside [0, P)")
    padded = np.zeros(ciphertext_count(len(values)) * RING, dtype=np.int64)
    padded[: len(values)] = values
    # The native constructor: TenSEAL's Python wrapper copies the list twice more.
    return [
        _ts_cpp.BFVVector(context.native, padded[first : first + RING].tolist()).serialize()
        for first in range(0, len(padded), RING)
    ]


def add_column(native: Any, column: Sequence[bytes]) -> Any:
    """TenSEAL's sum of ciphertexts already checked for their outer form, under the native context."""
    try:
        total = _load(native, column[0])
        for serialised in column[1:]:
            total.add_(_load(native, serialised))
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidEncodingError(f"not a ciphertext under this key's parameters: {error}") from error
    return total


def _load(native: Any, serialised: bytes) -> Any:
    vector = _ts_cpp.BFVVector(native, serialised)
    if vector.size() != RING:
        raise InvalidEncodingError(f"a vector of {vector.size()} integers, not {RING}")
    (ciphertext,) = vector.ciphertext()
    # Two polynomials at the data level: anything else is no fresh encryption, and adding it would not be exact.
    if ciphertext.size() != 2 or ciphertext.coeff_modulus_size() != 1 or ciphertext.is_ntt_form():
        raise InvalidEncodingError("not a fresh ciphertext")
    return vector
