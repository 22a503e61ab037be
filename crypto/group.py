"""The prime-order group ristretto255 (RFC 9496) and its scalars, over libsodium (rbcl).

Elements and scalars are ``bytes`` of 32: the canonical encodings of RFC 9496 section 4 and the
little-endian integers below ``ORDER``. libsodium reads fixed lengths from whatever pointer it is given,
so **every length is checked here before a call**; nothing else in the project calls it. The identity is
refused wherever an element comes in, as RFC 9497 section 2.1 asks of DeserializeElement.

Multiplication, inversion and scalar arithmetic on secrets stay inside libsodium, constant in time; Python integers
see a secret only in the check against ``ORDER``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Sequence

import rbcl

from crypto.errors import InvalidEncodingError

ELEMENT_SIZE = 32
SCALAR_SIZE = 32
UNIFORM_SIZE = 64
ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = bytes(ELEMENT_SIZE)

Random = Callable[[int], bytes]

_Element = ctypes.c_char * ELEMENT_SIZE
_Scalar = ctypes.c_char * SCALAR_SIZE


def _bind(name: str, inputs: int, *, checked: bool) -> Callable[..., int]:
    """A libsodium function ``name(out, in1, ..)``. Item access gives a handle of our own, so rbcl's stays as is."""
    function = rbcl._sodium[name]
    function.argtypes = (ctypes.c_char_p,) * (inputs + 1)
    function.restype = ctypes.c_int if checked else None
    bound: Callable[..., int] = function
    return bound


_multiply = _bind("crypto_scalarmult_ristretto255", 2, checked=True)
_multiply_base = _bind("crypto_scalarmult_ristretto255_base", 1, checked=True)
_add = _bind("crypto_core_ristretto255_add", 2, checked=True)
_subtract = _bind("crypto_core_ristretto255_sub", 2, checked=True)
_from_hash = _bind("crypto_core_ristretto255_from_hash", 1, checked=True)
_is_valid = _bind("crypto_core_ristretto255_is_valid_point", 0, checked=True)
_scalar_reduce = _bind("crypto_core_ristretto255_scalar_reduce", 1, checked=False)
_scalar_invert = _bind("crypto_core_ristretto255_scalar_invert", 1, checked=True)
_scalar_add = _bind("crypto_core_ristretto255_scalar_add", 2, checked=False)
_scalar_subtract = _bind("crypto_core_ristretto255_scalar_sub", 2, checked=False)
_scalar_multiply = _bind("crypto_core_ristretto255_scalar_mul", 2, checked=False)

# rbcl unpacks libsodium into a new temporary file at every import and never removes it: 3 MB for each
# process and worker that ever starts. Once loaded, the mapping does not need the name (POSIX).
if sys.platform != "win32":
    with contextlib.suppress(FileNotFoundError):
        os.unlink(rbcl._sodium._name)


# --- lengths and canonical forms ---------------------------------------------------------------------------


def _check_elements(elements: Sequence[bytes]) -> None:
    """Lengths and the top bit; every other form that is not canonical is refused by libsodium itself.

    The libsodium inside rbcl (1.0.18) ignores bit 255, so each element would have a second encoding.
    """
    for position, element in enumerate(elements):
        if type(element) is not bytes or len(element) != ELEMENT_SIZE:
            raise InvalidEncodingError(f"element {position}: an element is {ELEMENT_SIZE} bytes")
        if element[31] > 0x7F:
            raise InvalidEncodingError(f"element {position}: not canonical, bit 255 is set")


def _check_scalars(scalars: Sequence[bytes]) -> None:
    for position, scalar in enumerate(scalars):
        if type(scalar) is not bytes or len(scalar) != SCALAR_SIZE:
            raise InvalidEncodingError(f"scalar {position}: a scalar is {SCALAR_SIZE} bytes")
        if not 0 < int.from_bytes(scalar, "little") < ORDER:
            raise InvalidEncodingError(f"scalar {position}: a scalar lies in [1, group order)")


def validate_element(element: bytes) -> None:
    """Return for the canonical encoding of an element other than the identity, else InvalidEncodingError."""
    _check_elements((element,))
    if element == IDENTITY:
        raise InvalidEncodingError("the identity element is refused")
    if _is_valid(element) != 1:
        raise InvalidEncodingError("not the canonical encoding of a ristretto255 element")


def validate_scalar(scalar: bytes) -> None:
    """Return for a canonical scalar in [1, ORDER), else :class:`InvalidEncodingError`."""
    _check_scalars((scalar,))


def split(elements: bytes, size: int = ELEMENT_SIZE) -> list[bytes]:
    """Cut encodings of ``size`` bytes that were laid end to end; a remainder is an InvalidEncodingError."""
    if size <= 0 or len(elements) % size:
        raise InvalidEncodingError(f"{len(elements)} bytes are not a whole number of encodings of {size}")
    return [elements[start : start + size] for start in range(0, len(elements), size)]


# --- elements ----------------------------------------------------------------------------------------------


def hash_to_element(uniform: bytes) -> bytes:
    """Map 64 uniform bytes to an element (RFC 9496 section 4.3.4)."""
    if type(uniform) is not bytes or len(uniform) != UNIFORM_SIZE:
        raise InvalidEncodingError(f"the element derivation takes {UNIFORM_SIZE} bytes")
    result = _Element()
    _from_hash(result, uniform)
    return result.raw


def multiply(scalar: bytes, element: bytes) -> bytes:
    """``scalar * element``, constant in time. Refuses bad encodings, the zero scalar and the identity."""
    return multiply_each(scalar, (element,))[0]


def multiply_each(scalar: bytes, elements: Sequence[bytes]) -> list[bytes]:
    """``[scalar * element]`` for a batch; the error names the position of a bad element."""
    _check_scalars((scalar,))
    _check_elements(elements)
    result = _Element()
    products: list[bytes] = []
    for element in elements:
        # -1 means a bad encoding or the identity: a non-zero scalar takes no other element to the identity.
        if _multiply(result, scalar, element):
            raise InvalidEncodingError(f"element {len(products)}: not canonical, or the identity")
        products.append(result.raw)
    return products


def multiply_pairs(scalars: Sequence[bytes], elements: Sequence[bytes]) -> list[bytes]:
    """``[scalar_i * element_i]``; both sequences have one length."""
    if len(scalars) != len(elements):
        raise InvalidEncodingError(f"{len(scalars)} scalars for {len(elements)} elements")
    _check_scalars(scalars)
    _check_elements(elements)
    result = _Element()
    products: list[bytes] = []
    for scalar, element in zip(scalars, elements, strict=True):
        if _multiply(result, scalar, element):
            raise InvalidEncodingError(f"element {len(products)}: not canonical, or the identity")
        products.append(result.raw)
    return products


def weighted_sum(scalars: Sequence[bytes], elements: Sequence[bytes]) -> bytes:
    """``sum(scalar_i * element_i)``; the sum itself may be the identity (32 zero bytes)."""
    if not elements:
        raise InvalidEncodingError("an empty sum has no encoding here")
    products = multiply_pairs(scalars, elements)
    total = _Element.from_buffer_copy(products[0])
    for product in products[1:]:
        # In place: libsodium decodes both inputs before it writes. Products are valid by construction.
        _add(total, total, product)
    return total.raw


def multiply_base(scalar: bytes) -> bytes:
    """``scalar * generator``, constant in time."""
    _check_scalars((scalar,))
    result = _Element()
    _multiply_base(result, scalar)
    return result.raw


def add(a: bytes, b: bytes) -> bytes:
    """``a + b``. The identity is refused as an input but may be the result (32 zero bytes)."""
    return _combine(_add, a, b)


def add_pairs(a: Sequence[bytes], b: Sequence[bytes]) -> list[bytes]:
    """``[a_i + b_i]``; both sequences have one length. A sum may be the identity (32 zero bytes)."""
    if len(a) != len(b):
        raise InvalidEncodingError(f"{len(a)} elements to add to {len(b)}")
    _check_elements(a)
    _check_elements(b)
    result = _Element()
    sums: list[bytes] = []
    for left, right in zip(a, b, strict=True):
        if _add(result, left, right):
            raise InvalidEncodingError(f"element {len(sums)}: not canonical")
        sums.append(result.raw)
    return sums


def subtract(a: bytes, b: bytes) -> bytes:
    """``a - b``. The identity is refused as an input but may be the result (32 zero bytes)."""
    return _combine(_subtract, a, b)


def _combine(operation: Callable[..., int], a: bytes, b: bytes) -> bytes:
    _check_elements((a, b))
    result = _Element()
    # rbcl's own wrapper drops this return code and answers zeros for a bad encoding.
    if IDENTITY in (a, b) or operation(result, a, b):
        raise InvalidEncodingError("not the canonical encoding of an element, or the identity")
    return result.raw


# --- scalars -----------------------------------------------------------------------------------------------


def scalar_from_int(value: int) -> bytes:
    """``value`` modulo ORDER as 32 little-endian bytes. For public values: big integers are not constant in time."""
    return (value % ORDER).to_bytes(SCALAR_SIZE, "little")


def scalar_to_int(scalar: bytes) -> int:
    """The integer of a canonical scalar. Zero is allowed here: it is a value, though never a multiplier."""
    if type(scalar) is not bytes or len(scalar) != SCALAR_SIZE:
        raise InvalidEncodingError(f"a scalar is {SCALAR_SIZE} bytes")
    value = int.from_bytes(scalar, "little")
    if value >= ORDER:
        raise InvalidEncodingError("a scalar lies below the group order")
    return value


def scalar_reduce(uniform: bytes) -> bytes:
    """64 little-endian bytes modulo ORDER: uniform within 2^-259 when the input is uniform."""
    if type(uniform) is not bytes or len(uniform) != UNIFORM_SIZE:
        raise InvalidEncodingError(f"the reduction takes {UNIFORM_SIZE} bytes")
    result = _Scalar()
    _scalar_reduce(result, uniform)
    return result.raw


def random_scalar(random: Random) -> bytes:
    """A uniform non-zero scalar; ``random(64)`` is asked for bytes."""
    scalar = scalar_reduce(random(UNIFORM_SIZE))
    if scalar == IDENTITY:
        raise InvalidEncodingError("the random source returned bytes that reduce to zero: it is broken")
    return scalar


def _scalar_operation(operation: Callable[..., int], a: bytes, b: bytes) -> bytes:
    for scalar in (a, b):
        scalar_to_int(scalar)
    result = _Scalar()
    operation(result, a, b)
    return result.raw


def scalar_add(a: bytes, b: bytes) -> bytes:
    """``a + b`` modulo ORDER, constant in time."""
    return _scalar_operation(_scalar_add, a, b)


def scalar_subtract(a: bytes, b: bytes) -> bytes:
    """``a - b`` modulo ORDER, constant in time."""
    return _scalar_operation(_scalar_subtract, a, b)


def scalar_multiply(a: bytes, b: bytes) -> bytes:
    """``a * b`` modulo ORDER, constant in time."""
    return _scalar_operation(_scalar_multiply, a, b)


def scalar_multiply_each(scalar: bytes, others: Sequence[bytes]) -> list[bytes]:
    """``[scalar * other]`` modulo ORDER for non-zero scalars, constant in time."""
    _check_scalars((scalar,))
    _check_scalars(others)
    result = _Scalar()
    products: list[bytes] = []
    for other in others:
        _scalar_multiply(result, scalar, other)
        products.append(result.raw)
    return products


def invert_each(scalars: Sequence[bytes]) -> list[bytes]:
    """Inverses of a batch with one inversion and three multiplications an item (Montgomery's trick).

    Inverting one by one costs 30 us an item, this 2 us; all of it runs inside libsodium.
    """
    if not scalars:
        return []
    _check_scalars(scalars)
    result = _Scalar()
    running = scalars[0]
    prefixes = [running]
    for scalar in scalars[1:]:
        _scalar_multiply(result, running, scalar)
        running = result.raw
        prefixes.append(running)
    _scalar_invert(result, running)
    running = result.raw
    inverses = [running] * len(scalars)
    for position in range(len(scalars) - 1, 0, -1):
        _scalar_multiply(result, running, prefixes[position - 1])
        inverses[position] = result.raw
        _scalar_multiply(result, running, scalars[position])
        running = result.raw
    inverses[0] = running
    return inverses
