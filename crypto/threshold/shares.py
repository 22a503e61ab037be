"""Shamir shares of an OPRF key and the public set that describes them (Shamir 1979).

A key is named by (epoch, kind group, generation): a new epoch is a new key and new tags, a new generation
are new shares of the same key. A polynomial f of degree t-1 with f(0) = key gives holder i the share f(i);
its public share is f(i) * generator and the public key f(0) * generator.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crypto import group
from crypto.errors import InvalidEncodingError, InvalidProofError, OutOfRangeError

MAX_HOLDERS = 255
_ENCODING = b"subrosa/v1/key-share\0"
_KIND_GROUP = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


def least_threshold(holders: int) -> int:
    """floor(n/2) + 1: with fewer, two disjoint sets of holders could evaluate under one key (DESIGN 2)."""
    return holders // 2 + 1


def _check_name(epoch: int, kind_group: str, generation: int) -> None:
    if not 0 <= epoch < 2**63 or not 0 <= generation < 2**31:
        raise OutOfRangeError("an epoch lies in [0, 2^63), a generation in [0, 2^31)")
    if not _KIND_GROUP.match(kind_group):
        raise InvalidEncodingError("a kind group is 1..32 lower-case letters, digits and hyphens")


def _check_index(index: int) -> None:
    if not 1 <= index <= MAX_HOLDERS:
        raise OutOfRangeError(f"a share index lies in 1..{MAX_HOLDERS}, not {index}")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyShare:
    """One holder's secret share. ``encode`` is for storage sealed under the holder's own key, nothing else."""

    epoch: int
    kind_group: str
    generation: int
    index: int
    secret: bytes

    def __post_init__(self) -> None:
        _check_name(self.epoch, self.kind_group, self.generation)
        _check_index(self.index)
        group.validate_scalar(self.secret)

    def __repr__(self) -> str:
        return "KeyShare(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyShare) and hmac.compare_digest(self.encode(), other.encode())

    def __hash__(self) -> int:
        return hash((self.epoch, self.kind_group, self.generation, self.index))

    def public_share(self) -> bytes:
        """``secret * generator``, 32 bytes."""
        return group.multiply_base(self.secret)

    def encode(self) -> bytes:
        """The one encoding: domain, epoch (8), generation (4), index (1), kind group (length 1), scalar (32)."""
        name = self.kind_group.encode()
        return b"".join(
            (
                _ENCODING,
                self.epoch.to_bytes(8, "big"),
                self.generation.to_bytes(4, "big"),
                self.index.to_bytes(1, "big"),
                len(name).to_bytes(1, "big"),
                name,
                self.secret,
            )
        )

    @classmethod
    def decode(cls, encoded: bytes) -> KeyShare:
        """The share of :meth:`encode`; :class:`InvalidEncodingError` for any other bytes."""
        head = len(_ENCODING)
        if not encoded.startswith(_ENCODING) or len(encoded) < head + 14:
            raise InvalidEncodingError("these bytes are not an encoded key share")
        body = encoded[head:]
        name, secret = body[14 : 14 + body[13]], body[14 + body[13] :]
        try:
            return cls(
                epoch=int.from_bytes(body[:8], "big"),
                kind_group=name.decode("ascii"),
                generation=int.from_bytes(body[8:12], "big"),
                index=body[12],
                secret=secret,
            )
        except (UnicodeDecodeError, OutOfRangeError) as error:
            raise InvalidEncodingError("these bytes are not an encoded key share") from error


@dataclass(frozen=True, slots=True)
class PublicKeySet:
    """What everybody knows of a shared key: ``public_shares`` maps share index to element (32 bytes).

    Take one into use only after :meth:`verify`.
    """

    epoch: int
    kind_group: str
    generation: int
    threshold: int
    public_key: bytes
    public_shares: Mapping[int, bytes]

    def verify(self) -> None:
        """Return if every ``threshold`` public shares interpolate to ``public_key``, else raise.

        The first t shares fix the polynomial; each further share must lie on it. That holds exactly when all
        t-subsets agree, so shares of two generations or of two keys never pass together.

        :class:`OutOfRangeError` for counts, :class:`InvalidEncodingError` for elements,
        :class:`InvalidProofError` naming the share that does not lie on the polynomial.
        """
        _check_name(self.epoch, self.kind_group, self.generation)
        holders = len(self.public_shares)
        if not least_threshold(holders) <= self.threshold <= holders:
            raise OutOfRangeError(
                f"threshold {self.threshold} of {holders} holders: at least {least_threshold(holders)} are needed"
            )
        for index, element in self.public_shares.items():
            _check_index(index)
            group.validate_element(element)
        group.validate_element(self.public_key)
        indices = sorted(self.public_shares)
        first, rest = indices[: self.threshold], indices[self.threshold :]
        known = [self.public_shares[index] for index in first]
        if group.weighted_sum(_scalars(first, at=0), known) != self.public_key:
            raise InvalidProofError("the public shares do not interpolate to the public key")
        for index in rest:
            if group.weighted_sum(_scalars(first, at=index), known) != self.public_shares[index]:
                raise InvalidProofError(f"public share {index} is not a share of this public key")


def deal(
    *, epoch: int, kind_group: str, threshold: int, holders: int, random: group.Random
) -> tuple[PublicKeySet, list[KeyShare]]:
    """Draw a key, share it among indices 1..holders, forget it.

    **The dealer sees the whole key.** This serves the sandbox until holders make their key together; whoever
    runs it could evaluate alone, so a real consortium must not start from it.
    """
    _check_name(epoch, kind_group, generation := 1)
    if not 1 <= holders <= MAX_HOLDERS:
        raise OutOfRangeError(f"a key has 1..{MAX_HOLDERS} holders, not {holders}")
    if not least_threshold(holders) <= threshold <= holders:
        raise OutOfRangeError(
            f"threshold {threshold} of {holders} holders: at least {least_threshold(holders)} are needed"
        )
    coefficients = [group.random_scalar(random) for _ in range(threshold)]
    shares = [
        KeyShare(epoch, kind_group, generation, index, _evaluate_polynomial(coefficients, index))
        for index in range(1, holders + 1)
    ]
    keys = PublicKeySet(
        epoch=epoch,
        kind_group=kind_group,
        generation=generation,
        threshold=threshold,
        public_key=group.multiply_base(coefficients[0]),
        public_shares={share.index: share.public_share() for share in shares},
    )
    return keys, shares


def _evaluate_polynomial(coefficients: Sequence[bytes], at: int) -> bytes:
    """Horner's rule inside libsodium: the coefficients are secret."""
    point = group.scalar_from_int(at)
    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = group.scalar_add(group.scalar_multiply(value, point), coefficient)
    return value


def lagrange_coefficients(indices: Sequence[int], *, at: int = 0) -> list[int]:
    """The integers lambda_i modulo ORDER with f(at) = sum(lambda_i * f(i)) for every f of degree < len(indices)."""
    if len(set(indices)) != len(indices) or not indices:
        raise OutOfRangeError("interpolation needs distinct share indices, at least one")
    for index in indices:
        _check_index(index)
    coefficients = []
    for own in indices:
        numerator = denominator = 1
        for other in indices:
            if other != own:
                numerator = numerator * (at - other) % group.ORDER
                denominator = denominator * (own - other) % group.ORDER
        coefficients.append(numerator * pow(denominator, -1, group.ORDER) % group.ORDER)
    return coefficients


def _scalars(indices: Sequence[int], *, at: int) -> list[bytes]:
    return [group.scalar_from_int(value) for value in lagrange_coefficients(indices, at=at)]
