"""The one BFV parameter set (Fan-Vercauteren 2012, as in Microsoft SEAL) and what follows from it.

Security: ring 4096 with 88 bits of coefficient modulus; the HomomorphicEncryption.org standard allows 109 bits at
128-bit security, and fewer bits only raise it. Exactness: 64 data bits minus 45 plaintext bits leave 18 bits for
noise; 20 summands of the largest values were measured to leave 9 bits of budget. Against SEAL's default
(36, 36, 37) a ciphertext shrinks from 21.6 to 16.8 bytes an integer and a public context from 134 to 103 kB.
"""

from __future__ import annotations

RING = 4096
"""Integers per ciphertext."""

P = 35_184_371_884_033
"""The plaintext prime, 45 bits, 1 modulo 2 * RING: the integers of a contribution live in [0, P)."""

SUMMANDS_MAX = 20
"""Contributions that may be added with an exact result."""

COEFFICIENT_BITS = (32, 32, 24)
"""Sizes of the coefficient primes; the last is SEAL's special prime and not part of ciphertexts."""

COEFFICIENT_PRIMES = (4_294_729_729, 4_294_828_033, 16_760_833)
"""The primes SEAL chooses for those sizes."""

MAX_CIPHERTEXT_BYTES = 72_000
"""A serialised ciphertext measures 69 kB (64 of 128 bits a coefficient pair, compressed); the rest is slack."""

MAX_CONTEXT_BYTES = 110_000
"""A serialised public context measures 103 kB, nearly all of it the public key."""

MAX_LENGTH = 2**20
"""Longest vector of integers in one contribution."""


def ciphertext_count(length: int) -> int:
    """How many ciphertexts carry a vector of ``length`` integers."""
    return -(-length // RING)
