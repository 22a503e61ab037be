"""The one encoding of a message: MessagePack maps with every field, in the order of the definition.

``decode`` accepts a body only if encoding the decoded value gives the same bytes again, so a message has
exactly one spelling: no duplicate keys, no oversized integers, no unknown fields, no trailing bytes.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

MEDIA_TYPE = "application/vnd.subrosa.v1+msgpack"
MAX_MESSAGE_BYTES = 16 * 2**20


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all wire types."""


M = TypeVar("M", bound=Message)


class MalformedError(ValueError):
    """A body is not the canonical encoding of the expected message."""


def encode(message: Message) -> bytes:
    """The canonical bytes of ``message``."""
    return msgspec.msgpack.encode(message)


def decode(kind: type[M], body: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> M:
    """Read one ``kind`` from ``body``, or raise :class:`MalformedError` naming what is wrong."""
    if len(body) > max_bytes:
        raise MalformedError(f"{kind.__name__}: {len(body)} bytes, at most {max_bytes} are accepted")
    try:
        message = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedError(f"{kind.__name__}: {error}") from error
    if encode(message) != body:
        raise MalformedError(f"{kind.__name__}: not the canonical encoding")
    return message
