"""One key holder's answer to a blinded batch, and its check against the holder's public share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crypto import group
from crypto.errors import InvalidProofError, InvalidShareError
from crypto.oprf import dleq
from crypto.oprf.suite import VOPRF, check_batch
from crypto.threshold.shares import KeyShare, PublicKeySet


@dataclass(frozen=True, slots=True)
class ShareEvaluation:
    """``elements[j] = share * blinded[j]`` (32 bytes each) and one proof of RFC 9497 for all (64 bytes)."""

    index: int
    elements: tuple[bytes, ...]
    proof: bytes


def evaluate_share(share: KeyShare, blinded: Sequence[bytes], random: group.Random) -> ShareEvaluation:
    """Evaluate 1..65535 blinded elements under one share, with a batch proof against its public share.

    To RFC 9497 this is BlindEvaluate of a server whose key is the share. :class:`InvalidEncodingError` names
    the position of a blinded element that is malformed: the caller's fault, and nothing is evaluated for it.
    """
    check_batch(len(blinded))
    elements = group.multiply_each(share.secret, blinded)
    proof = dleq.prove(VOPRF, share.secret, share.public_share(), blinded, elements, random)
    return ShareEvaluation(share.index, tuple(elements), proof)


def verify_evaluation(keys: PublicKeySet, blinded: Sequence[bytes], evaluation: ShareEvaluation) -> None:
    """Return, or raise :class:`InvalidShareError` with the index of the holder that answered wrongly.

    ``keys`` must have passed its own ``verify``. What is wrong with ``blinded`` itself is no holder's fault
    and raises :class:`InvalidEncodingError` or :class:`OutOfRangeError`.
    """
    public_share = keys.public_shares.get(evaluation.index)
    if public_share is None:
        raise InvalidShareError(evaluation.index, "no holder of this key has this index")
    try:
        dleq.verify(VOPRF, public_share, blinded, evaluation.elements, evaluation.proof)
    except InvalidProofError as error:
        raise InvalidShareError(evaluation.index, str(error)) from error
