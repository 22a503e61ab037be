"""A frozen image of arrays, written to a file by a forked child while their owner goes on changing them.

As Redis' BGSAVE does (redis.io, "Redis persistence: how it works"): ``fork`` gives the child the memory of that moment
by copy on write, so the owner waits for the copy of its page table and not of its memory. Unlike Redis, this process
has many threads, and in the child of such a process only async-signal-safe functions may be called (POSIX, ``fork``):
any lock may be held by a thread that does not exist there. So the child runs no Python at all. It is compiled code that
calls eleven functions of the C library by address, allocates nothing, takes no lock and leaves by ``_exit``. It is made
by ``_Fork`` where there is one (POSIX.1-2024; glibc 2.34), which runs none of the handlers that Arrow, OpenBLAS, OpenMP
or gRPC have registered for forks.

The child closes every descriptor but its file first, so that no lock outlives the parent in it; all signals are
blocked in it; and it ends when it finds itself with another parent.

A page table of 4 KiB pages takes 17 ms or more a GiB to copy, one of 2 MiB pages a tenth of that: :func:`gather`.
"""

# Numba's code generators are untyped.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numpy.typing import NDArray

from scoring.features.address import ints, keys, octets

LOGGER = logging.getLogger(__name__)
# What is forced to disk at a time: a gigabyte at once would keep the journal's own sync waiting (as Redis'
# rdb-save-incremental-fsync).
SYNC_BYTES = 32 * 2**20
_CHUNK = 2**20
_NICENESS = 10  # the stream needs the processors more
_HUGE_PAGE = 2 * 2**20
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1; Python has no name for it
_FORK, _ERRNO, _GETPID, _GETPPID, _DUP2, _CLOSE_RANGE, _CLOSE, _NICE, _PWRITE, _SYNC, _EXIT = range(11)
_NAMES = (  # from _ERRNO on
    "__errno_location",
    "getpid",
    "getppid",
    "dup2",
    "close_range",
    "close",
    "nice",
    "pwrite",
    "fdatasync",
    "_exit",
)
_DONE, _FAILED, _CRCS = 0, 1, 2
_LOST = 3  # how a child ends that has lost its parent
_POLYNOMIAL = 0xEDB88320


class ForkError(OSError):
    """This process cannot be forked now, or not at all on this platform."""


class ImageError(RuntimeError):
    """The child ended before its file was whole; the text says how."""


class Image:
    """A child that writes. Its owner calls :meth:`wait` or :meth:`abandon`, once, from any thread."""

    def __init__(self, pid: int, outcome: NDArray[np.int64]) -> None:
        self.pid = pid
        self._outcome = outcome

    def wait(self) -> list[int]:
        """The crc32 of each array, when all of them are on disk. Raises OSError when the disk does not take them, and
        :class:`ImageError`."""
        self._volunteer()
        how = self._ended()
        if self._outcome[_FAILED]:
            code = int(self._outcome[_FAILED])
            raise OSError(code, os.strerror(code))
        if not self._outcome[_DONE]:
            raise ImageError(f"the process that wrote it {how}")
        return [int(crc) for crc in self._outcome[_CRCS:]]

    def abandon(self) -> None:
        """End the child."""
        with suppress(
            ProcessLookupError
        ):  # only where somebody else has waited for it: the id is its own till then
            os.kill(self.pid, signal.SIGKILL)
        self._ended()

    def _ended(self) -> str:
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # somebody in this process waits for all children, or ignores SIGCHLD
            return "ended, nobody knows how"
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL); if nobody did, the system was out of memory"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def _volunteer(self) -> None:
        """Where memory is short, the child is what the system should end, not the node."""
        try:
            Path(f"/proc/{self.pid}/oom_score_adj").write_text("1000")
        except OSError as error:
            LOGGER.debug("the child %d keeps its score: %s", self.pid, error)


def freeze(descriptor: int, places: Sequence[int], arrays: Sequence[NDArray[np.uint8]]) -> Image:
    """Fork a child that writes each array (contiguous bytes) at its place of the file ``descriptor``.

    Returns as soon as the child has its image: then the arrays may change. The descriptor may be closed. Raises
    :class:`ForkError`; then nothing has happened.
    """
    calls = _calls()
    aligned = [each if each.ctypes.data % 8 == 0 else each.copy() for each in arrays]
    spans = np.array(
        [(each.ctypes.data, len(each), place) for each, place in zip(aligned, places, strict=True)], np.int64
    ).reshape(-1, 3)
    shared = mmap.mmap(-1, 8 * (_CRCS + len(spans)))
    outcome = np.frombuffer(shared, np.int64)
    # The child inherits the mask: a signal to all of a group is its parent's affair alone, and must not reach the
    # parent's handlers through it either.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = int(_fork(calls, _table(), spans, outcome, descriptor))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid < 0:
        raise ForkError(-pid, f"this process cannot be forked: {os.strerror(-pid)}")
    return Image(pid, outcome)


def ready() -> str:
    """Have the kernel compiled before somebody waits for it; why nothing can be frozen here, empty if it can."""
    try:
        calls = _calls().copy()
    except ForkError as error:
        return str(error)
    calls[_FORK] = 0
    _fork(calls, _table(), np.zeros((0, 3), np.int64), np.zeros(_CRCS, np.int64), -1)
    return ""


def spans_of(arrays: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    """Address and bytes of arrays of the size of a huge page or more."""
    return [(each.ctypes.data, each.nbytes) for each in arrays if each.nbytes >= _HUGE_PAGE]


def gather(spans: Sequence[tuple[int, int]]) -> bool:
    """Have the system put memory into huge pages, so that a fork copies a 512th of its page table; whether it can.

    Contents do not change, and whoever uses a part of it waits for a fraction of a millisecond while that is moved;
    so this needs no lock, and a span that is not there any more does no harm.
    """
    library = ctypes.CDLL(None, use_errno=True)
    for address, size in spans:
        first = -(-address // _HUGE_PAGE) * _HUGE_PAGE
        length = (address + size) // _HUGE_PAGE * _HUGE_PAGE - first
        if length <= 0:
            continue
        failed = library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _COLLAPSE)
        if failed and ctypes.get_errno() == errno.EINVAL:
            return False
    return True


@functools.cache
def _calls() -> NDArray[np.int64]:
    """Addresses of the C library's functions, by their numbers here."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise ForkError(errno.ENOSYS, "images are taken on 64-bit Linux only")
    library = ctypes.CDLL(None)

    def address(*names: str) -> int:
        for name in names:
            found = getattr(library, name, None)
            if found is not None:
                return ctypes.cast(found, ctypes.c_void_p).value or 0
        return 0

    calls = np.array([address("_Fork", "fork"), *(address(name) for name in _NAMES)], np.int64)
    if not np.delete(calls, _CLOSE_RANGE).all():
        raise ForkError(errno.ENOSYS, "the C library lacks a function that images need")
    return calls


@functools.cache
def _table() -> NDArray[np.uint64]:
    """Tables of slicing by eight (Kounavis, Berry 2005), uint64 [8 * 256]: crc32 takes eight bytes at a step."""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ _POLYNOMIAL, table >> 1)
    slices = [table]
    for _ in range(7):
        slices.append(table[slices[-1] & 0xFF] ^ (slices[-1] >> 8))
    return np.concatenate(slices)


@numba.extending.intrinsic
def _called(context: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """(address: int64, four int64) -> int64: call a C function. More arguments than it takes do no harm, and of an
    ``int`` result only the lower half counts."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 4)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 5), make


_call = cast(Callable[[int, int, int, int, int], int], _called)


# With the interpreter's lock: without it this thread would have to wait for its turn while the stream waits for it.
_kernel = numba.njit(cache=True)


@_kernel
def _crc32(table: NDArray[np.uint64], crc: np.int64, address: int, length: int) -> np.int64:
    """Carry a crc32 (its complement) on over bytes; the address is a multiple of 8."""
    value = np.uint64(crc)
    words, single = keys(address), octets(address)
    low = np.uint64(0xFF)
    for i in range(length >> 3):
        word = words[i] ^ value
        value = (
            table[1792 + np.int64(word & low)]
            ^ table[1536 + np.int64((word >> np.uint64(8)) & low)]
            ^ table[1280 + np.int64((word >> np.uint64(16)) & low)]
            ^ table[1024 + np.int64((word >> np.uint64(24)) & low)]
            ^ table[768 + np.int64((word >> np.uint64(32)) & low)]
            ^ table[512 + np.int64((word >> np.uint64(40)) & low)]
            ^ table[256 + np.int64((word >> np.uint64(48)) & low)]
            ^ table[np.int64(word >> np.uint64(56))]
        )
    for i in range(length & ~7, length):
        value = table[np.int64((value ^ np.uint64(single[i])) & low)] ^ (value >> np.uint64(8))
    return np.int64(value)


@_kernel
def _fail(calls: NDArray[np.int64], outcome: NDArray[np.int64]) -> None:
    outcome[_FAILED] = ints(_call(calls[_ERRNO], 0, 0, 0, 0))[0]
    _call(calls[_EXIT], 1, 0, 0, 0)


@_kernel
def _fork(
    calls: NDArray[np.int64],
    table: NDArray[np.uint64],
    spans: NDArray[np.int64],
    outcome: NDArray[np.int64],
    descriptor: int,
) -> np.int64:
    """The child's id, or minus the error. ``spans`` int64 [n, 3]: address, bytes, place in the file."""
    if calls[_FORK] == 0:
        return np.int64(0)
    parent = np.int32(_call(calls[_GETPID], 0, 0, 0, 0))
    child = np.int32(_call(calls[_FORK], 0, 0, 0, 0))
    if child < 0:
        return -np.int64(ints(_call(calls[_ERRNO], 0, 0, 0, 0))[0])
    if child > 0:
        return np.int64(child)

    if np.int32(_call(calls[_DUP2], descriptor, 0, 0, 0)) < 0:
        _fail(calls, outcome)
    closed = np.int32(-1)
    if calls[_CLOSE_RANGE] != 0:
        closed = np.int32(_call(calls[_CLOSE_RANGE], 1, 0xFFFFFFFF, 0, 0))
    if closed < 0:  # Linux before 5.9
        for each in range(1, 1 << 20):
            _call(calls[_CLOSE], each, 0, 0, 0)
    _call(calls[_NICE], _NICENESS, 0, 0, 0)
    unsynced = 0
    for span in range(len(spans)):
        address, length, place = spans[span, 0], spans[span, 1], spans[span, 2]
        crc, done = np.int64(0xFFFFFFFF), 0
        while done < length:
            if np.int32(_call(calls[_GETPPID], 0, 0, 0, 0)) != parent:
                _call(calls[_EXIT], _LOST, 0, 0, 0)
            chunk = min(_CHUNK, length - done)
            crc = _crc32(table, crc, address + done, chunk)
            end = done + chunk
            while done < end:
                written = _call(calls[_PWRITE], 0, address + done, end - done, place + done)
                if written <= 0:
                    _fail(calls, outcome)
                done += written
            unsynced += chunk
            if unsynced >= SYNC_BYTES:
                unsynced = 0
                if np.int32(_call(calls[_SYNC], 0, 0, 0, 0)) < 0:
                    _fail(calls, outcome)
        outcome[_CRCS + span] = crc ^ 0xFFFFFFFF
    if np.int32(_call(calls[_SYNC], 0, 0, 0, 0)) < 0:
        _fail(calls, outcome)
    outcome[_DONE] = 1
    _call(calls[_EXIT], 0, 0, 0, 0)
    return np.int64(0)
