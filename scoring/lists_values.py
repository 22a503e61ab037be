"""What a list's value is, how it is keyed, when it ends, and the error that refuses one.

A value that is written like an integer is listed under the keys of both spellings, so that a list of ``"1001"`` holds
for a stream whose column has the integer 1001 and for one that has the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scoring.hashing import DEFAULT_KEY
from scoring.schema import MAX_TEXT_LENGTH, MAX_TIME_US, entity_keys

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class ListError(ValueError):
    """A list or an entry is refused: ``code`` and ``field`` for programs; the text has no value of an entry in it."""

    def __init__(self, code: str, field: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.field = field
        self.reason = reason


def list_value(value: object) -> str:
    """The value as a list keeps it: text without white space around it. Raises ListError ``invalid-value``."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ListError("invalid-value", "value", "is neither text nor an integer")
    text = value.strip()
    if not text:
        raise ListError("invalid-value", "value", "is empty")
    if len(text) > MAX_TEXT_LENGTH:
        raise ListError("invalid-value", "value", f"is longer than {MAX_TEXT_LENGTH} characters")
    if not text.isprintable():
        raise ListError("invalid-value", "value", "has control characters or bytes that are not UTF-8")
    return text


def list_expiry(expires_us: int | None, now_us: int) -> int | None:
    """The expiry if it lies after ``now_us`` and before 2200, or None. Raises ListError ``expired`` or ``bad-time``."""
    if expires_us is not None and expires_us > MAX_TIME_US:
        raise ListError(
            "bad-time", "expires", "lies after the year 2200; leave it out for an entry without end"
        )
    if expires_us is not None and expires_us <= now_us:
        raise ListError("expired", "expires", "lies in the past")
    return expires_us


def list_keys(
    values: Sequence[str], *, hash_key: bytes = DEFAULT_KEY
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys uint64 [m] of values (see :func:`list_value`) and the position int64 [m] each belongs to; m >= n.

    A value in the canonical form of a 64-bit integer has two keys: the integer's and the text's. Streams key either.
    """
    texts = entity_keys(np.array(values, dtype=object), hash_key=hash_key)
    # Most values are none, which their first character tells: digits and "-" come before ":".
    whole = [
        i
        for i, value in enumerate(values)
        if value[:1] < ":" and _INTEGER.fullmatch(value) and _fits(int(value))
    ]
    numbers = np.array([int(values[i]) for i in whole], dtype=np.int64)
    keys = np.concatenate((texts, entity_keys(numbers)))
    return keys, np.concatenate((np.arange(len(values)), np.array(whole, dtype=np.int64)))


def _fits(number: int) -> bool:
    return -(2**63) < number < 2**63  # the smallest stands for "missing" in a stream
