"""ristretto255: published encodings (RFC 9496), group laws, and what must be refused before libsodium sees it."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import group
from crypto.errors import InvalidEncodingError

scalars = st.integers(min_value=1, max_value=group.ORDER - 1).map(group.scalar_from_int)
elements = st.binary(max_size=16).map(lambda seed: group.hash_to_element(hashlib.sha512(seed).digest()))

# RFC 9496 appendix A.1: multiples 1..4 of the generator.
MULTIPLES = [
    "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
    "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
    "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    "da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57",
]
# RFC 9496 appendix A.2: encodings that must be refused (non-canonical, negative, non-square, negative xy, s = -1).
INVALID = [
    "00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371",
    "3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
# Aliases with bit 255 set, which the bundled libsodium takes for the element without it.
ALIASES = [(int(encoding, 16) | 0x80).to_bytes(32, "big").hex() for encoding in MULTIPLES]
A = group.multiply_base(group.scalar_from_int(7))
ONE = group.scalar_from_int(1)


def test_published_multiples_of_the_generator() -> None:
    computed = [group.multiply_base(group.scalar_from_int(factor)).hex() for factor in (1, 2, 3, 4)]
    assert computed == MULTIPLES


def test_published_element_derivation() -> None:
    # RFC 9496 appendix A.3, first vector: SHA-512 of "Ristretto is traditionally a short shot of espresso coffee".
    uniform = bytes.fromhex(
        "5d1be09e3d0c82fc538112490e35701979d99e06ca3e2b5b54bffe8b4dc772c1"
        "4d98b696a1bbfb5ca32c436cc61c16563790306c79eaca7705668b47dffe5bb6"
    )
    assert group.hash_to_element(uniform).hex() == (
        "3066f82a1a747d45120d1740f14358531a8f04bbffe6a819f86dfe50f44a0a46"
    )


@pytest.mark.parametrize("encoding", [*INVALID, *ALIASES, "00" * 31 + "80", "00" * 32])
def test_published_invalid_encodings_and_the_identity_are_refused_everywhere(encoding: str) -> None:
    bad = bytes.fromhex(encoding)
    for refused in (
        lambda: group.validate_element(bad),
        lambda: group.multiply(ONE, bad),
        lambda: group.multiply_each(ONE, [A, bad]),
        lambda: group.multiply_pairs([ONE, ONE], [A, bad]),
        lambda: group.weighted_sum([ONE, ONE], [A, bad]),
        lambda: group.add(A, bad),
        lambda: group.add(bad, A),
        lambda: group.subtract(A, bad),
    ):
        with pytest.raises(InvalidEncodingError):
            refused()


@pytest.mark.parametrize("bad", [b"", A[:31], A + b"\0", bytearray(A), memoryview(A), A.hex(), None, 7])
def test_wrong_lengths_and_types_never_reach_libsodium(bad: object) -> None:
    for refused in (
        lambda: group.validate_element(bad),  # type: ignore[arg-type]
        lambda: group.multiply(ONE, bad),  # type: ignore[arg-type]
        lambda: group.multiply(bad, A),  # type: ignore[arg-type]
        lambda: group.multiply_pairs([bad], [A]),  # type: ignore[list-item]
        lambda: group.multiply_base(bad),  # type: ignore[arg-type]
        lambda: group.add(A, bad),  # type: ignore[arg-type]
        lambda: group.subtract(bad, A),  # type: ignore[arg-type]
        lambda: group.hash_to_element(bad),  # type: ignore[arg-type]
        lambda: group.scalar_reduce(bad),  # type: ignore[arg-type]
        lambda: group.validate_scalar(bad),  # type: ignore[arg-type]
        lambda: group.scalar_to_int(bad),  # type: ignore[arg-type]
        lambda: group.scalar_add(ONE, bad),  # type: ignore[arg-type]
        lambda: group.scalar_subtract(bad, ONE),  # type: ignore[arg-type]
        lambda: group.scalar_multiply(ONE, bad),  # type: ignore[arg-type]
        lambda: group.scalar_multiply_each(ONE, [bad]),  # type: ignore[list-item]
        lambda: group.invert_each([bad]),  # type: ignore[list-item]
    ):
        with pytest.raises(InvalidEncodingError):
            refused()


@pytest.mark.parametrize("value", [0, group.ORDER, group.ORDER + 1, 2**255 - 1, 2**256 - 1])
def test_scalars_outside_the_range_are_refused_as_multipliers(value: int) -> None:
    scalar = value.to_bytes(32, "little")
    for refused in (
        lambda: group.validate_scalar(scalar),
        lambda: group.multiply(scalar, A),
        lambda: group.multiply_base(scalar),
        lambda: group.invert_each([scalar]),
        lambda: group.multiply_pairs([ONE, scalar], [A, A]),
    ):
        with pytest.raises(InvalidEncodingError):
            refused()


def test_errors_name_the_position() -> None:
    with pytest.raises(InvalidEncodingError, match="element 2"):
        group.multiply_each(ONE, [A, A, bytes.fromhex(INVALID[0])])
    with pytest.raises(InvalidEncodingError, match="scalar 1"):
        group.multiply_pairs([ONE, bytes(32)], [A, A])


def test_sequences_of_unequal_length_and_empty_sums_are_refused() -> None:
    for refused in (
        lambda: group.multiply_pairs([ONE], [A, A]),
        lambda: group.weighted_sum([], []),
    ):
        with pytest.raises(InvalidEncodingError):
            refused()


@settings(max_examples=25, deadline=None)
@given(scalars, scalars, elements)
def test_multiplication_distributes_over_scalars(a: bytes, b: bytes, element: bytes) -> None:
    left = group.add(group.multiply(a, element), group.multiply(b, element))
    total = group.scalar_add(a, b)
    assert left == (group.IDENTITY if total == bytes(32) else group.multiply(total, element))
    assert group.multiply(group.scalar_multiply(a, b), element) == group.multiply(
        a, group.multiply(b, element)
    )
    assert group.multiply(group.invert_each([a])[0], group.multiply(a, element)) == element


@settings(max_examples=25, deadline=None)
@given(elements, elements)
def test_addition_and_subtraction_undo_each_other(a: bytes, b: bytes) -> None:
    assert group.subtract(group.add(a, b), b) == a
    assert group.add(a, b) == group.add(b, a)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(scalars, elements), min_size=1, max_size=8))
def test_weighted_sum_is_the_sum_of_the_products(pairs: list[tuple[bytes, bytes]]) -> None:
    # The oracle is rbcl's own addition, which takes the identity too.
    total = bytes(32)
    for scalar, element in pairs:
        total = rbcl.crypto_core_ristretto255_add(total, group.multiply(scalar, element))
    assert group.weighted_sum([pair[0] for pair in pairs], [pair[1] for pair in pairs]) == total


def test_a_sum_may_be_the_identity() -> None:
    minus_one = group.scalar_from_int(-1)
    assert group.weighted_sum([ONE, minus_one], [A, A]) == group.IDENTITY
    assert group.subtract(A, A) == group.IDENTITY


@settings(max_examples=50, deadline=None)
@given(st.lists(scalars, max_size=9))
def test_batch_inversion_agrees_with_integers(values: list[bytes]) -> None:
    expected = [group.scalar_from_int(pow(group.scalar_to_int(value), -1, group.ORDER)) for value in values]
    assert group.invert_each(values) == expected


@settings(deadline=None)
@given(st.integers(), st.integers())
def test_scalar_arithmetic_agrees_with_integers(a: int, b: int) -> None:
    x, y = group.scalar_from_int(a), group.scalar_from_int(b)
    assert group.scalar_to_int(group.scalar_add(x, y)) == (a + b) % group.ORDER
    assert group.scalar_to_int(group.scalar_subtract(x, y)) == (a - b) % group.ORDER
    assert group.scalar_to_int(group.scalar_multiply(x, y)) == a * b % group.ORDER


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_reduction_agrees_with_integers(uniform: bytes) -> None:
    assert (
        group.scalar_to_int(group.scalar_reduce(uniform)) == int.from_bytes(uniform, "little") % group.ORDER
    )


def test_random_scalars_come_from_the_given_source_and_zero_is_refused() -> None:
    asked: list[int] = []

    def source(size: int) -> bytes:
        asked.append(size)
        return secrets.token_bytes(size)

    assert group.random_scalar(source) != group.random_scalar(source)
    assert asked == [64, 64]
    with pytest.raises(InvalidEncodingError):
        group.random_scalar(bytes)
    with pytest.raises(InvalidEncodingError):
        group.random_scalar(lambda size: secrets.token_bytes(size - 1))


def test_split_cuts_whole_encodings_only() -> None:
    assert group.split(A + A) == [A, A]
    assert group.split(b"") == []
    with pytest.raises(InvalidEncodingError):
        group.split(A + b"\0")
    with pytest.raises(InvalidEncodingError):
        group.split(A, 0)


def test_the_temporary_library_of_rbcl_is_gone() -> None:
    assert not Path(rbcl._sodium._name).exists()
