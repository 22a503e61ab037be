"""Searches captured bodies for anything that would betray an identifier (DESIGN section 2).

For each identifier the needles are its text and the MD5, SHA-1, SHA-256 and SHA-512 of it: as bytes, as hex in both
cases, and in both base64 alphabets at each of the three alignments that a text before it may cause. Every window of a
body is looked up among the sorted beginnings of all needles at once, so the search stays linear in what was captured.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HASHES = ("md5", "sha1", "sha256", "sha512")
PREFIX = 5
_STRETCH = 1 << 20


@dataclass(frozen=True)
class Leak:
    """An identifier found in a body: ``form`` says how it was written."""

    file: str
    offset: int
    form: str
    identifier: str


def _spellings(text: str) -> Iterator[tuple[str, bytes]]:
    raw = text.encode()
    yield from _encodings("raw", raw)
    for name in HASHES:
        yield from _encodings(name, hashlib.new(name, raw, usedforsecurity=False).digest())


def _encodings(form: str, value: bytes) -> Iterator[tuple[str, bytes]]:
    yield form, value
    yield f"{form}/hex", value.hex().encode()
    yield f"{form}/HEX", value.hex().upper().encode()
    spelled = set()
    for alphabet, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
        for before in range(3):
            # Characters at either end also depend on the neighbours' bits: only those in between are searched for.
            first, last = -(-before * 8 // 6), (before + len(value)) * 8 // 6
            needle = encode(bytes(before) + value)[first:last]
            if needle not in spelled:
                spelled.add(needle)
                yield f"{form}/{alphabet}+{before}", needle


class WireSearch:
    """All needles of a set of identifiers; shorter ones than ``min_length`` bytes are refused, not skipped."""

    def __init__(self, identifiers: Iterable[str], *, min_length: int = PREFIX) -> None:
        if min_length < PREFIX:
            raise ValueError(f"identifiers of fewer than {PREFIX} bytes would be found by chance")
        self._by_prefix: dict[bytes, list[tuple[bytes, str, str]]] = {}
        self.needles = 0
        for identifier in identifiers:
            if len(identifier.encode()) < min_length:
                raise ValueError(f"{identifier!r} is too short to be searched for without chance hits")
            for form, needle in _spellings(identifier):
                self.needles += 1
                self._by_prefix.setdefault(needle[:PREFIX], []).append((needle, form, identifier))
        self._prefixes = np.sort(np.array([int.from_bytes(p, "big") for p in self._by_prefix], np.uint64))
        # Most windows differ from every needle in their first three bytes: a table says so without a search.
        self._starts = np.zeros(1 << 24, np.bool_)
        self._starts[(self._prefixes >> np.uint64(8 * (PREFIX - 3))).astype(np.int64)] = True

    def search(self, body: bytes, *, file: str) -> list[Leak]:
        """Every needle that occurs in ``body``, by its first place."""
        leaks = []
        for prefix in self._prefixes_in(body):
            for needle, form, identifier in self._by_prefix[prefix]:
                offset = body.find(needle)
                if offset >= 0:
                    leaks.append(Leak(file=file, offset=offset, form=form, identifier=identifier))
        return leaks

    def _prefixes_in(self, body: bytes) -> list[bytes]:
        found: set[int] = set()
        if not len(self._prefixes):
            return []
        everything = np.frombuffer(body, np.uint8)
        for start in range(0, max(0, len(body) - PREFIX + 1), _STRETCH):
            stretch = everything[start : start + _STRETCH + PREFIX - 1]
            count = len(stretch) - PREFIX + 1
            wide = stretch.astype(np.uint32)
            starts = (wide[:count] << 16) | (wide[1 : count + 1] << 8) | wide[2 : count + 2]
            likely = np.flatnonzero(self._starts[starts])
            windows = np.zeros(len(likely), np.uint64)
            for place in range(PREFIX):
                windows = (windows << np.uint64(8)) | stretch[likely + place].astype(np.uint64)
            places = np.searchsorted(self._prefixes, windows)
            places[places == len(self._prefixes)] = 0
            found |= set(np.unique(windows[self._prefixes[places] == windows]).tolist())
        return [prefix.to_bytes(PREFIX, "big") for prefix in sorted(found)]

    def search_folder(self, folder: Path) -> tuple[int, int, list[Leak]]:
        """Search every file below ``folder``; returns (files, bytes, leaks)."""
        files = total = 0
        leaks: list[Leak] = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                body = path.read_bytes()
                files += 1
                total += len(body)
                leaks.extend(self.search(body, file=str(path.relative_to(folder))))
        return files, total, leaks

    def search_database(self, path: Path) -> tuple[int, list[Leak]]:
        """Search each row of each table of an SQLite file, whose pages may tear a value apart; (rows, leaks)."""
        rows = 0
        leaks: list[Leak] = []
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            names = [
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            for name in names:
                quoted = name.replace('"', '""')
                for row in connection.execute(f'SELECT * FROM "{quoted}"'):  # noqa: S608 - a name the file gives
                    rows += 1
                    body = b"\0".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
                    leaks.extend(self.search(body, file=f"{path.name}: {name}"))
        finally:
            connection.close()
        return rows, leaks
