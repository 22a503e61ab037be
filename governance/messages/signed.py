"""A message together with the signature of the party that stands behind it.

The signature context is the type's ``CONTEXT``, so a contribution can never be replayed as a veto.
Messages that are evidence (labels, inquiries, contributions, totals) travel in this envelope, apart from the
signature of the HTTP request that happened to carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from crypto.errors import InvalidSignatureError
from crypto.signing import SigningKey, verify_signature
from governance.messages.codec import Message, decode, encode


class Evidence(Message, frozen=True):
    """Base of messages that are only ever believed inside a :class:`Signed` envelope."""

    CONTEXT: ClassVar[str]


class Signed(Message, frozen=True):
    """``payload`` is the canonical encoding of one :class:`Evidence`; ``signer`` a member id."""

    signer: str
    payload: bytes
    signature: bytes


E = TypeVar("E", bound=Evidence)


def sign_message(message: Evidence, signer: str, key: SigningKey) -> Signed:
    """Seal ``message`` in an envelope signed by ``signer``."""
    payload = encode(message)
    return Signed(signer=signer, payload=payload, signature=key.sign(message.CONTEXT, payload))


def open_signed(kind: type[E], envelope: Signed, verify_keys: Mapping[str, bytes]) -> E:
    """Verify the envelope and return its message.

    ``verify_keys`` maps party ids to Ed25519 verify keys (32 bytes). Raises
    :class:`~crypto.errors.InvalidSignatureError` naming the claimed signer, or
    :class:`~governance.messages.codec.MalformedError`.
    """
    verify_key = verify_keys.get(envelope.signer)
    if verify_key is None:
        raise InvalidSignatureError(
            f"{kind.__name__}: signer {envelope.signer!r} is not on the membership roll"
        )
    try:
        verify_signature(verify_key, kind.CONTEXT, envelope.payload, envelope.signature)
    except InvalidSignatureError as error:
        raise InvalidSignatureError(
            f"{kind.__name__}: the signature of {envelope.signer!r} does not verify"
        ) from error
    return decode(kind, envelope.payload)
