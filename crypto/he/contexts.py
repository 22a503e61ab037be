"""The requester's BFV key and the public context it gives to the cohort. Sums need no other keys, so none travel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import tenseal
import tenseal.sealapi  # registers the types that the parameters are returned as

from crypto.errors import InvalidEncodingError
from crypto.he.envelope import check_seal_object, fields
from crypto.he.parameters import COEFFICIENT_BITS, COEFFICIENT_PRIMES, MAX_CONTEXT_BYTES, RING, P

# A stored private context is the public one and the secret key, 40 kB.
_MAX_KEY_BYTES = 2 * MAX_CONTEXT_BYTES


class RequesterKey:
    """A BFV key pair of one inquiry, held by the requester alone. Its text form never shows it."""

    __slots__ = ("_context",)

    def __init__(self, context: tenseal.Context) -> None:
        self._context = context

    def __repr__(self) -> str:
        return "RequesterKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a RequesterKey does not pickle: use to_bytes under the owner's storage key")

    @classmethod
    def generate(cls) -> RequesterKey:
        """A fresh key. SEAL draws it from the operating system; it offers no way to pass randomness in."""
        context = tenseal.context(
            tenseal.SCHEME_TYPE.BFV, RING, P, coeff_mod_bit_sizes=list(COEFFICIENT_BITS), n_threads=1
        )
        _check_parameters(context)
        return cls(context)

    def to_bytes(self) -> bytes:
        """Secret and public key, for sealed storage only."""
        serialised: bytes = self._context.serialize(
            save_public_key=True, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
        )
        return serialised

    @classmethod
    def from_bytes(cls, serialised: bytes) -> RequesterKey:
        """The key stored by :meth:`to_bytes`; the bytes must come from the owner's own sealed storage."""
        if len(serialised) > _MAX_KEY_BYTES:
            raise InvalidEncodingError(f"a stored BFV key of {len(serialised)} bytes")
        context = _parse(serialised)
        if not context.has_secret_key() or context.has_galois_keys() or context.has_relin_keys():
            raise InvalidEncodingError("not the stored BFV key of a requester")
        _check_parameters(context)
        return cls(context)

    def public_context(self) -> bytes:
        """Parameters and public key, nothing else: what :func:`load_public_context` accepts (about 86 kB)."""
        serialised: bytes = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        return serialised

    @property
    def native(self) -> Any:
        """TenSEAL's own context object, for this package."""
        return self._context.data


class PublicContext:
    """A checked public context; ``digest`` is SHA-256 of the bytes it came as (32 bytes)."""

    __slots__ = ("digest", "native")

    def __init__(self, native: Any, digest: bytes) -> None:
        self.native = native
        self.digest = digest

    def __repr__(self) -> str:
        return f"PublicContext({self.digest.hex()[:16]})"


def load_public_context(serialised: bytes, max_bytes: int = MAX_CONTEXT_BYTES) -> PublicContext:
    """Read a requester's public context; the caller has verified the signature over its digest.

    Before TenSEAL parses it: the byte cap, and that all fields but the public key equal our own, which fixes
    parameters and leaves no room for secret, Galois or relinearisation keys. InvalidEncodingError otherwise.
    """
    if len(serialised) > max_bytes:
        raise InvalidEncodingError(
            f"a public context of {len(serialised)} bytes, at most {max_bytes} are accepted"
        )
    theirs, ours = _read_frame(serialised), _own_frame()
    if (theirs.parameters, theirs.settings) != (ours.parameters, ours.settings):
        raise InvalidEncodingError("a context whose parameters are not those of this protocol")
    check_seal_object(theirs.public_key)
    context = _parse(serialised)
    if context.has_secret_key() or context.has_galois_keys() or context.has_relin_keys():
        raise InvalidEncodingError("a context that holds more than a public key")
    _check_parameters(context)
    return PublicContext(context.data, sha256(serialised).digest())


@dataclass(frozen=True)
class _Frame:
    """A public context taken apart: SEAL's parameters, TenSEAL's settings, and the one key."""

    parameters: bytes
    settings: bytes
    public_key: bytes


def _read_frame(serialised: bytes) -> _Frame:
    """TenSEAL's protobuf: parameters, then a message of the public key and scalar settings; nothing else."""
    match fields(serialised):
        case [(1, 2, parameters), (2, 2, public)]:
            match fields(public):
                case [(1, 2, public_key), (2, 0, flags), (3, 1, scale)]:
                    return _Frame(parameters, flags + scale, public_key)
    raise InvalidEncodingError("a context that holds other keys or fields than parameters and a public key")


@lru_cache(maxsize=1)
def _own_frame() -> _Frame:
    """A public context made here; only its public key differs from another requester's."""
    return _read_frame(RequesterKey.generate().public_context())


def _parse(serialised: bytes) -> tenseal.Context:
    try:
        return tenseal.context_from(serialised, n_threads=1)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InvalidEncodingError(f"TenSEAL cannot read the context: {error}") from error


def _check_parameters(context: tenseal.Context) -> None:
    native = context.seal_context().data.key_context_data().parms()
    found = (
        native.poly_modulus_degree(),
        native.plain_modulus().value(),
        tuple(prime.value() for prime in native.coeff_modulus()),
    )
    if found != (RING, P, COEFFICIENT_PRIMES) or str(native.scheme()) != "SCHEME_TYPE.BFV":
        raise InvalidEncodingError("BFV parameters that are not those of this protocol")
