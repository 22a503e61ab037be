"""Ed25519 signatures (RFC 8032) with a context that keeps one kind of message from passing as another.

``sign`` prefixes ``"subrosa/v1/" || context || 0x00``; no context is a prefix of another because the
context may not contain the zero byte. ``sign_raw`` exists for formats that fix their own bytes
(RFC 9421 signature bases, C2SP signed notes) and already separate their domains.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crypto.errors import InvalidEncodingError, InvalidSignatureError

SEED_SIZE = 32
VERIFY_KEY_SIZE = 32
SIGNATURE_SIZE = 64


def _framed(context: str, payload: bytes) -> bytes:
    if "\0" in context or not context:
        raise InvalidEncodingError("a signature context is a non-empty text without a zero byte")
    return b"subrosa/v1/" + context.encode() + b"\0" + payload


class SigningKey:
    """An Ed25519 private key. Its text form never shows the key."""

    __slots__ = ("_key", "verify_key")

    def __init__(self, seed: bytes) -> None:
        """Take the 32-byte seed of RFC 8032; the caller draws it from its generator."""
        if len(seed) != SEED_SIZE:
            raise InvalidEncodingError(f"an Ed25519 seed has {SEED_SIZE} bytes, not {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verify_key: bytes = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "SigningKey(...)"

    def __reduce__(self) -> str:
        raise TypeError("a SigningKey does not pickle: load it where it is used")

    def seed(self) -> bytes:
        """The 32 secret bytes, for storing under the owner's storage key."""
        return self._key.private_bytes_raw()

    def sign(self, context: str, payload: bytes) -> bytes:
        """Sign ``payload`` (bytes) as a message of kind ``context``; 64 bytes."""
        return self._key.sign(_framed(context, payload))

    def sign_raw(self, message: bytes) -> bytes:
        """Sign bytes whose format is fixed elsewhere (RFC 9421, C2SP); 64 bytes."""
        return self._key.sign(message)


def verify_signature(verify_key: bytes, context: str, payload: bytes, signature: bytes) -> None:
    """Return, or raise :class:`InvalidSignatureError`."""
    verify_raw_signature(verify_key, _framed(context, payload), signature)


def verify_raw_signature(verify_key: bytes, message: bytes, signature: bytes) -> None:
    """Return, or raise :class:`InvalidSignatureError`; lengths are checked before the library is called."""
    if len(verify_key) != VERIFY_KEY_SIZE:
        raise InvalidSignatureError(f"a verify key has {VERIFY_KEY_SIZE} bytes, not {len(verify_key)}")
    if len(signature) != SIGNATURE_SIZE:
        raise InvalidSignatureError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise InvalidSignatureError("the Ed25519 signature does not verify") from error
