"""The server of RFC 9497: holds a key, evaluates blinded elements, proves it (VOPRF)."""

from __future__ import annotations

from collections.abc import Sequence

from crypto import group
from crypto.oprf import dleq
from crypto.oprf.suite import OPRF, VOPRF, Suite, check_batch, output_of


class _Server:
    """What both modes share; the text form never shows the key."""

    __slots__ = ("_secret", "public_key")

    _SUITE: Suite

    def __init__(self, secret: bytes) -> None:
        """Take the secret key, a canonical non-zero scalar of 32 bytes."""
        group.validate_scalar(secret)
        self._secret = secret
        self.public_key: bytes = group.multiply_base(secret)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> str:
        raise TypeError("an OPRF server does not pickle: load its key where it is used")

    def evaluate_input(self, message: bytes) -> bytes:
        """Evaluate of section 3.3: the 64-byte output for an input the server itself knows."""
        return output_of(message, group.multiply(self._secret, self._SUITE.hash_to_group(message)))


class OprfServer(_Server):
    """Mode OPRF: evaluates without a proof. Subrosa's lookups use the verifiable mode."""

    __slots__ = ()
    _SUITE = OPRF

    def evaluate(self, blinded: Sequence[bytes]) -> list[bytes]:
        """BlindEvaluate of section 3.3.1 for a batch; :class:`InvalidEncodingError` names a bad position."""
        check_batch(len(blinded))
        return group.multiply_each(self._secret, blinded)


class VoprfServer(_Server):
    """Mode VOPRF: evaluates with one proof for each batch."""

    __slots__ = ()
    _SUITE = VOPRF

    def evaluate(self, blinded: Sequence[bytes], random: group.Random) -> tuple[list[bytes], bytes]:
        """BlindEvaluate of section 3.3.2: evaluated elements and one 64-byte proof."""
        check_batch(len(blinded))
        evaluated = group.multiply_each(self._secret, blinded)
        proof = dleq.prove(self._SUITE, self._secret, self.public_key, blinded, evaluated, random)
        return evaluated, proof

    def evaluate_with_known_nonce_for_published_vectors_only(
        self, blinded: Sequence[bytes], nonce: bytes
    ) -> tuple[list[bytes], bytes]:
        """Whoever knows the nonce of a proof learns the key: never call this outside tests of vectors."""
        evaluated = group.multiply_each(self._secret, blinded)
        proof = dleq.prove_with_known_nonce_for_published_vectors_only(
            self._SUITE, self._secret, self.public_key, blinded, evaluated, nonce
        )
        return evaluated, proof
