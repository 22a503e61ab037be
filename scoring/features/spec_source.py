"""Where in a TOML text each key stands, so that an error about a spec can name the line.

``tomllib`` gives values without places. The scanner here only has to find the ends of things: it is used on text that
``tomllib`` has accepted, so it needs no grammar of numbers or dates and checks nothing.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from scoring.features.spec_model import SpecError, SpecPath

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_DECODE_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True)
class Place:
    """A line and a column of the text, both from 1; columns count characters."""

    line: int
    column: int


def locate(text: str) -> Mapping[SpecPath, Place]:
    """The place of every key, table header and array element of valid TOML, by its path in the document.

    A table's place is its header, or the key that first brings it about; an element of an array of tables is found at
    its ``[[header]]``, one of an array at its first character.
    """
    return _Scanner(text).scan()


def located(error: SpecError, text: str) -> SpecError:
    """The same error with the line and column of the nearest thing in ``text`` that its path names."""
    if not error.path:
        return error
    places = locate(text)
    for length in range(len(error.path), 0, -1):
        place = places.get(error.path[:length])
        if place is not None:
            return SpecError(error.where, error.reason, path=error.path, line=place.line, column=place.column)
    return error


def not_toml(error: tomllib.TOMLDecodeError, text: str) -> SpecError:
    """A SpecError with the place that the decoder's message ends with."""
    message = str(error)
    match = _DECODE_PLACE.search(message)
    if match is None:
        return SpecError("spec", f"is not TOML: {message}")
    lines = text.split("\n")
    line, column = (int(match[1]), int(match[2])) if match[1] else (len(lines), len(lines[-1]) + 1)
    return SpecError("spec", f"is not TOML: {message[: match.start()]}", line=line, column=column)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._places: dict[SpecPath, Place] = {}
        self._tables: dict[SpecPath, int] = {}  # arrays of tables: how many so far
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def scan(self) -> dict[SpecPath, Place]:
        table: SpecPath = ()
        self._skip_blank()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_blank()
        return self._places

    def _skip_blank(self) -> None:
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _here(self) -> Place:
        line = bisect_right(self._line_starts, self._at)
        return Place(line, self._at - self._line_starts[line - 1] + 1)

    def _note(self, path: SpecPath, place: Place) -> None:
        self._places.setdefault(path, place)

    def _header(self) -> SpecPath:
        place = self._here()
        many = self._text.startswith("[[", self._at)
        self._at += 2 if many else 1
        keys = self._key()
        self._at += 2 if many else 1
        path: SpecPath = ()
        for number, key in enumerate(keys, 1):
            path = (*path, key)
            self._note(path, place)
            if many and number == len(keys):
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
                self._note(path, place)
        return path

    def _pair(self, table: SpecPath) -> None:
        place = self._here()
        path = table
        for key in self._key():
            path = (*path, key)
            self._note(path, place)
        self._at += 1  # =
        self._skip_blank()
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key; the scanner then stands on what follows it."""
        keys = []
        while True:
            self._skip_blank()
            begin = self._at
            if self._text[begin] in "\"'":
                self._string()
                keys.append(tomllib.loads(f"key = {self._text[begin : self._at]}")["key"])
            else:
                match = _BARE_KEY.match(self._text, begin)
                assert match is not None, "tomllib accepted a key that this scanner does not know"
                self._at = match.end()
                keys.append(match[0])
            self._skip_blank()
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _value(self, path: SpecPath) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._elements(path)
        elif first == "{":
            self._inline_table(path)
        else:
            match = _SCALAR.match(self._text, self._at)
            assert match is not None
            self._at = match.end()

    def _elements(self, path: SpecPath) -> None:
        self._at += 1
        self._skip_blank()
        number = 0
        while self._text[self._at] != "]":
            self._note((*path, number), self._here())
            self._value((*path, number))
            self._skip_blank()
            if self._text[self._at] == ",":
                self._at += 1
                self._skip_blank()
            number += 1
        self._at += 1

    def _inline_table(self, path: SpecPath) -> None:
        self._at += 1
        self._skip_blank()
        while self._text[self._at] != "}":
            self._pair(path)
            self._skip_blank()
            if self._text[self._at] == ",":
                self._at += 1
                self._skip_blank()
        self._at += 1

    def _string(self) -> None:
        quote = self._text[self._at]
        mark = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(mark)
        while not self._text.startswith(mark, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(mark)
        if len(mark) == 3:  # up to two quotes may belong to the text before the closing three
            extra = 0
            while extra < 2 and self._text.startswith(quote, self._at):
                self._at += 1
                extra += 1
