"""The caller's side of a threshold lookup: blind once, combine t verified answers, derive tag and label key.

Threshold oblivious PRFs from Shamir shares in the exponent: Jarecki, Kiayias, Krawczyk, Xu, "TOPPSS"
(ACNS 2017). Here every share's answer carries the proof of RFC 9497, and the combined output equals that of
a single server that holds the whole key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from crypto import group
from crypto.errors import InvalidEncodingError, InvalidShareError, OutOfRangeError
from crypto.oprf.client import PendingBatch, blind_with
from crypto.oprf.suite import OUTPUT_SIZE, VOPRF, Mode, check_same_length, output_of
from crypto.threshold.evaluation import ShareEvaluation
from crypto.threshold.shares import PublicKeySet, lagrange_coefficients

TAG_SIZE = 16
LABEL_KEY_SIZE = 32
_TAG_INFO = b"subrosa/v1/tag"
_LABEL_INFO = b"subrosa/v1/label"


def blind(inputs: Sequence[bytes], random: group.Random) -> tuple[PendingBatch, tuple[bytes, ...]]:
    """Blind 1..65535 inputs (bytes): the secret state to keep and the elements to send to every holder."""
    return blind_with(VOPRF, inputs, random)


def finalize(
    keys: PublicKeySet,
    pending: PendingBatch,
    blinded: Sequence[bytes],
    evaluations: Sequence[ShareEvaluation],
) -> list[bytes]:
    """The 64-byte outputs of a batch from at least ``threshold`` answers, **each verified before**.

    Uses the first ``threshold`` of them. Each coefficient is multiplied into the inverse blind first, so the ``t``
    multiplications an item that combine also unblind. :class:`OutOfRangeError` when answers are too few, repeated, or
    of another length; :class:`InvalidShareError` naming a holder whose elements are malformed.
    """
    if pending.mode is not Mode.VOPRF:
        raise OutOfRangeError("a threshold lookup finalizes what its own blind produced")
    check_same_length(len(pending), blinded, "blinded elements")
    indices = [evaluation.index for evaluation in evaluations]
    if len(set(indices)) != len(indices):
        raise OutOfRangeError("two answers come from one key holder")
    if len(evaluations) < keys.threshold:
        raise OutOfRangeError(f"{len(evaluations)} answers, but {keys.threshold} key holders are needed")
    chosen = evaluations[: keys.threshold]
    for evaluation in chosen:
        if evaluation.index not in keys.public_shares:
            raise InvalidShareError(evaluation.index, "no holder of this key has this index")
        if len(evaluation.elements) != len(pending):
            raise InvalidShareError(evaluation.index, "another number of elements than was asked for")
    inverses = group.invert_each(pending.blinds)
    coefficients = lagrange_coefficients([evaluation.index for evaluation in chosen])
    unblinded: list[bytes] = []
    for coefficient, evaluation in zip(coefficients, chosen, strict=True):
        scalars = group.scalar_multiply_each(group.scalar_from_int(coefficient), inverses)
        try:
            parts = group.multiply_pairs(scalars, evaluation.elements)
        except InvalidEncodingError as error:
            raise InvalidShareError(evaluation.index, str(error)) from error
        unblinded = group.add_pairs(unblinded, parts) if unblinded else parts
    return [output_of(message, element) for message, element in zip(pending.inputs, unblinded, strict=True)]


def derive_tag(output: bytes) -> bytes:
    """The 16-byte tag that stands for an indicator in the index."""
    return _derive(output, _TAG_INFO, TAG_SIZE)


def derive_label_key(output: bytes) -> bytes:
    """The 32-byte key that seals the labels on an indicator."""
    return _derive(output, _LABEL_INFO, LABEL_KEY_SIZE)


def _derive(output: bytes, info: bytes, size: int) -> bytes:
    """HKDF-SHA512 (RFC 5869) without salt, for at most one block of output."""
    if len(output) != OUTPUT_SIZE:
        raise InvalidEncodingError(f"an OPRF output has {OUTPUT_SIZE} bytes, not {len(output)}")
    extracted = hmac.digest(bytes(64), output, "sha512")
    return hmac.digest(extracted, info + b"\x01", "sha512")[:size]
