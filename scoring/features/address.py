"""Arrays in Numba kernels by address: endless views without an owner, whose references nobody counts.

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
from numba.core import cgutils, types
from numba.np.arrayobj import make_array, populate_array


def view_of(dtype: Any) -> Any:
    """A Numba function (address) -> endless one-dimensional array of ``dtype`` there."""

    def typed(context: Any, address: Any) -> Any:
        kind = types.Array(dtype, 1, "C")

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            view = make_array(kind)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(dtype))
            length = context.get_constant(types.intp, 1 << 48)
            populate_array(
                view,
                data=builder.inttoptr(arguments[0], view.data.type),
                shape=cgutils.pack_array(builder, [length]),
                strides=cgutils.pack_array(builder, [context.get_constant(types.intp, size)]),
                itemsize=context.get_constant(types.intp, size),
                meminfo=None,
            )
            return view._getvalue()

        return kind(types.int64), make

    return numba.extending.intrinsic(typed)


floats = view_of(types.float64)
longs = view_of(types.int64)
keys = view_of(types.uint64)
ints = view_of(types.int32)
counts = view_of(types.uint32)
octets = view_of(types.uint8)
