"""A Numba intrinsic that asks the processor for memory before it is needed."""

# Numba's code generators are untyped.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types


@numba.extending.intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    """(address: int64) -> None: bring the cache line there into the nearest cache; any address will do."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        line = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        builder.call(fetch, [line, word(0), word(3), word(1)])  # to read, kept, data
        return context.get_dummy_value()

    return types.none(types.int64), make


prefetch = cast(Callable[[int], None], _prefetch)
