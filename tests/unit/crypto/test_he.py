"""BFV contributions: exact at the limit of summands, small public contexts, hostile bytes refused before use."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tenseal
import tenseal.sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import InvalidEncodingError, OutOfRangeError
from crypto.he.contexts import PublicContext, RequesterKey, load_public_context
from crypto.he.contributions import add_column, encrypt_vector
from crypto.he.decryption import check_one_contribution, decrypt_sum
from crypto.he.envelope import check_ciphertext, check_ciphertexts, fields
from crypto.he.parameters import (
    COEFFICIENT_BITS,
    COEFFICIENT_PRIMES,
    MAX_CIPHERTEXT_BYTES,
    MAX_CONTEXT_BYTES,
    MAX_LENGTH,
    RING,
    SUMMANDS_MAX,
    P,
    ciphertext_count,
)

KEY = RequesterKey.generate()
PUBLIC_BYTES = KEY.public_context()
PUBLIC = load_public_context(PUBLIC_BYTES)


def vector(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def is_prime(number: int) -> bool:
    """Miller-Rabin; these bases decide all numbers below 3.3e24."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        power = pow(base, odd, number)
        if power not in (1, number - 1) and all(
            (power := power * power % number) != number - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def test_parameters() -> None:
    assert is_prime(P)
    assert P % (2 * RING) == 1
    assert P.bit_length() == 45
    assert all(is_prime(prime) and prime % (2 * RING) == 1 for prime in COEFFICIENT_PRIMES)
    assert tuple(prime.bit_length() for prime in COEFFICIENT_PRIMES) == COEFFICIENT_BITS
    # The bound of the HomomorphicEncryption.org standard for ring 4096, ternary secrets, 128 bits of security.
    assert sum(COEFFICIENT_BITS) <= 109
    assert [ciphertext_count(length) for length in (1, 4096, 4097, 100_000)] == [1, 1, 2, 25]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, P - 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_sums_are_exact(rows: list[list[int]]) -> None:
    contributions = {f"bank-{index}": encrypt_vector(PUBLIC, vector(*row)) for index, row in enumerate(rows)}
    expected = [sum(column) % P for column in zip(*rows, strict=True)]
    assert decrypt_sum(KEY, contributions, 3).tolist() == expected


def test_twenty_of_the_largest_leave_noise_budget() -> None:
    largest = np.full(RING, P - 1, dtype=np.int64)
    contributions = {f"bank-{index}": encrypt_vector(PUBLIC, largest) for index in range(SUMMANDS_MAX)}
    assert (decrypt_sum(KEY, contributions, RING) == (P - 1) * SUMMANDS_MAX % P).all()
    total = add_column(PUBLIC.native, [column for (column,) in contributions.values()]).serialize()
    context = tenseal.context_from(KEY.to_bytes(), n_threads=1)
    decryptor = tenseal.sealapi.Decryptor(context.seal_context().data, context.secret_key().data)
    (ciphertext,) = tenseal.bfv_vector_from(context, total).ciphertext()
    assert decryptor.invariant_noise_budget(ciphertext) >= 4
    with pytest.raises(OutOfRangeError, match="20"):
        decrypt_sum(KEY, {**contributions, "bank-x": contributions["bank-0"]}, RING)
    with pytest.raises(OutOfRangeError):
        decrypt_sum(KEY, {}, RING)


def test_sizes_on_the_wire() -> None:
    """Every contribution of one length has the same form: padded rings, sizes within the caps."""
    (one,) = encrypt_vector(PUBLIC, vector(5))
    (full,) = encrypt_vector(PUBLIC, np.full(RING, P - 1, dtype=np.int64))
    assert abs(len(one) - len(full)) < 100
    assert max(len(one), len(full)) < 16.1 * RING < MAX_CIPHERTEXT_BYTES
    assert len(PUBLIC_BYTES) < 87_000 < MAX_CONTEXT_BYTES


def test_public_context_holds_nothing_but_the_public_key() -> None:
    context = tenseal.context_from(PUBLIC_BYTES, n_threads=1)
    assert context.is_public()
    assert not context.has_secret_key()
    assert not context.has_relin_keys()
    assert not context.has_galois_keys()
    assert repr(PUBLIC).startswith("PublicContext(")
    secret_part = fields(KEY.to_bytes())[2][2]
    assert secret_part[-200:] not in PUBLIC_BYTES


def test_requester_key_is_stored_and_never_shown() -> None:
    assert repr(KEY) == str(KEY) == "RequesterKey(...)"
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(KEY)
    restored = RequesterKey.from_bytes(KEY.to_bytes())
    assert decrypt_sum(restored, {"bank-a": encrypt_vector(PUBLIC, vector(1, 2))}, 2).tolist() == [1, 2]
    for stored in (b"", PUBLIC_BYTES, KEY.to_bytes()[:-1], bytes(300_000)):
        with pytest.raises(InvalidEncodingError):
            RequesterKey.from_bytes(stored)


def other_context(ring: int, prime: int, bits: list[int]) -> bytes:
    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, ring, prime, coeff_mod_bit_sizes=bits, n_threads=1)
    serialised: bytes = context.serialize(True, False, False, False)
    return serialised


def test_other_contexts_are_refused() -> None:
    extra = KEY._context.serialize(True, False, False, True)
    ckks = tenseal.context(tenseal.SCHEME_TYPE.CKKS, RING, coeff_mod_bit_sizes=[32, 32, 24], n_threads=1)
    wrong = {
        "too big": PUBLIC_BYTES + bytes(MAX_CONTEXT_BYTES),
        "private": KEY.to_bytes(),
        "relinearisation keys": extra,
        "another prime": other_context(RING, 1_032_193, list(COEFFICIENT_BITS)),
        "default coefficients": other_context(RING, P, []),
        "smaller ring": other_context(2048, 1_032_193, [30, 24]),
        "another scheme": ckks.serialize(True, False, False, False),
        "no key": KEY._context.serialize(False, False, False, False),
        "trailing field": PUBLIC_BYTES + b"\x18\x01",
        "repeated": PUBLIC_BYTES + PUBLIC_BYTES[:10],
        "cut": PUBLIC_BYTES[:-1],
        "empty": b"",
    }
    for name, serialised in wrong.items():
        with pytest.raises(InvalidEncodingError):
            load_public_context(
                serialised, max_bytes=2 * MAX_CONTEXT_BYTES if name != "too big" else MAX_CONTEXT_BYTES
            )
    with pytest.raises(InvalidEncodingError, match="at most"):
        load_public_context(PUBLIC_BYTES, max_bytes=1000)


def reframe(sizes: bytes, ciphertext: bytes, extra: bytes = b"") -> bytes:
    def length(count: int) -> bytes:
        out = b""
        while count >= 0x80:
            out += bytes([count & 0x7F | 0x80])
            count >>= 7
        return out + bytes([count])

    return b"\x0a" + length(len(sizes)) + sizes + b"\x12" + length(len(ciphertext)) + ciphertext + extra


def test_unchecked_sizes_never_reach_the_library() -> None:
    """The claim that returned heap memory (20,000 integers) or crashed (5e8) is refused by our own reader."""
    (honest,) = encrypt_vector(PUBLIC, vector(1))
    ciphertext = fields(honest)[1][2]
    assert reframe(b"\x80\x20", ciphertext) == honest
    for sizes in (
        b"\xa0\x9c\x01",
        b"\x80\xca\xb5\xee\x01",
        b"\x01",
        b"",
        b"\x80\x20\x80\x20",
        b"\x80\xa0\x00",
    ):
        with pytest.raises(InvalidEncodingError, match="claim"):
            check_ciphertext(reframe(sizes, ciphertext))
    header = bytearray(ciphertext)
    header[8] ^= 1
    malformed = [
        b"",
        honest[:-1],
        honest + b"\x00",
        reframe(b"\x80\x20", ciphertext, b"\x12\x00"),
        reframe(b"\x80\x20", ciphertext, b"\x18\x01"),
        reframe(b"\x80\x20", bytes(header)),
        reframe(b"\x80\x20", b""),
        reframe(b"\x80\x20", bytes(16)),
        honest + bytes(MAX_CIPHERTEXT_BYTES),
        b"\x0b" + honest,
        b"\xff" * 40,
        b"\x0a\xff\xff\xff\xff\x0f",
    ]
    for serialised in malformed:
        with pytest.raises(InvalidEncodingError):
            check_ciphertext(serialised)


def test_counts_are_checked() -> None:
    encrypted = encrypt_vector(PUBLIC, np.zeros(5000, dtype=np.int64))
    check_ciphertexts(encrypted, 5000)
    for ciphertexts, length in ((encrypted[:1], 5000), (encrypted * 2, 5000), (encrypted, 4096), ([], 1)):
        with pytest.raises(InvalidEncodingError, match="ciphertexts"):
            check_ciphertexts(ciphertexts, length)
    with pytest.raises(InvalidEncodingError, match=r"bank-b.*ciphertext 1"):
        decrypt_sum(KEY, {"bank-a": encrypted, "bank-b": [encrypted[0], b"x"]}, 5000)
    for length in (0, MAX_LENGTH + 1):
        with pytest.raises(OutOfRangeError):
            decrypt_sum(KEY, {"bank-a": encrypted}, length)


def test_ciphertexts_of_other_parameters_are_refused() -> None:
    foreign = tenseal.context(tenseal.SCHEME_TYPE.BFV, RING, P, n_threads=1)
    serialised = tenseal.bfv_vector(foreign, [1] * RING).serialize()
    padded = [serialised] if len(serialised) <= MAX_CIPHERTEXT_BYTES else []
    with pytest.raises(InvalidEncodingError):
        check_one_contribution(KEY, padded, 1)
    same_size = tenseal.context(tenseal.SCHEME_TYPE.BFV, RING, 1_032_193, [54, 24], n_threads=1)
    serialised = tenseal.bfv_vector(same_size, [1] * RING).serialize()
    assert len(serialised) <= MAX_CIPHERTEXT_BYTES
    with pytest.raises(InvalidEncodingError, match="parameters"):
        check_one_contribution(KEY, [serialised], 1)


def test_a_product_is_not_a_fresh_ciphertext() -> None:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, RING, P, coeff_mod_bit_sizes=list(COEFFICIENT_BITS), n_threads=1
    )
    context.auto_relin = False
    row = tenseal.bfv_vector(context, [1] * RING)
    with pytest.raises(InvalidEncodingError):
        check_one_contribution(KEY, [(row * row).serialize()], 1)


def test_sums_above_the_bound_show_masks_that_do_not_cancel() -> None:
    masked = {"bank-a": encrypt_vector(PUBLIC, vector(5, 123_456_789_012))}
    assert decrypt_sum(KEY, masked, 2, bound=123_456_789_012).tolist() == [5, 123_456_789_012]
    with pytest.raises(OutOfRangeError, match="1 of 2 sums exceed"):
        decrypt_sum(KEY, masked, 2, bound=40_000)


@pytest.mark.parametrize(
    "values",
    [
        vector(-1),
        vector(P),
        vector(),
        np.array([1.0]),
        np.array([[1]], dtype=np.int64),
        np.array([1], dtype=np.int32),
        np.zeros(MAX_LENGTH + 1, dtype=np.int64),
    ],
)
def test_values_outside_the_parameters_are_not_encrypted(values: np.ndarray) -> None:
    with pytest.raises(OutOfRangeError):
        encrypt_vector(PUBLIC, values)


def test_contexts_of_two_requesters_do_not_mix() -> None:
    other: PublicContext = load_public_context(RequesterKey.generate().public_context())
    assert other.digest != PUBLIC.digest
    wrong_key = {"bank-a": encrypt_vector(other, np.zeros(100, dtype=np.int64))}
    with pytest.raises(OutOfRangeError, match="exceed"):
        decrypt_sum(KEY, wrong_key, 100, bound=1000)
