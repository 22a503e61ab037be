"""Reading what a data directory holds of a stream, byte by byte and without changing it: for `subrosa doctor`.

Each check says in one line what it saw, or raises what the part itself raises for damage: :class:`JournalError`,
:class:`SnapshotError`, :class:`HistoryError`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from member_node.service.history_files import MANIFEST, HistoryError, Manifest
from member_node.streams.journal import JournalError, verify
from member_node.streams.snapshots import SnapshotError, verify_snapshots

_MIB = 2**20


def check_journal(directory: Path) -> str:
    """All segments, and that nothing is missing between the snapshots and the journal."""
    found = verify(directory / "journal")
    if not found.last:
        return "no frame yet"
    try:
        newest = max((frame for frame, _ in verify_snapshots(directory / "snapshots")), default=0)
    except SnapshotError:
        newest = found.last  # damage there is that check's to tell
    if found.first > newest + 1:
        raise JournalError(
            f"frames {newest + 1} to {found.first - 1} are neither in the journal nor in a snapshot: restore a copy "
            "of the snapshots"
        )
    torn = (
        f"; {found.torn} bytes at the end are cut off, the next start moves them aside" if found.torn else ""
    )
    return f"frames {found.first} to {found.last} in {found.segments} segments, {found.nbytes / _MIB:.1f} MiB{torn}"


def check_snapshots(directory: Path) -> str:
    """All snapshots, every array against its checksum."""
    found = verify_snapshots(directory / "snapshots")
    if not found:
        return "none yet: the next start replays the whole journal"
    return "; ".join(f"frame {frame}, {size / _MIB:.1f} MiB" for frame, size in found)


def check_history(directory: Path) -> str:
    """All files that count, every page against its checksum, and their rows against the manifest."""
    folder = directory / "history"
    if not (folder / MANIFEST).exists():
        return "no file yet"
    for attempt in range(3):
        manifest = _manifest(folder)
        try:
            for file in manifest.files:
                _check_rows(folder / file.name, file.rows)
            break
        except HistoryError:
            # The node may have put files together while they were read.
            if attempt == 2 or _manifest(folder) == manifest:
                raise
    rows = sum(file.rows for file in manifest.files)
    return f"{rows} events in {len(manifest.files)} files"


def _manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise HistoryError(f"{folder / MANIFEST} is damaged ({error}): restore it from a copy") from error


def _check_rows(path: Path, rows: int) -> None:
    held = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches():
                held += batch.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise HistoryError(f"{path} cannot be read ({error}): restore it from a copy") from error
    if held != rows:
        raise HistoryError(f"{path} holds {held} rows, not {rows}: restore it from a copy")
