"""How the loops of this package are compiled: by Numba, kept on disk between runs, if long without the lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """``function`` as machine code, typed like the Python it is written in. The cache follows its own source file."""
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def compiled_brief(function: _Function) -> _Function:
    """The same with the interpreter's lock held: for loops of a few microseconds, which another thread that takes the
    lock meanwhile could make wait a thousand times as long."""
    return cast(_Function, numba.njit(cache=True)(function))
