"""What it takes for a file to survive a crash: whole writes, swaps by rename, directories forced to disk too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SMALL = 1 << 14
_MAX_PARTS = 512  # a system call takes no more than IOV_MAX (1024) buffers


def sync_directory(directory: Path) -> None:
    """Force the names in a directory to disk: a new, renamed or removed file survives only with its directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Force a file that somebody else wrote to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, parts: Sequence[Any]) -> None:
    """Write buffers whole, one after the other (a system call may write less). Raises OSError."""
    if sum(map(len, parts)) <= _SMALL:  # one copy is cheaper than several views
        whole = b"".join(parts)
        written = os.write(descriptor, whole)
        parts = [whole[written:]] if written < len(whole) else []
    waiting = [memoryview(part).cast("B") for part in parts if len(part)]
    while waiting:
        written = os.writev(descriptor, waiting[:_MAX_PARTS])
        while waiting and written >= len(waiting[0]):
            written -= len(waiting.pop(0))
        if written:
            waiting[0] = waiting[0][written:]


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` in the place of ``path`` at once and for good: a crash leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(descriptor, [content])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(path)
    sync_directory(path.parent)
