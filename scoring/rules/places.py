"""Where the values of a rule set file stand, so that an error can point at line and column of the file.

``tomllib`` tells values and no places. This scanner reads text that ``tomllib`` has accepted already; it knows just
enough of TOML 1.0 (keys, the four kinds of strings, comments, brackets) to find the keys of each ``[[rule]]`` table and
the place of every character of their string values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HEADER = re.compile(r"(\[\[?)\s*([^\]]*?)\s*\]\]?")
_KEY = re.compile(
    r"""((?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')(?:\s*\.\s*(?:[\w-]+|"[^"\n]*"|'[^'\n]*'))*)\s*=\s*"""
)
_ESCAPES = {"u": 6, "U": 10}


@dataclass(frozen=True)
class Place:
    """Line and column in the file, in characters from 1."""

    line: int
    column: int


@dataclass
class TablePlaces:
    """One table of ``text``: offsets of its header, of its keys and of each character of its string values."""

    text: str
    header: int
    keys: dict[str, int] = field(default_factory=dict)
    characters: dict[str, list[int]] = field(default_factory=dict)

    def key(self, name: str) -> Place:
        """Where ``name`` is set; the header's place if it is not."""
        return self._place(self.keys.get(name, self.header))

    def inside(self, name: str, value: str, line: int, column: int) -> Place:
        """The place of a line and column (from 1) of the string ``value`` of key ``name``."""
        index = sum(len(each) + 1 for each in value.split("\n")[: line - 1]) + column - 1
        offsets = self.characters.get(name)
        return self._place(offsets[min(index, len(offsets) - 1)]) if offsets else self.key(name)

    def _place(self, at: int) -> Place:
        start = self.text.rfind("\n", 0, at) + 1
        return Place(self.text.count("\n", 0, at) + 1, at - start + 1)


def table_places(text: str, name: str) -> list[TablePlaces]:
    """The places of every ``[[name]]`` table of valid TOML, in order; arrays written inline have none."""
    text = text.replace("\r\n", "\n")
    found: list[TablePlaces] = []
    current: TablePlaces | None = None
    at = 0
    while at < len(text):
        if text[at] in " \t\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text[at] == "[":
            header = _HEADER.match(text, at)
            current = None
            if header is not None and header[1] == "[[" and header[2].strip("\"'") == name:
                current = TablePlaces(text, at)
                found.append(current)
            at = _line_end(text, at) if header is None else header.end()
        else:
            at = _read_pair(text, at, current)
    return found


def _read_pair(text: str, at: int, table: TablePlaces | None) -> int:
    """Read ``key = value`` that begins at ``at``; where the next line begins."""
    match = _KEY.match(text, at)
    if match is None:
        return _line_end(text, at)
    key, start = match[1].strip("\"'"), match.end()
    if table is not None:
        table.keys[key] = at
    if start < len(text) and text[start] in "\"'":
        offsets, end = _read_string(text, start)
        if table is not None:
            table.characters[key] = offsets
        return end
    depth, at = 0, start
    while at < len(text):
        if text[at] in "\"'":
            _, at = _read_string(text, at)
            continue
        if text[at] == "#":
            at = _line_end(text, at)
            continue
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
        if text[at] == "\n" and depth == 0:
            break
        at += 1
    return at


def _read_string(text: str, at: int) -> tuple[list[int], int]:
    """Offsets of the characters of the string that begins at ``at``, with the end's after them; where it ends."""
    quote = text[at]
    long = text.startswith(quote * 3, at)
    closing = quote * 3 if long else quote
    at += len(closing)
    if long and text.startswith("\n", at):
        at += 1
    offsets: list[int] = []
    while at < len(text):
        if text.startswith(closing, at) and not (long and text.startswith(quote, at + 3)):
            break
        if quote == '"' and text[at] == "\\":
            continued = re.compile(r"\\[ \t]*\n[ \t\n]*").match(text, at) if long else None
            if continued is not None:
                at = continued.end()
                continue
            offsets.append(at)
            at += _ESCAPES.get(text[at + 1], 2)
        else:
            offsets.append(at)
            at += 1
    offsets.append(at)
    return offsets, at + len(closing)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
