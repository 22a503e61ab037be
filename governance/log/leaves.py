"""Leaves are salted commitments: a leaf says nothing about its body to whoever lacks the salt (DESIGN 2, 5.4)."""

from __future__ import annotations

from hashlib import sha256

from crypto.errors import InvalidEncodingError
from crypto.merkle import leaf_hash

SALT_SIZE = 32
_DOMAIN = b"subrosa/v1/leaf\x00"


def leaf_data(salt: bytes, body: bytes) -> bytes:
    """SHA-256("subrosa/v1/leaf" || 0x00 || salt || body), 32 bytes: what the Merkle leaf holds.

    ``salt``: 32 fresh random bytes of the coordinator; ``body``: canonical JSON of the entry.
    """
    if len(salt) != SALT_SIZE:
        raise InvalidEncodingError(f"a leaf's salt has {SALT_SIZE} bytes, not {len(salt)}")
    return sha256(_DOMAIN + salt + body).digest()


def entry_leaf_hash(salt: bytes, body: bytes) -> bytes:
    """The RFC 6962 leaf hash of an entry (32 bytes)."""
    return leaf_hash(leaf_data(salt, body))
