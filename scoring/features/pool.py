"""Arrays that grow without moving: address space is reserved once, memory comes as rows are first touched.

Growing by ``realloc`` copies whatever lies on the allocator's heap, up to 32 MB at once, and zeroes what it adds: eight
pools that grew together stopped the stream for 8 ms. Here growing is arithmetic, and an address stays valid. Huge
pages are not asked for: the first touch of one took as long again.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GROWTH = 1 << 15
# Without it the system counts the whole reservation as used and refuses to fork; Python 3.11 has no name for it.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_RESERVED = tuple(1 << power for power in (36, 34, 32, 30, 28))  # bytes, the first that the system grants


class Pool:
    """``array`` [rows, *tail]; rows never used before hold ``fill``."""

    def __init__(self, tail: tuple[int, ...], dtype: type[Any], *, fill: int = 0, rows: int = 64) -> None:
        self._tail, self._dtype, self._fill = tail, np.dtype(dtype), fill
        self._row_bytes = int(np.prod(tail, dtype=np.int64)) * self._dtype.itemsize
        self._reserve(0)
        self.array: NDArray[Any] = self._view(0)
        self.grow(rows)

    @classmethod
    def of(cls, array: NDArray[Any], *, fill: int = 0) -> Pool:
        """A pool that begins with a copy of ``array``."""
        pool = cls(array.shape[1:], array.dtype.type, fill=fill, rows=max(len(array), 64))
        pool.array[: len(array)] = array
        return pool

    def __len__(self) -> int:
        return len(self.array)

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    @property
    def address(self) -> int:
        """Of the first row; it changes only when the reserved address space is used up."""
        return int(self.array.ctypes.data)

    def grow(self, rows: int) -> bool:
        """Lengthen so that there are at least ``rows`` rows; whether ``array`` is a new, longer view.

        In steps of 2^15 rows or a sixteenth. Raises MemoryError when the system grants no more address space.
        """
        used = len(self.array)
        if used >= rows:
            return False
        length = max(rows, used + max(min(used, _GROWTH), used // 16), 64)
        if length * self._row_bytes > len(self._memory):
            self._move(length)
        self.array = self._view(length)
        if self._fill:
            self.array[used:] = self._fill
        return True

    def _view(self, rows: int) -> NDArray[Any]:
        count = rows * int(np.prod(self._tail, dtype=np.int64))
        return np.frombuffer(self._memory, self._dtype, count).reshape(rows, *self._tail)

    def _reserve(self, needed: int) -> None:
        unbacked = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        for size in _RESERVED:
            if size < needed:
                break
            try:
                self._memory = mmap.mmap(-1, size, flags=unbacked)
            except (OSError, MemoryError):  # a limit on address space: ask for less
                continue
            return
        raise MemoryError(f"the system grants no address space for a pool of {needed} bytes")

    def _move(self, rows: int) -> None:
        """Go to a larger reservation, which copies; only where the first one was small."""
        before = self.array
        self._reserve(2 * rows * self._row_bytes)
        self._view(len(before))[:] = before
