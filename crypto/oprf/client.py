"""The client of RFC 9497: blinds inputs, keeps what it must not send, finalizes answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crypto import group
from crypto.errors import OutOfRangeError
from crypto.oprf import dleq
from crypto.oprf.suite import OPRF, VOPRF, Mode, Suite, check_batch, check_same_length, output_of


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PendingBatch:
    """The client's secret between blind and finalize: inputs and blinds, in order. Only for the same process
    or a worker of the same bank (it pickles for that); it is never encoded for another party."""

    mode: Mode
    inputs: tuple[bytes, ...]
    blinds: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "PendingBatch(...)"

    def __len__(self) -> int:
        return len(self.inputs)


def blind_with(
    suite: Suite, inputs: Sequence[bytes], random: group.Random
) -> tuple[PendingBatch, tuple[bytes, ...]]:
    """Blind of section 3.3: the secret state and the blinded elements, one uniform blind for each input."""
    check_batch(len(inputs))
    # One call for the whole batch: the cost of asking the operating system would be per item otherwise.
    uniform = random(group.UNIFORM_SIZE * len(inputs))
    if len(uniform) != group.UNIFORM_SIZE * len(inputs):
        raise OutOfRangeError("the random source returned another number of bytes than asked for")
    blinds = tuple(group.scalar_reduce(block) for block in group.split(uniform, group.UNIFORM_SIZE))
    return _blind(suite, inputs, blinds)


def blind_with_known_scalars_for_published_vectors_only(
    suite: Suite, inputs: Sequence[bytes], blinds: Sequence[bytes]
) -> tuple[PendingBatch, tuple[bytes, ...]]:
    """Whoever knows a blind can test guesses of the input: never call this outside tests of vectors."""
    check_batch(len(inputs))
    check_same_length(len(inputs), blinds, "blinds")
    return _blind(suite, inputs, tuple(blinds))


def _blind(
    suite: Suite, inputs: Sequence[bytes], blinds: tuple[bytes, ...]
) -> tuple[PendingBatch, tuple[bytes, ...]]:
    elements = [suite.hash_to_group(message) for message in inputs]
    blinded = tuple(group.multiply_pairs(blinds, elements))
    return PendingBatch(suite.mode, tuple(inputs), blinds), blinded


def _finalize(pending: PendingBatch, mode: Mode, evaluated: Sequence[bytes]) -> list[bytes]:
    if pending.mode is not mode:
        raise OutOfRangeError(f"a batch blinded for {pending.mode.name} cannot be finalized as {mode.name}")
    check_same_length(len(pending), evaluated, "evaluated elements")
    unblinded = group.multiply_pairs(group.invert_each(pending.blinds), evaluated)
    return [output_of(message, element) for message, element in zip(pending.inputs, unblinded, strict=True)]


class OprfClient:
    """Mode OPRF: believes the server. Subrosa's lookups use the verifiable mode."""

    __slots__ = ()

    def blind(self, inputs: Sequence[bytes], random: group.Random) -> tuple[PendingBatch, tuple[bytes, ...]]:
        """Secret state and blinded elements for a batch of inputs (bytes, at most 65535 each)."""
        return blind_with(OPRF, inputs, random)

    def finalize(self, pending: PendingBatch, evaluated: Sequence[bytes]) -> list[bytes]:
        """Finalize of section 3.3.1: 64-byte outputs in the order of the inputs."""
        return _finalize(pending, Mode.OPRF, evaluated)


class VoprfClient:
    """Mode VOPRF: knows the server's public key and verifies every batch."""

    __slots__ = ("_public_key",)

    def __init__(self, public_key: bytes) -> None:
        """Take the server's public key, an element of 32 bytes."""
        group.validate_element(public_key)
        self._public_key = public_key

    def blind(self, inputs: Sequence[bytes], random: group.Random) -> tuple[PendingBatch, tuple[bytes, ...]]:
        """Secret state and blinded elements for a batch of inputs (bytes, at most 65535 each)."""
        return blind_with(VOPRF, inputs, random)

    def finalize(
        self, pending: PendingBatch, blinded: Sequence[bytes], evaluated: Sequence[bytes], proof: bytes
    ) -> list[bytes]:
        """Finalize of section 3.3.2: 64-byte outputs, or :class:`InvalidProofError` before any is computed."""
        check_same_length(len(pending), blinded, "blinded elements")
        dleq.verify(VOPRF, self._public_key, blinded, evaluated, proof)
        return _finalize(pending, Mode.VOPRF, evaluated)
