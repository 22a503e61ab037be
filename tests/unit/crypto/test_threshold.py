"""t-of-n evaluation: equals one key's VOPRF, for every quorum; every wrong answer is attributed to its holder."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import secrets
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import group, threshold
from crypto.errors import (
    CryptoError,
    InvalidEncodingError,
    InvalidProofError,
    InvalidShareError,
    OutOfRangeError,
)
from crypto.oprf.client import OprfClient, VoprfClient
from crypto.oprf.server import VoprfServer
from crypto.threshold import KeyShare, PublicKeySet, ShareEvaluation

INPUTS = [b"accounts-1", b"accounts-2", b"accounts-1"]


def _deal(least: int, holders: int, *, generation_epoch: int = 3) -> tuple[PublicKeySet, list[KeyShare]]:
    return threshold.deal(
        epoch=generation_epoch,
        kind_group="accounts",
        threshold=least,
        holders=holders,
        random=secrets.token_bytes,
    )


def _whole_key(keys: PublicKeySet, shares: Sequence[KeyShare]) -> bytes:
    chosen = shares[: keys.threshold]
    coefficients = threshold.lagrange_coefficients([share.index for share in chosen])
    total = sum(
        coefficient * group.scalar_to_int(share.secret)
        for coefficient, share in zip(coefficients, chosen, strict=True)
    )
    return group.scalar_from_int(total)


# --- the law: combined = single key --------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "holders"), [(1, 1), (2, 2), (2, 3), (3, 4), (4, 4), (4, 6)])
def test_every_quorum_gives_the_output_of_the_whole_key(least: int, holders: int) -> None:
    keys, shares = _deal(least, holders)
    keys.verify()
    whole = VoprfServer(_whole_key(keys, shares))
    assert whole.public_key == keys.public_key
    expected = [whole.evaluate_input(value) for value in INPUTS]
    pending, blinded = threshold.blind(INPUTS, secrets.token_bytes)
    answers = [threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares]
    for answer in answers:
        threshold.verify_evaluation(keys, blinded, answer)
    for quorum in itertools.combinations(answers, least):
        assert threshold.finalize(keys, pending, blinded, quorum) == expected
    assert threshold.finalize(keys, pending, blinded, answers[::-1]) == expected


def test_a_share_is_an_rfc_9497_server_and_a_single_holder_an_rfc_9497_client() -> None:
    keys, shares = _deal(1, 1)
    client = VoprfClient(keys.public_key)
    pending, blinded = client.blind(INPUTS, secrets.token_bytes)
    answer = threshold.evaluate_share(shares[0], blinded, secrets.token_bytes)
    outputs = client.finalize(pending, blinded, answer.elements, answer.proof)
    assert outputs == threshold.finalize(keys, pending, blinded, [answer])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 5), st.randoms())
def test_outputs_depend_on_inputs_and_key_only(inputs: list[bytes], holders: int, order: object) -> None:
    least = threshold.least_threshold(holders)
    keys, shares = _deal(least, holders)
    results = []
    for _ in range(2):
        order.shuffle(shares)  # type: ignore[attr-defined]
        pending, blinded = threshold.blind(inputs, secrets.token_bytes)
        answers = [threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares[:least]]
        results.append(threshold.finalize(keys, pending, blinded, answers))
    assert results[0] == results[1]
    assert len(set(results[0])) == len(set(inputs))


def test_fewer_shares_than_the_threshold_do_not_help() -> None:
    keys, shares = _deal(3, 4)
    pending, blinded = threshold.blind([b"x"], secrets.token_bytes)
    answers = [threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares]
    expected = threshold.finalize(keys, pending, blinded, answers)
    lowered = dataclasses.replace(keys, threshold=2)
    assert threshold.finalize(lowered, pending, blinded, answers[:2]) != expected
    with pytest.raises(OutOfRangeError):
        lowered.verify()


def test_batches_travel_to_workers() -> None:
    keys, shares = _deal(2, 2)
    pending, blinded = threshold.blind(INPUTS, secrets.token_bytes)
    answers = [threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares]
    expected = threshold.finalize(keys, pending, blinded, answers)
    copies = pickle.loads(pickle.dumps((keys, pending, blinded, answers)))
    assert threshold.finalize(*copies) == expected
    assert pickle.loads(pickle.dumps(shares[0])) == shares[0]
    for function in (threshold.blind, threshold.evaluate_share, threshold.finalize):
        assert pickle.loads(pickle.dumps(function)) is function


# --- attribution ---------------------------------------------------------------------------------------------


def test_every_kind_of_wrong_answer_names_its_holder() -> None:
    keys, shares = _deal(3, 4)
    _, blinded = threshold.blind(INPUTS, secrets.token_bytes)
    good = threshold.evaluate_share(shares[1], blinded, secrets.token_bytes)
    other_key = threshold.evaluate_share(_deal(3, 4)[1][1], blinded, secrets.token_bytes)
    other_holder = threshold.evaluate_share(shares[2], blinded, secrets.token_bytes)
    one_changed = (group.multiply_base(group.scalar_from_int(9)), *good.elements[1:])
    wrong = [
        other_key,
        dataclasses.replace(other_holder, index=2),
        dataclasses.replace(good, elements=one_changed),
        dataclasses.replace(good, elements=good.elements[::-1][:1] + good.elements[1:][::-1]),
        dataclasses.replace(good, elements=good.elements[:-1]),
        dataclasses.replace(good, elements=(*good.elements, good.elements[0])),
        dataclasses.replace(good, elements=(*good.elements[:-1], bytes(32))),
        dataclasses.replace(good, elements=(*good.elements[:-1], b"\xff" * 32)),
        dataclasses.replace(good, elements=(*good.elements[:-1], b"")),
        dataclasses.replace(good, proof=bytes(64)),
        dataclasses.replace(good, proof=good.proof[:-1]),
        dataclasses.replace(good, proof=other_holder.proof),
        dataclasses.replace(good, index=9),
    ]
    threshold.verify_evaluation(keys, blinded, good)
    for answer in wrong:
        with pytest.raises(InvalidShareError) as caught:
            threshold.verify_evaluation(keys, blinded, answer)
        assert caught.value.index == answer.index
        assert f"key share {answer.index}" in str(caught.value)


def test_what_the_caller_broke_is_no_holders_fault() -> None:
    keys, shares = _deal(1, 1)
    _, blinded = threshold.blind(INPUTS, secrets.token_bytes)
    answer = threshold.evaluate_share(shares[0], blinded, secrets.token_bytes)
    for broken in ((*blinded[:-1], b"\xff" * 32), (*blinded[:-1], b"")):
        with pytest.raises(InvalidEncodingError):
            threshold.verify_evaluation(keys, broken, answer)
        with pytest.raises(InvalidEncodingError, match="element 2"):
            threshold.evaluate_share(shares[0], broken, secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        threshold.evaluate_share(shares[0], [], secrets.token_bytes)


def test_finalize_refuses_too_few_repeated_unknown_short_and_malformed_answers() -> None:
    keys, shares = _deal(2, 3)
    pending, blinded = threshold.blind(INPUTS, secrets.token_bytes)
    first, second, _ = (threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares)
    for answers in ([], [first], [first, first]):
        with pytest.raises(OutOfRangeError):
            threshold.finalize(keys, pending, blinded, answers)
    with pytest.raises(OutOfRangeError):
        threshold.finalize(keys, pending, blinded[:-1], [first, second])
    for bad in (
        dataclasses.replace(second, index=77),
        dataclasses.replace(second, elements=second.elements[:-1]),
        dataclasses.replace(second, elements=(*second.elements[:-1], bytes(32))),
    ):
        with pytest.raises(InvalidShareError) as caught:
            threshold.finalize(keys, pending, blinded, [first, bad])
        assert caught.value.index == bad.index
    plain, _ = OprfClient().blind(INPUTS, secrets.token_bytes)
    with pytest.raises(OutOfRangeError):
        threshold.finalize(keys, plain, blinded, [first, second])


# --- keys ----------------------------------------------------------------------------------------------------


def test_a_set_of_keys_that_mixes_generations_or_keys_is_refused() -> None:
    keys, _ = _deal(3, 4)
    other, _ = _deal(3, 4)
    for index in keys.public_shares:
        mixed = dataclasses.replace(
            keys, public_shares={**keys.public_shares, index: other.public_shares[index]}
        )
        with pytest.raises(InvalidProofError):
            mixed.verify()
    with pytest.raises(InvalidProofError):
        dataclasses.replace(keys, public_key=other.public_key).verify()


@pytest.mark.parametrize("least", [0, 1, 2, 5])
def test_thresholds_below_a_majority_or_above_the_holders_are_refused(least: int) -> None:
    keys, _ = _deal(3, 4)
    with pytest.raises(OutOfRangeError):
        dataclasses.replace(keys, threshold=least).verify()
    with pytest.raises(OutOfRangeError):
        _deal(least, 4)


def test_malformed_key_sets_are_refused() -> None:
    keys, _ = _deal(2, 2)
    for changed in (
        dataclasses.replace(keys, public_key=bytes(32)),
        dataclasses.replace(keys, public_shares={1: keys.public_shares[1], 2: b"short"}),
        dataclasses.replace(keys, public_shares={0: keys.public_shares[1], 2: keys.public_shares[2]}),
        dataclasses.replace(keys, public_shares={}),
        dataclasses.replace(keys, epoch=-1),
        dataclasses.replace(keys, kind_group="Accounts"),
        dataclasses.replace(keys, kind_group="accounts\n"),
    ):
        with pytest.raises(CryptoError):
            changed.verify()
    for holders in (0, 256):
        with pytest.raises(OutOfRangeError):
            _deal(max(1, holders // 2 + 1), holders)


@settings(deadline=None)
@given(st.lists(st.integers(1, 255), min_size=1, max_size=6, unique=True), st.data())
def test_lagrange_coefficients_interpolate_every_polynomial(indices: list[int], data: st.DataObject) -> None:
    coefficients = data.draw(
        st.lists(st.integers(0, group.ORDER - 1), min_size=1, max_size=len(indices)), label="polynomial"
    )

    def value(at: int) -> int:
        total: int = sum(factor * at**power for power, factor in enumerate(coefficients))
        return total % group.ORDER

    for at in (0, 7):
        weights = threshold.lagrange_coefficients(indices, at=at)
        total = sum(weight * value(index) for weight, index in zip(weights, indices, strict=True))
        assert total % group.ORDER == value(at)


@pytest.mark.parametrize("indices", [[], [1, 1], [0, 1], [256]])
def test_interpolation_needs_distinct_valid_indices(indices: list[int]) -> None:
    with pytest.raises(OutOfRangeError):
        threshold.lagrange_coefficients(indices)


# --- storage and secrets -------------------------------------------------------------------------------------


def test_a_key_share_has_one_encoding() -> None:
    _, (share, _) = _deal(2, 2)
    encoded = share.encode()
    assert KeyShare.decode(encoded) == share
    assert KeyShare.decode(encoded).encode() == encoded
    for bad in (
        b"",
        encoded[:-1],
        encoded + b"\0",
        b"x" + encoded[1:],
        encoded[:21],
        encoded[:-32] + bytes(32),
        encoded[:-32] + b"\xff" * 32,
        encoded.replace(b"accounts", b"ACCOUNTS"),
        encoded.replace(b"accounts", b"\xff\xfe345678"),
        encoded[:33] + b"\0" + encoded[34:],
        b"\xff".join((encoded[:21], encoded[22:])),
    ):
        with pytest.raises(InvalidEncodingError):
            KeyShare.decode(bad)


def test_a_key_share_does_not_print_and_compares_by_content() -> None:
    _, (one, two) = _deal(2, 2)
    assert repr(one) == str(one) == f"{one}" == "KeyShare(...)"
    assert one != two
    assert one != "KeyShare(...)"
    assert len({one, KeyShare.decode(one.encode()), two}) == 2
    with pytest.raises(InvalidEncodingError):
        dataclasses.replace(one, secret=bytes(32))
    with pytest.raises(OutOfRangeError):
        dataclasses.replace(one, index=0)


def test_an_answer_and_a_batch_hold_no_secret_in_their_text() -> None:
    _, shares = _deal(1, 1)
    pending, blinded = threshold.blind([b"FR7630006000011234567890189"], secrets.token_bytes)
    answer = threshold.evaluate_share(shares[0], blinded, secrets.token_bytes)
    assert isinstance(answer, ShareEvaluation)
    for text in (repr(pending), repr(answer), repr(shares)):
        assert shares[0].secret.hex() not in text
        assert repr(shares[0].secret) not in text
        assert "FR7630006" not in text


# --- tags ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_tags_and_label_keys_are_hkdf_sha512(output: bytes) -> None:
    for derive, info, size in (
        (threshold.derive_tag, b"subrosa/v1/tag", 16),
        (threshold.derive_label_key, b"subrosa/v1/label", 32),
    ):
        assert derive(output) == HKDF(SHA512(), size, salt=None, info=info).derive(output)
    assert threshold.derive_label_key(output)[:16] != threshold.derive_tag(output)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_only_whole_outputs_are_derived_from(size: int) -> None:
    with pytest.raises(InvalidEncodingError):
        threshold.derive_tag(bytes(size))
