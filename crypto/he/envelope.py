"""The outer form of TenSEAL's bytes, checked before TenSEAL sees them.

TenSEAL believes the ``size`` in a serialised vector: a wrong one made it return heap memory or crash. So the
protobuf around SEAL's own objects is walked here, in plain Python, and must be exactly the one an honest party
produces; SEAL validates what is inside against the parameters when it loads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crypto.errors import InvalidEncodingError, OutOfRangeError
from crypto.he.parameters import MAX_CIPHERTEXT_BYTES, MAX_LENGTH, RING, SUMMANDS_MAX, ciphertext_count

_SEAL_MAGIC = b"\x5e\xa1\x10"  # magic number and header size of a SEAL object, version 3.5 and later
_SEAL_HEADER_SIZE = 16
_VARINT, _FIXED64, _BYTES = 0, 1, 2


def fields(message: bytes) -> list[tuple[int, int, bytes]]:
    """(field number, wire type, value bytes) of a protobuf message; only the wire types that occur here."""
    found: list[tuple[int, int, bytes]] = []
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        start = position
        if wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type == _FIXED64:
            position += 8
        elif wire_type == _BYTES:
            length, start = _varint(message, position)
            position = start + length
        else:
            raise InvalidEncodingError(f"a protobuf field of wire type {wire_type}")
        if position > len(message):
            raise InvalidEncodingError("a protobuf field longer than its message")
        found.append((number, wire_type, message[start:position]))
    return found


def check_ciphertext(serialised: bytes) -> None:
    """InvalidEncodingError unless the bytes are one vector of RING integers in one SEAL ciphertext, within the cap."""
    if len(serialised) > MAX_CIPHERTEXT_BYTES:
        raise InvalidEncodingError(f"{len(serialised)} bytes, at most {MAX_CIPHERTEXT_BYTES} are accepted")
    match fields(serialised):
        case [(1, 2, sizes), (2, 2, ciphertext)]:
            if sizes != _encode_varint(RING):
                raise InvalidEncodingError(f"a vector that does not claim exactly {RING} integers")
            check_seal_object(ciphertext)
        case _:
            raise InvalidEncodingError("not one serialised BFV vector of one ciphertext")


def check_ciphertexts(ciphertexts: Sequence[bytes], length: int) -> None:
    """Check the number and the outer form of the ciphertexts of a vector of ``length`` integers."""
    expected = ciphertext_count(length)
    if len(ciphertexts) != expected:
        raise InvalidEncodingError(f"{len(ciphertexts)} ciphertexts, {length} integers need {expected}")
    for index, serialised in enumerate(ciphertexts):
        try:
            check_ciphertext(serialised)
        except InvalidEncodingError as error:
            raise InvalidEncodingError(f"ciphertext {index}: {error}") from error


def check_contributions(contributions: Mapping[str, Sequence[bytes]], length: int) -> None:
    """Check number and outer form of the contributions of a cohort; errors name the contributor."""
    check_summands(len(contributions))
    if not 1 <= length <= MAX_LENGTH:
        raise OutOfRangeError(f"a contribution has 1..{MAX_LENGTH} integers, not {length}")
    for party, ciphertexts in contributions.items():
        try:
            check_ciphertexts(ciphertexts, length)
        except InvalidEncodingError as error:
            raise InvalidEncodingError(f"contribution of {party!r}: {error}") from error


def check_summands(count: int) -> None:
    """OutOfRangeError unless ``count`` contributions can be added exactly."""
    if not 1 <= count <= SUMMANDS_MAX:
        raise OutOfRangeError(f"1..{SUMMANDS_MAX} contributions are added exactly, not {count}")


def check_seal_object(serialised: bytes) -> None:
    """InvalidEncodingError unless the header of a SEAL object states the length the object has."""
    if len(serialised) <= _SEAL_HEADER_SIZE or not serialised.startswith(_SEAL_MAGIC):
        raise InvalidEncodingError("not a serialised SEAL object")
    if int.from_bytes(serialised[8:_SEAL_HEADER_SIZE], "little") != len(serialised):
        raise InvalidEncodingError("a SEAL object that states another length than it has")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            raise InvalidEncodingError("a protobuf number that does not end")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise InvalidEncodingError("a protobuf number of more than 64 bits")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
