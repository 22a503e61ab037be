"""The ciphersuite OPRF(ristretto255, SHA-512) of RFC 9497 section 4.1: hashes, contexts, key derivation.

Only the parts that both parties share live here; ``client`` and ``server`` are the roles of section 3.3,
``dleq`` is section 2.2.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha512

from crypto import group
from crypto.errors import InvalidEncodingError, OutOfRangeError

OUTPUT_SIZE = 64
MAX_INPUT_SIZE = 2**16 - 1
MAX_BATCH = 2**16 - 1
_IDENTIFIER = b"ristretto255-SHA512"
_SHA512_BLOCK = bytes(128)


class Mode(enum.IntEnum):
    """The protocol variants of RFC 9497 section 3.1 that are built here (POPRF, 2, is not)."""

    OPRF = 0
    VOPRF = 1


def framed(data: bytes) -> bytes:
    """``I2OSP(len(data), 2) || data``, the framing of every hash input of RFC 9497."""
    return len(data).to_bytes(2, "big") + data


def expand_message(message: bytes, domain: bytes) -> bytes:
    """64 bytes of expand_message_xmd with SHA-512 (RFC 9380 section 5.3.1); ``domain`` is at most 255 bytes.

    For 64 bytes the construction needs one block after b_0, so the two hashes are written out.
    """
    domain_prime = domain + len(domain).to_bytes(1, "big")
    first = sha512(_SHA512_BLOCK + message + b"\x00\x40\x00" + domain_prime).digest()
    return sha512(first + b"\x01" + domain_prime).digest()


@dataclass(frozen=True, slots=True)
class Suite:
    """One mode's domain separation. Build it with :func:`suite_of`; compare by ``mode``."""

    mode: Mode
    hash_to_group_domain: bytes
    hash_to_scalar_domain: bytes
    derive_key_domain: bytes
    seed_domain: bytes

    def hash_to_group(self, message: bytes) -> bytes:
        """``H1``: an element; :class:`OutOfRangeError` when the input is too long for its framing."""
        if len(message) > MAX_INPUT_SIZE:
            raise OutOfRangeError(f"an OPRF input has at most {MAX_INPUT_SIZE} bytes")
        element = group.hash_to_element(expand_message(message, self.hash_to_group_domain))
        if element == group.IDENTITY:
            raise InvalidEncodingError("the input maps to the identity element")
        return element

    def hash_to_scalar(self, message: bytes) -> bytes:
        """``H2`` with the suite's own domain: a scalar, zero with probability 2^-252."""
        return group.scalar_reduce(expand_message(message, self.hash_to_scalar_domain))

    def derive_key(self, seed: bytes, info: bytes) -> bytes:
        """DeriveKeyPair of RFC 9497 section 3.2.1 from a 32-byte seed: the secret scalar."""
        if len(seed) != 32:
            raise InvalidEncodingError(f"a key seed has 32 bytes, not {len(seed)}")
        if len(info) > MAX_INPUT_SIZE:
            raise OutOfRangeError(f"key info has at most {MAX_INPUT_SIZE} bytes")
        for counter in range(256):
            uniform = expand_message(seed + framed(info) + bytes([counter]), self.derive_key_domain)
            scalar = group.scalar_reduce(uniform)
            if scalar != bytes(group.SCALAR_SIZE):
                return scalar
        raise InvalidEncodingError("no key could be derived from this seed")


def suite_of(mode: Mode) -> Suite:
    """The suite of ``mode`` (contextString of RFC 9497 section 3.1)."""
    context = b"OPRFV1-" + bytes([mode]) + b"-" + _IDENTIFIER
    return Suite(
        mode=mode,
        hash_to_group_domain=b"HashToGroup-" + context,
        hash_to_scalar_domain=b"HashToScalar-" + context,
        derive_key_domain=b"DeriveKeyPair" + context,
        seed_domain=b"Seed-" + context,
    )


OPRF = suite_of(Mode.OPRF)
VOPRF = suite_of(Mode.VOPRF)


def output_of(message: bytes, unblinded: bytes) -> bytes:
    """The last step of Finalize (RFC 9497 sections 3.3.1 and 3.3.2): 64 bytes from input and unblinded element."""
    return sha512(framed(message) + framed(unblinded) + b"Finalize").digest()


def check_batch(count: int) -> None:
    """A batch has 1..65535 items: the composites of RFC 9497 number them in two bytes."""
    if not 1 <= count <= MAX_BATCH:
        raise OutOfRangeError(f"a batch has 1..{MAX_BATCH} items, not {count}")


def check_same_length(expected: int, items: Sequence[bytes], what: str) -> None:
    """Raise :class:`OutOfRangeError` unless ``items`` has ``expected`` members."""
    if len(items) != expected:
        raise OutOfRangeError(f"{len(items)} {what} for a batch of {expected}")
