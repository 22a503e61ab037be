"""The fast arithmetic on public data against libsodium, and its field against Python's integers."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numba
import numpy as np
import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import group, multiscalar
from crypto.errors import InvalidEncodingError
from crypto.multiscalar import kernel

P = kernel.P
ORDER = group.ORDER
A = group.hash_to_element(hashlib.sha512(b"a").digest())
ONE, MINUS_ONE = group.scalar_from_int(1), group.scalar_from_int(-1)

edge_scalars = st.sampled_from(
    [
        *(
            1,
            2,
            3,
            7,
            8,
            127,
            128,
            129,
            255,
            256,
            2**51,
            2**252 - 1,
            2**252,
            2**252 + 1,
            ORDER - 1,
            ORDER - 2,
        ),
        *(int(byte * 31, 16) for byte in ("80", "7f", "ff", "01")),
    ]
)
scalars = (edge_scalars | st.integers(1, ORDER - 1)).map(group.scalar_from_int)
elements = st.integers(1, 40).map(lambda n: group.hash_to_element(hashlib.sha512(bytes([n])).digest()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(scalars, elements), min_size=1, max_size=12))
def test_sums_equal_libsodiums(pairs: list[tuple[bytes, bytes]]) -> None:
    weights, points = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert multiscalar.sum_public_multiples(weights, points) == group.weighted_sum(weights, points)


@pytest.mark.parametrize("width", range(2, 13))
def test_every_digit_width_gives_the_same_sum(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiscalar, "_width_for", lambda _count: width)
    weights = [group.scalar_from_int(value) for value in (1, 2**252, ORDER - 1, int("80" * 31, 16), 12345)]
    points = [group.hash_to_element(secrets.token_bytes(64)) for _ in weights]
    assert multiscalar.sum_public_multiples(weights, points) == group.weighted_sum(weights, points)


@pytest.mark.parametrize("count", [31, 32, 33, 300])
def test_the_group_gives_one_answer_on_both_sides_of_its_choice(count: int) -> None:
    weights = [group.random_scalar(secrets.token_bytes) for _ in range(count)]
    points = [group.hash_to_element(secrets.token_bytes(64)) for _ in range(count)]
    assert group.sum_public_multiples(weights, points) == group.weighted_sum(weights, points)


def test_equal_opposite_and_vanishing_terms_are_no_exception() -> None:
    negative = group.subtract(
        group.multiply(group.scalar_from_int(2), A), group.multiply(group.scalar_from_int(3), A)
    )
    assert multiscalar.sum_public_multiples([ONE] * 50, [A] * 50) == group.multiply(
        group.scalar_from_int(50), A
    )
    assert multiscalar.sum_public_multiples([ONE, ONE], [A, negative]) == group.IDENTITY
    assert multiscalar.sum_public_multiples([ONE, MINUS_ONE], [A, A]) == group.IDENTITY
    assert multiscalar.sum_public_multiples([ONE, ONE], [negative, negative]) == group.multiply(
        group.scalar_from_int(-2), A
    )
    assert multiscalar.sum_public_multiples([ONE, ONE], [bytes(32), A]) == A


# --- decoding: exactly what libsodium accepts ----------------------------------------------------------------


def _accepted(encoding: bytes) -> bool:
    try:
        return multiscalar.sum_public_multiples([ONE], [encoding]) == encoding
    except InvalidEncodingError:
        return False


def test_decoding_accepts_exactly_what_libsodium_accepts() -> None:
    candidates = [value.to_bytes(32, "little") for value in range(400)]
    candidates += [(P + offset).to_bytes(32, "little") for offset in range(-200, 19)]
    candidates += [(2**255 + offset).to_bytes(32, "little") for offset in (0, 2, 4, 6, 8, 10)]
    candidates += [(2**256 - 1 - offset).to_bytes(32, "little") for offset in range(40)]
    candidates += [
        (2 ** (51 * limb) * factor % 2**256).to_bytes(32, "little")
        for limb in range(5)
        for factor in (1, 2, 6, 10)
    ]
    candidates += [
        bytes([byte & 0xFE]) + secrets.token_bytes(30) + bytes([byte >> 1])
        for byte in secrets.token_bytes(600)
    ]
    # The bundled libsodium ignores bit 255, RFC 9496 does not.
    verdicts = [
        candidate[31] < 128 and rbcl.crypto_core_ristretto255_is_valid_point(candidate)
        for candidate in candidates
    ]
    assert [_accepted(candidate) for candidate in candidates] == verdicts
    assert 100 < sum(verdicts) < len(verdicts) - 100


# --- combining -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-300, 300) | st.integers(-ORDER, ORDER), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_combined_batches_equal_libsodiums(factors: list[int], count: int) -> None:
    batches = [[group.hash_to_element(secrets.token_bytes(64)) for _ in range(count)] for _ in factors]
    expected = []
    for item in range(count):
        total = bytes(32)
        for factor, batch in zip(factors, batches, strict=True):
            if factor % ORDER:
                product = group.multiply(group.scalar_from_int(factor), batch[item])
                total = rbcl.crypto_core_ristretto255_add(total, product)
        expected.append(total)
    assert group.combine_public_batches(factors, batches) == expected


def test_malformed_calls_are_refused() -> None:
    for refused in (
        lambda: multiscalar.sum_public_multiples([], []),
        lambda: multiscalar.sum_public_multiples([ONE], [A, A]),
        lambda: multiscalar.sum_public_multiples([ONE], [A + A]),
        lambda: multiscalar.combine_public_batches([1], [[A], [A]]),
        lambda: multiscalar.combine_public_batches([], []),
        lambda: multiscalar.combine_public_batches([1, 1], [[A, A], [A]]),
    ):
        with pytest.raises(InvalidEncodingError):
            refused()


def test_preparing_twice_is_harmless() -> None:
    multiscalar.prepare()
    multiscalar.prepare()


# --- the field -----------------------------------------------------------------------------------------------


@numba.njit
def _field_results(a: Any, b: Any) -> Any:
    product = kernel._multiply_fields(a, b)
    return product, kernel._canonical(product), kernel._canonical(a)


def _value(limbs: Any) -> int:
    return sum(int(limb) << (51 * place) for place, limb in enumerate(limbs))


def _canonical_limbs(value: int) -> list[int]:
    return [value % P >> (51 * place) & (2**51 - 1) for place in range(5)]


limb = st.sampled_from(
    [0, 1, 18, 19, 2**51 - 20, 2**51 - 19, 2**51 - 1, 2**51, 2**53, 2**54 - 1]
) | st.integers(0, 2**54 - 1)
fields = st.lists(limb, min_size=5, max_size=5)


@settings(max_examples=300, deadline=None)
@given(fields, fields)
def test_products_are_exact_and_within_their_bound_for_all_permitted_limbs(
    a: list[int], b: list[int]
) -> None:
    first, second = (tuple(np.uint64(value) for value in field) for field in (a, b))
    product, reduced, first_reduced = _field_results(first, second)
    assert _value(product) % P == _value(a) * _value(b) % P
    assert all(int(part) < 2**51 + 2**14 for part in product)
    assert [int(part) for part in reduced] == _canonical_limbs(_value(a) * _value(b))
    assert [int(part) for part in first_reduced] == _canonical_limbs(_value(a))


@pytest.mark.parametrize("value", [0, 1, P - 1, P, P + 1, 2 * P - 1, 2 * P, 2**255 - 1, 2**255, 2**256 - 1])
def test_reduction_is_canonical_around_multiples_of_the_prime(value: int) -> None:
    limbs = [value >> (51 * place) & (2**51 - 1) for place in range(4)]
    limbs.append(value >> 204)
    field = tuple(np.uint64(part) for part in limbs)
    one = tuple(np.uint64(part) for part in (1, 0, 0, 0, 0))
    _, product_reduced, reduced = _field_results(field, one)
    assert (
        [int(part) for part in reduced] == [int(part) for part in product_reduced] == _canonical_limbs(value)
    )
