"""How the loops of this package are compiled: by Numba, without the interpreter's lock, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """``function`` as machine code, typed like the Python it is written in. The cache follows its own source file."""
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))
