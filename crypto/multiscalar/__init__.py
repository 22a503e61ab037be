"""Sums of public multiples in ristretto255, several times faster than one multiplication after the other.

**Public data only.** Time and memory access depend on scalars and elements, so nothing secret may come in. The
composites of a batch proof (RFC 9497 section 2.2) and the combining of answers are of that kind: everybody on the
line sees every element and can compute every weight. Secret scalars stay with libsodium in ``crypto.group``, which
also checks lengths and ranges before it calls this package.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crypto.errors import InvalidEncodingError
from crypto.group import InvalidPositionError
from crypto.multiscalar import kernel


def _width_for(count: int) -> int:
    """The digit width with the fewest point additions: each of 253/w places costs count + 2^w of them."""
    return min(range(3, 13), key=lambda width: (count + 2**width) * (kernel.SCALAR_BITS // width + 1))


def sum_public_multiples(scalars: Sequence[bytes], elements: Sequence[bytes]) -> bytes:
    """``sum(scalar_i * element_i)`` as 32 bytes, for canonical scalars whose lengths the caller has checked.

    :class:`InvalidEncodingError` names the position of an element that is not canonical. The identity is
    an element here and below; ``crypto.group`` refuses it before calling.
    """
    count = len(elements)
    words = np.frombuffer(b"".join(elements), dtype="<u8")
    digits = np.frombuffer(b"".join(scalars), dtype=np.uint8)
    if count == 0 or words.size != 4 * count or digits.size != 32 * count:
        raise InvalidEncodingError("a sum takes as many scalars as elements, 32 bytes each")
    out = np.empty(4, "<u8")
    refused = kernel.sum_multiples(words.reshape(count, 4), digits.reshape(count, 32), _width_for(count), out)
    if refused >= 0:
        raise InvalidEncodingError(f"element {refused}: not canonical")
    return out.tobytes()


def combine_public_batches(factors: Sequence[int], batches: Sequence[Sequence[bytes]]) -> list[bytes]:
    """``[sum_i(factors[i] * batches[i][j]) for j]`` for public integers: cheap when they are short.

    ``batches`` hold elements of 32 bytes whose lengths the caller has checked, equally many each.
    :class:`InvalidPositionError` says which batch holds an element that is not canonical.
    """
    count = len(batches[0]) if batches else 0
    words = np.frombuffer(b"".join(b"".join(batch) for batch in batches), dtype="<u8")
    if not factors or len(factors) != len(batches) or words.size != 4 * count * len(batches):
        raise InvalidEncodingError("combining takes one factor for each batch and batches of one length")
    places = max(1, max(abs(factor).bit_length() for factor in factors))
    bits = np.array(
        [[abs(factor) >> place & 1 for place in range(places - 1, -1, -1)] for factor in factors],
        dtype=np.bool_,
    )
    negative = np.array([factor < 0 for factor in factors], dtype=np.bool_)
    out = np.empty((count, 4), "<u8")
    refused = kernel.combine(words.reshape(len(batches), count, 4), bits, negative, out)
    if refused >= 0:
        raise InvalidPositionError(refused // count, refused % count)
    encoded = out.tobytes()
    return [encoded[start : start + 32] for start in range(0, len(encoded), 32)]


def prepare() -> None:
    """Compile now (seconds on a machine's first run, a fraction of one from the cache): not within a request."""
    identity = bytes(32)
    sum_public_multiples((identity,), (identity,))
    combine_public_batches((1,), ((identity,),))
