"""Batch proofs that one secret scalar links many pairs of elements (RFC 9497 section 2.2).

The prover shows that ``outputs[i] = secret * inputs[i]`` for all i with the secret of ``public_key =
secret * generator``, in 64 bytes however long the batch. The weights of the composite are full scalars as
the RFC has them; 128-bit weights would be sound and faster, but the proofs would no longer be the RFC's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from crypto import group
from crypto.errors import InvalidEncodingError, InvalidProofError
from crypto.oprf.suite import Suite, check_batch, check_same_length, framed

PROOF_SIZE = 64
_ELEMENT_PREFIX = framed(bytes(group.ELEMENT_SIZE))[:2]


def _weights(
    suite: Suite, public_key: bytes, inputs: Sequence[bytes], outputs: Sequence[bytes]
) -> list[bytes]:
    """The d_i of ComputeComposites: they bind every element, its place and the public key."""
    seed = hashlib.sha512(framed(public_key) + framed(suite.seed_domain)).digest()
    start = framed(seed)
    prefix = _ELEMENT_PREFIX
    hash_to_scalar = suite.hash_to_scalar
    return [
        hash_to_scalar(
            b"".join((start, position.to_bytes(2, "big"), prefix, given, prefix, output, b"Composite"))
        )
        for position, (given, output) in enumerate(zip(inputs, outputs, strict=True))
    ]


def _challenge_transcript(public_key: bytes, m: bytes, z: bytes, t2: bytes, t3: bytes) -> bytes:
    return b"".join(framed(element) for element in (public_key, m, z, t2, t3)) + b"Challenge"


def _prove(
    suite: Suite,
    secret: bytes,
    public_key: bytes,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    nonce_for: Callable[[bytes], bytes],
) -> bytes:
    check_batch(len(inputs))
    check_same_length(len(inputs), outputs, "evaluated elements")
    weights = _weights(suite, public_key, inputs, outputs)
    m = group.weighted_sum(weights, inputs)
    # ComputeCompositesFast: who knows the secret needs no second sum over the outputs.
    z = group.multiply(secret, m)
    nonce = nonce_for(public_key + m + z)
    t2 = group.multiply_base(nonce)
    t3 = group.multiply(nonce, m)
    challenge = suite.hash_to_scalar(_challenge_transcript(public_key, m, z, t2, t3))
    response = group.scalar_subtract(nonce, group.scalar_multiply(challenge, secret))
    return challenge + response


def prove(
    suite: Suite,
    secret: bytes,
    public_key: bytes,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    random: group.Random,
) -> bytes:
    """GenerateProof: 64 bytes ``challenge || response``.

    The nonce hashes the secret, 64 fresh bytes and the statement, so a random source that repeats itself
    (a restored snapshot, say) gives the same nonce only for the same statement, which reveals nothing.
    """

    def hedged(statement: bytes) -> bytes:
        uniform = hashlib.sha512(b"subrosa/v1/dleq-nonce\0" + secret + random(64) + statement).digest()
        return group.scalar_reduce(uniform)

    return _prove(suite, secret, public_key, inputs, outputs, hedged)


def prove_with_known_nonce_for_published_vectors_only(
    suite: Suite,
    secret: bytes,
    public_key: bytes,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    nonce: bytes,
) -> bytes:
    """Whoever knows the nonce of a proof learns the secret key: never call this outside tests of vectors."""
    return _prove(suite, secret, public_key, inputs, outputs, lambda _statement: nonce)


def verify(
    suite: Suite, public_key: bytes, inputs: Sequence[bytes], outputs: Sequence[bytes], proof: bytes
) -> None:
    """VerifyProof: return, or raise.

    :class:`InvalidProofError` for everything the prover sent (outputs, proof), :class:`InvalidEncodingError`
    or :class:`OutOfRangeError` for what the caller brought (key, inputs): only the former is the prover's fault.
    """
    check_batch(len(inputs))
    if type(proof) is not bytes or len(proof) != PROOF_SIZE:
        raise InvalidProofError(f"a proof has {PROOF_SIZE} bytes")
    if len(outputs) != len(inputs):
        raise InvalidProofError(f"{len(outputs)} evaluated elements answer {len(inputs)} blinded ones")
    for position, output in enumerate(outputs):
        if type(output) is not bytes or len(output) != group.ELEMENT_SIZE:
            raise InvalidProofError(f"evaluated element {position} does not have {group.ELEMENT_SIZE} bytes")
    group.validate_element(public_key)
    weights = _weights(suite, public_key, inputs, outputs)
    m = group.weighted_sum(weights, inputs)
    challenge, response = proof[:32], proof[32:]
    try:
        z = group.weighted_sum(weights, outputs)
        t2 = group.add(group.multiply_base(response), group.multiply(challenge, public_key))
        t3 = group.weighted_sum((response, challenge), (m, z))
    except InvalidEncodingError as error:
        raise InvalidProofError(f"the evaluation or its proof is malformed: {error}") from error
    if suite.hash_to_scalar(_challenge_transcript(public_key, m, z, t2, t3)) != challenge:
        raise InvalidProofError("the proof does not verify: another key was used, or a changed element")
