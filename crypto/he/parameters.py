"""The one BFV parameter set (Fan-Vercauteren 2012, as in Microsoft SEAL) and what follows from it.

Security: ring 4096 with 76 bits of coefficient modulus; the HomomorphicEncryption.org standard allows 109 bits at
128-bit security, and fewer bits only raise it. Exactness: 60 data bits minus 45 plaintext bits leave 14 bits for
noise; 20 summands of the largest values were measured to leave 5 to 6 bits of budget, so the noise is 32 times
below the point where a digit could change. One data prime instead of SEAL's default two (36, 36, 37) halves the
work on each ciphertext: 16.0 instead of 21.6 bytes an integer, serialised 6 times as fast, and a public context of
86 instead of 134 kB.
"""

from __future__ import annotations

RING = 4096
"""Integers per ciphertext."""

P = 35_184_371_884_033
"""The plaintext prime, 45 bits, 1 modulo 2 * RING: the integers of a contribution live in [0, P)."""

SUMMANDS_MAX = 20
"""Contributions that may be added with an exact result."""

COEFFICIENT_BITS = (60, 16)
"""Sizes of the coefficient primes; the last is SEAL's special prime and not part of ciphertexts."""

COEFFICIENT_PRIMES = (1_152_921_504_606_830_593, 40_961)
"""The primes SEAL chooses for those sizes."""

MAX_CIPHERTEXT_BYTES = 66_500
"""A serialised ciphertext measures 65,667 bytes: two polynomials of RING 64-bit words; the rest is slack."""

MAX_CONTEXT_BYTES = 90_000
"""A serialised public context measures 86 kB, nearly all of it the public key."""

MAX_LENGTH = 2**20
"""Longest vector of integers in one contribution."""


def ciphertext_count(length: int) -> int:
    """How many ciphertexts carry a vector of ``length`` integers."""
    return -(-length // RING)
