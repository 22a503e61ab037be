"""Searches captured bodies for anything that would betray an identifier (DESIGN section 2).

For each identifier the needles are its text and its normal form, raw, and the MD5, SHA-1, SHA-256 and SHA-512 of
each: as bytes, as hex in both cases, and in both base64 alphabets. Every 8-byte window of a body is looked up among the
sorted first eight bytes of all needles at once, so the search stays linear in what was captured.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HASHES = ("md5", "sha1", "sha256", "sha512")
PREFIX = 8


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
    for alphabet, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
        # The last base64 character depends on what follows, so the whole-byte part is searched for.
        yield f"{form}/{alphabet}", encode(value).rstrip(b"=")[: len(value) * 8 // 6]


class WireSearch:
    """All needles of a set of identifiers; shorter ones than ``min_length`` bytes are refused, not skipped."""

    def __init__(self, identifiers: Iterable[str], *, min_length: int = 5) -> None:
        self._by_prefix: dict[bytes, list[tuple[bytes, str, str]]] = {}
        self._short: list[tuple[bytes, str, str]] = []
        self.needles = 0
        for identifier in identifiers:
            if len(identifier) < min_length:
                raise ValueError(f"{identifier!r} is too short to be searched for without chance hits")
            for form, needle in _spellings(identifier):
                self.needles += 1
                entry = (needle, form, identifier)
                if len(needle) < PREFIX:
                    self._short.append(entry)
                else:
                    self._by_prefix.setdefault(needle[:PREFIX], []).append(entry)
        self._prefixes = np.sort(np.array([int.from_bytes(p, "big") for p in self._by_prefix], np.uint64))

    def search(self, body: bytes, *, file: str) -> list[Leak]:
        """Every needle that occurs in ``body``."""
        leaks = []
        candidates = list(self._short)
        for prefix in self._prefixes_in(body):
            candidates += self._by_prefix[prefix]
        for needle, form, identifier in candidates:
            offset = body.find(needle)
            if offset >= 0:
                leaks.append(Leak(file=file, offset=offset, form=form, identifier=identifier))
        return leaks

    def _prefixes_in(self, body: bytes) -> Iterator[bytes]:
        if len(body) < PREFIX or not len(self._prefixes):
            return
        view = np.lib.stride_tricks.sliding_window_view(np.frombuffer(body, np.uint8), PREFIX)
        windows = np.ascontiguousarray(view).view(">u8").ravel().astype(np.uint64)
        places = np.searchsorted(self._prefixes, windows)
        places[places == len(self._prefixes)] = 0
        for found in np.unique(windows[self._prefixes[places] == windows]):
            yield int(found).to_bytes(PREFIX, "big")

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
