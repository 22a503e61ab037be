"""Compiled arithmetic of ristretto255 on public data, variable in time: the field, the curve, two kinds of sum.

Method: Pippenger's buckets with signed digits over the extended coordinates of Hisil, Wong, Carter and Dawson
(ASIACRYPT 2008), whose addition is complete on this curve, so no input needs a special case. Field elements are
five limbs of 51 bits in ``uint64``; a product accumulates in 128 bits, which Numba lacks and which
``_multiply_fields`` therefore emits as LLVM instructions. Decoding and encoding follow RFC 9496 section 4.3.

Bounds kept throughout: a product has limbs below 2^51 + 2^14; one addition of products stays below 2^53; ``_minus``
takes limbs below 2^53 - 76 and returns limbs below 2^54, which only ever enter a product (2^54 * 2^54 * 77 < 2^128).

One file on purpose: Numba's cache on disk would not notice a change in an imported function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

P = 2**255 - 19
_D = -121665 * pow(121666, -1, P) % P
_SQRT_M1 = pow(2, (P - 1) // 4, P)
# RFC 9496 section 4.1: 1 / sqrt(a - d) with a = -1.
_INVERSE_ROOT_A_MINUS_D = 54469307008909316920995813868745141605393597292927456921205312896311721017578
SCALAR_BITS = 253

# Numba publishes no complete type hints.
_llvm: Any = cgutils
_njit: Any = numba.njit
_types: Any = types
_WIDE, _NARROW = _llvm.ir.IntType(128), _llvm.ir.IntType(64)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Field = tuple[Any, Any, Any, Any, Any]
_Point = tuple[_Field, _Field, _Field, _Field]


def _compiled(function: _Function) -> _Function:
    """For functions called from compiled ones only: a wrapper for Python would cost a third of compilation."""
    return cast("_Function", _njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def _compiled_entry(function: _Function) -> _Function:
    """Compile for the machine, cached on disk; runs without the interpreter's lock."""
    return cast("_Function", _njit(cache=True, nogil=True)(function))


def _limbs(value: int) -> _Field:
    return cast("_Field", tuple(np.uint64(value >> (51 * place) & (2**51 - 1)) for place in range(5)))


_MASK = np.uint64(2**51 - 1)
_U1, _U12, _U13, _U19 = (np.uint64(value) for value in (1, 12, 13, 19))
_U25, _U26, _U38, _U39, _U51 = (np.uint64(value) for value in (25, 26, 38, 39, 51))
_BIAS_0, _BIAS = np.uint64(4 * (2**51 - 19)), np.uint64(4 * (2**51 - 1))  # 4p, limb by limb
_ZERO, _ONE = _limbs(0), _limbs(1)
_D_LIMBS, _2D_LIMBS, _SQRT_M1_LIMBS = _limbs(_D), _limbs(2 * _D % P), _limbs(_SQRT_M1)
_INVERSE_ROOT_LIMBS = _limbs(_INVERSE_ROOT_A_MINUS_D)
_TOP_WORD, _FULL_WORD, _LOW_WORD = (np.uint64(v) for v in (2**63 - 1, 2**64 - 1, 2**64 - 19))

# --- the field 2^255 - 19 ----------------------------------------------------------------------------------


def _emit_product(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    """LLVM for a * b mod p: 25 products of 64 x 64 -> 128 bits, then carries; 2^255 folds back as 19."""
    wide, narrow = _WIDE, _NARROW
    limbs = [[builder.extract_value(argument, i) for i in range(5)] for argument in arguments]
    a, b = ([builder.zext(limb, wide) for limb in field] for field in limbs)
    # 19 * limb < 2^59: multiplied in 64 bits, so that each of the 25 products below is one instruction.
    folded = [builder.zext(builder.mul(limb, narrow(19)), wide) for limb in limbs[1]]
    mask, shift = wide(2**51 - 1), wide(51)
    columns = []
    for column in range(5):
        terms = [
            builder.mul(a[i], b[column - i] if i <= column else folded[column - i + 5]) for i in range(5)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = builder.add(total, term)
        columns.append(total)
    carry = wide(0)
    for column in range(5):
        total = builder.add(columns[column], carry)
        columns[column] = builder.and_(total, mask)
        carry = builder.lshr(total, shift)
    total = builder.add(columns[0], builder.mul(carry, wide(19)))
    columns[0] = builder.and_(total, mask)
    columns[1] = builder.add(columns[1], builder.lshr(total, shift))
    return _llvm.pack_array(builder, [builder.trunc(limb, narrow) for limb in columns])


def _product_typing(_typing_context: Any, a: Any, b: Any) -> Any:
    field = _types.UniTuple(_types.uint64, 5)
    return (field(field, field), _emit_product) if a == b == field else None


_multiply_fields = cast("Callable[[_Field, _Field], _Field]", intrinsic(_product_typing))


@_compiled
def _plus(a: _Field, b: _Field) -> _Field:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4])


@_compiled
def _minus(a: _Field, b: _Field) -> _Field:
    return (
        a[0] + _BIAS_0 - b[0],
        a[1] + _BIAS - b[1],
        a[2] + _BIAS - b[2],
        a[3] + _BIAS - b[3],
        a[4] + _BIAS - b[4],
    )


@_compiled
def _canonical(a: _Field) -> _Field:
    """The representative in [0, p): three carry rounds, then one subtraction of p if it fits."""
    l0, l1, l2, l3, l4 = a
    for _ in range(3):
        l1 += l0 >> _U51
        l0 &= _MASK
        l2 += l1 >> _U51
        l1 &= _MASK
        l3 += l2 >> _U51
        l2 &= _MASK
        l4 += l3 >> _U51
        l3 &= _MASK
        l0 += _U19 * (l4 >> _U51)
        l4 &= _MASK
    # a >= p exactly when a + 19 carries out of bit 255; adding 19 and dropping that bit subtracts p.
    carry = (l0 + _U19) >> _U51
    carry = (l1 + carry) >> _U51
    carry = (l2 + carry) >> _U51
    carry = (l3 + carry) >> _U51
    carry = (l4 + carry) >> _U51
    l0 += _U19 * carry
    l1 += l0 >> _U51
    l0 &= _MASK
    l2 += l1 >> _U51
    l1 &= _MASK
    l3 += l2 >> _U51
    l2 &= _MASK
    l4 += l3 >> _U51
    l3 &= _MASK
    l4 &= _MASK
    return (l0, l1, l2, l3, l4)


@_compiled
def _equal(a: _Field, b: _Field) -> bool:
    x, y = _canonical(a), _canonical(b)
    return bool(x[0] == y[0] and x[1] == y[1] and x[2] == y[2] and x[3] == y[3] and x[4] == y[4])


@_compiled
def _is_negative(a: _Field) -> bool:
    """RFC 9496 section 4.1: the least significant bit of the canonical representative."""
    return bool((_canonical(a)[0] & _U1) == _U1)


@_compiled
def _square_times(a: _Field, times: int) -> _Field:
    for _ in range(times):
        a = _multiply_fields(a, a)
    return a


@_compiled
def _power_for_roots(a: _Field) -> _Field:
    """a^((p-5)/8) = a^(2^252 - 3): blocks of ones are doubled in length."""
    ones_2 = _multiply_fields(_square_times(a, 1), a)
    ones_4 = _multiply_fields(_square_times(ones_2, 2), ones_2)
    ones_5 = _multiply_fields(_square_times(ones_4, 1), a)
    ones_10 = _multiply_fields(_square_times(ones_5, 5), ones_5)
    ones_20 = _multiply_fields(_square_times(ones_10, 10), ones_10)
    ones_40 = _multiply_fields(_square_times(ones_20, 20), ones_20)
    ones_50 = _multiply_fields(_square_times(ones_40, 10), ones_10)
    ones_100 = _multiply_fields(_square_times(ones_50, 50), ones_50)
    ones_200 = _multiply_fields(_square_times(ones_100, 100), ones_100)
    ones_250 = _multiply_fields(_square_times(ones_200, 50), ones_50)
    return _multiply_fields(_square_times(ones_250, 2), a)


@_compiled
def _inverse_root(v: _Field) -> tuple[bool, _Field]:
    """SQRT_RATIO_M1(1, v) of RFC 9496 section 4.2, up to the sign of the root."""
    v3 = _multiply_fields(_multiply_fields(v, v), v)
    v7 = _multiply_fields(_multiply_fields(v3, v3), v)
    root = _multiply_fields(v3, _power_for_roots(v7))
    check = _multiply_fields(v, _multiply_fields(root, root))
    if _equal(check, _ONE):
        return True, root
    is_square = _equal(check, _minus(_ZERO, _ONE))
    return is_square, _multiply_fields(root, _SQRT_M1_LIMBS)


# --- the curve ---------------------------------------------------------------------------------------------


@_compiled
def _decode_into(words: Any, out: Any) -> bool:
    """Decode four little-endian words to (y - x, y + x, 2dxy) with z = 1; False if RFC 9496 4.3.1 refuses."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    if w3 > _TOP_WORD or (w0 & _U1) == _U1:
        return False
    if w3 == _TOP_WORD and w2 == _FULL_WORD and w1 == _FULL_WORD and w0 > _LOW_WORD - _U1:
        return False
    s = (
        w0 & _MASK,
        ((w0 >> _U51) | (w1 << _U13)) & _MASK,
        ((w1 >> _U38) | (w2 << _U26)) & _MASK,
        ((w2 >> _U25) | (w3 << _U39)) & _MASK,
        w3 >> _U12,
    )
    ss = _multiply_fields(s, s)
    u1 = _minus(_ONE, ss)
    u2 = _plus(_ONE, ss)
    u2_squared = _multiply_fields(u2, u2)
    d_u1_squared = _multiply_fields(_D_LIMBS, _multiply_fields(u1, u1))
    v = _minus(_ZERO, _plus(d_u1_squared, u2_squared))
    was_square, root = _inverse_root(_multiply_fields(v, u2_squared))
    denominator_x = _multiply_fields(root, u2)
    denominator_y = _multiply_fields(_multiply_fields(root, denominator_x), v)
    x = _multiply_fields(_plus(s, s), denominator_x)
    if _is_negative(x):
        x = _multiply_fields(_minus(_ZERO, x), _ONE)
    y = _multiply_fields(u1, denominator_y)
    t = _multiply_fields(x, y)
    if not was_square or _is_negative(t) or _equal(y, _ZERO):
        return False
    minus, plus, scaled = _minus(y, x), _plus(y, x), _multiply_fields(t, _2D_LIMBS)
    for limb in range(5):
        out[limb] = minus[limb]
        out[5 + limb] = plus[limb]
        out[10 + limb] = scaled[limb]
    return True


@_compiled
def _encode_into(point: _Point, out: Any) -> None:
    """RFC 9496 section 4.3.2, as four little-endian words."""
    x, y, z, t = point
    u1 = _multiply_fields(_plus(z, y), _minus(z, y))
    u2 = _multiply_fields(x, y)
    _, root = _inverse_root(_multiply_fields(u1, _multiply_fields(u2, u2)))
    first, denominator = _multiply_fields(root, u1), _multiply_fields(root, u2)
    z_inverse = _multiply_fields(_multiply_fields(first, denominator), t)
    if _is_negative(_multiply_fields(t, z_inverse)):
        x, y = _multiply_fields(y, _SQRT_M1_LIMBS), _multiply_fields(x, _SQRT_M1_LIMBS)
        denominator = _multiply_fields(first, _INVERSE_ROOT_LIMBS)
    if _is_negative(_multiply_fields(x, z_inverse)):
        y = _multiply_fields(_minus(_ZERO, y), _ONE)
    s = _multiply_fields(denominator, _minus(z, y))
    if _is_negative(s):
        s = _minus(_ZERO, s)
    l0, l1, l2, l3, l4 = _canonical(s)
    out[0] = l0 | (l1 << _U51)
    out[1] = (l1 >> _U13) | (l2 << _U38)
    out[2] = (l2 >> _U26) | (l3 << _U25)
    out[3] = (l3 >> _U39) | (l4 << _U12)


@_compiled
def _load(row: Any, start: int) -> _Field:
    return (row[start], row[start + 1], row[start + 2], row[start + 3], row[start + 4])


@_compiled
def _load_point(row: Any) -> _Point:
    return (_load(row, 0), _load(row, 5), _load(row, 10), _load(row, 15))


@_compiled
def _store_point(row: Any, point: _Point) -> None:
    for place in range(4):
        coordinate = point[place]
        for limb in range(5):
            row[5 * place + limb] = coordinate[limb]


@_compiled
def _finish_addition(a: _Field, b: _Field, c: _Field, d: _Field) -> _Point:
    e, f, g, h = _minus(b, a), _minus(d, c), _plus(d, c), _plus(b, a)
    return (
        _multiply_fields(e, f),
        _multiply_fields(g, h),
        _multiply_fields(f, g),
        _multiply_fields(e, h),
    )


@_compiled
def _add_points(p: _Point, q: _Point) -> _Point:
    """(X, Y, Z, T) + (X, Y, Z, T): complete for this curve, so doubling and the identity are no exception."""
    a = _multiply_fields(_minus(p[1], p[0]), _minus(q[1], q[0]))
    b = _multiply_fields(_plus(p[1], p[0]), _plus(q[1], q[0]))
    c = _multiply_fields(_multiply_fields(p[3], _2D_LIMBS), q[3])
    z = _multiply_fields(p[2], q[2])
    return _finish_addition(a, b, c, _plus(z, z))


@_compiled
def _add_decoded(p: _Point, row: Any, negative: bool) -> _Point:
    """p plus or minus a decoded element: negation exchanges y - x with y + x and changes the sign of 2dxy."""
    minus, plus, scaled = _load(row, 0), _load(row, 5), _load(row, 10)
    if negative:
        minus, plus, scaled = plus, minus, _minus(_ZERO, scaled)
    a = _multiply_fields(_minus(p[1], p[0]), minus)
    b = _multiply_fields(_plus(p[1], p[0]), plus)
    return _finish_addition(a, b, _multiply_fields(p[3], scaled), _plus(p[2], p[2]))


# --- the sum -----------------------------------------------------------------------------------------------


@_compiled
def _recode(scalars: Any, digits: Any, width: int) -> None:
    """Digits in [-2^(width-1), 2^(width-1)) from 32 little-endian bytes, least significant first."""
    half, full = np.int64(1) << (width - 1), np.int64(1) << width
    for item in range(scalars.shape[0]):
        carry = 0
        for place in range(digits.shape[1]):
            digit = np.int64(carry)
            for bit in range(width):
                position = place * width + bit
                if position < 256:
                    digit += ((np.int64(scalars[item, position >> 3]) >> (position & 7)) & 1) << bit
            carry = 0
            if digit >= half:
                digit -= full
                carry = 1
            digits[item, place] = digit


@_compiled_entry
def sum_multiples(words: Any, scalars: Any, width: int, out: Any) -> int:
    """Write the encoding of the sum to ``out``; returns -1, or the position of a refused element."""
    count = words.shape[0]
    decoded = np.empty((count, 15), np.uint64)
    for item in range(count):
        if not _decode_into(words[item], decoded[item]):
            return item
    places = (SCALAR_BITS + width) // width
    digits = np.empty((count, places), np.int32)
    _recode(scalars, digits, width)
    buckets = np.empty(((1 << (width - 1)) + 1, 20), np.uint64)
    filled = np.empty(buckets.shape[0], np.bool_)
    total = (_ZERO, _ONE, _ONE, _ZERO)
    for place in range(places - 1, -1, -1):
        for _ in range(width):
            total = _add_points(total, total)
        filled[:] = False
        for item in range(count):
            digit = digits[item, place]
            if digit != 0:
                row = buckets[abs(digit)]
                point = (_ZERO, _ONE, _ONE, _ZERO)
                if filled[abs(digit)]:
                    point = _load_point(row)
                _store_point(row, _add_decoded(point, decoded[item], digit < 0))
                filled[abs(digit)] = True
        running = (_ZERO, _ONE, _ONE, _ZERO)
        seen = False
        for bucket in range(buckets.shape[0] - 1, 0, -1):
            if filled[bucket]:
                running = _add_points(running, _load_point(buckets[bucket]))
                seen = True
            if seen:
                total = _add_points(total, running)
    _encode_into(total, out)
    return -1


@_compiled_entry
def combine(words: Any, bits: Any, negative: Any, out: Any) -> int:
    """``out[j] = sum_i(+-factor_i * words[i, j])``; returns -1, or the flat position of a refused element.

    ``bits[i]`` holds factor i, most significant bit first: one doubling an item serves all factors.
    """
    batches, count = words.shape[0], words.shape[1]
    decoded = np.empty((batches, 15), np.uint64)
    for item in range(count):
        for batch in range(batches):
            if not _decode_into(words[batch, item], decoded[batch]):
                return int(batch * count + item)
        total = (_ZERO, _ONE, _ONE, _ZERO)
        for place in range(bits.shape[1]):
            if place > 0:
                total = _add_points(total, total)
            for batch in range(batches):
                if bits[batch, place]:
                    total = _add_decoded(total, decoded[batch], negative[batch])
        _encode_into(total, out[item])
    return -1
