"""Arrays in Numba kernels by address: pointers, which are indexed without bounds, owner or wrap-around.

Passing arrays, or tuples of them, from kernel to helper makes Numba copy their headers and count references, which can
cost ten times the work itself. A kernel given one integer, the address of a table of addresses, reaches all its state
through these views instead. The caller owns the arrays, keeps them alive during a call and renews the table when one
has moved; nothing checks bounds.
"""

# Numba's code generators are untyped.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from typing import Any

import numba
from numba.core import types


def view_of(dtype: Any) -> Any:
    """A Numba function (address) -> pointer to values of ``dtype`` there."""
    kind = types.CPointer(dtype)

    def typed(context: Any, address: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(types.int64), make

    return numba.extending.intrinsic(typed)


floats = view_of(types.float64)
longs = view_of(types.int64)
keys = view_of(types.uint64)
ints = view_of(types.int32)
counts = view_of(types.uint32)
octets = view_of(types.uint8)
