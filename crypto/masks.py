"""Pairwise masks that cancel in the sum over a cohort (Bonawitz et al., CCS 2017, section 4.1, without recovery).

Each pair of members derives one stream of integers modulo ``modulus`` from an X25519 secret; the one whose id
sorts first adds it, the other subtracts it. As long as every member of the cohort contributes exactly once, the
masks vanish from the sum; without one of them the sum is uniformly random. Every secret serves one binding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crypto.errors import InvalidEncodingError, OutOfRangeError

SECRET_SIZE = 32
PUBLIC_KEY_SIZE = 32
# Sums of two values below the modulus must stay inside int64.
MAX_MODULUS = 2**62
MAX_LENGTH = 2**24

Vector = npt.NDArray[np.int64]

_INFO = b"subrosa/v1/pairwise-mask"


class MaskSecret:
    """A fresh X25519 private key for one inquiry. Its text form never shows the key."""

    __slots__ = ("_key", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Take 32 uniformly random bytes."""
        if len(secret) != SECRET_SIZE:
            raise InvalidEncodingError(f"a mask secret has {SECRET_SIZE} bytes, not {len(secret)}")
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "MaskSecret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a MaskSecret does not pickle: encode it under the owner's storage key")

    def encode(self) -> bytes:
        """The 32 secret bytes, for sealed storage only."""
        return self._key.private_bytes_raw()

    @classmethod
    def decode(cls, encoded: bytes) -> MaskSecret:
        """The inverse of :meth:`encode`."""
        return cls(encoded)

    def _shared(self, peer: str, public_key: bytes) -> bytes:
        if len(public_key) != PUBLIC_KEY_SIZE:
            raise InvalidEncodingError(
                f"the mask key of {peer!r} has {len(public_key)} bytes, not {PUBLIC_KEY_SIZE}"
            )
        try:
            # Low-order points give the all-zero secret, which the library refuses (RFC 7748, 6.1).
            return self._key.exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError as error:
            raise InvalidEncodingError(f"the mask key of {peer!r} is a point of low order") from error


def generate_mask_key(random: Callable[[int], bytes]) -> MaskSecret:
    """A new secret; ``random`` is called with a byte count and must be cryptographically secure."""
    return MaskSecret(random(SECRET_SIZE))


def mask_vector(
    secret: MaskSecret,
    own: str,
    peers: Mapping[str, bytes],
    *,
    binding: bytes,
    length: int,
    modulus: int,
) -> Vector:
    """The mask ``own`` adds to its values: int64 of shape (``length``,) in [0, ``modulus``).

    ``peers``: all *other* members of the cohort with their X25519 public keys (32 bytes), authenticated by the
    caller. ``binding``: what the masks are for (inquiry, cohort, all mask keys); both sides must agree on it.
    Law: the masks of a whole cohort add up to 0 modulo ``modulus``. Raises InvalidEncodingError naming a peer
    whose key is malformed, of low order or not its own, OutOfRangeError for sizes outside the bounds.
    """
    if not 2 <= modulus <= MAX_MODULUS:
        raise OutOfRangeError(f"a mask modulus lies in 2..2**62, not {modulus}")
    if not 1 <= length <= MAX_LENGTH:
        raise OutOfRangeError(f"a mask has 1..{MAX_LENGTH} elements, not {length}")
    if not peers or own in peers:
        raise OutOfRangeError("masks are made with at least one peer, and never with oneself")
    seen = {secret.public_key: own}
    total = np.zeros(length, dtype=np.int64)
    for peer, public_key in sorted(peers.items()):
        if public_key in seen:
            raise InvalidEncodingError(f"{peer!r} presents the mask key of {seen[public_key]!r}")
        seen[public_key] = peer
        pair = sorted([(own, secret.public_key), (peer, public_key)])
        info = b"".join(
            len(part).to_bytes(4, "big") + part
            for part in (_INFO, binding, *(item for name, key in pair for item in (name.encode(), key)))
        )
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(
            secret._shared(peer, public_key)
        )
        elements = _uniform_elements(key, length, modulus)
        if own < peer:
            total += elements
        else:
            total += modulus
            total -= elements
        np.subtract(total, modulus, out=total, where=total >= modulus)
    return total


def _uniform_elements(key: bytes, length: int, modulus: int) -> Vector:
    """The first ``length`` 64-bit words of the ChaCha20 stream that, cut to the modulus's bits, lie below it."""
    # The key is used for this one stream, so the nonce and block counter start at zero.
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    bits = np.uint64((1 << modulus.bit_length()) - 1)
    accepted = np.empty(length, dtype=np.int64)
    filled = 0
    while filled < length:
        words = np.frombuffer(stream.update(bytes(8 * (length - filled))), dtype="<u8") & bits
        candidates = words.astype(np.int64)
        if candidates.max() >= modulus:
            candidates = candidates[candidates < modulus]
        accepted[filled : filled + len(candidates)] = candidates
        filled += len(candidates)
    return accepted
