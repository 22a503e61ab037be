"""A component bundle as a browser or an app sends it: checked, bounded, and reduced to values by name.

Browsers send what FingerprintJS 5 collects, ``{"canvas": {"value": {...}, "duration": 3}, "audio": {"error": {...}}}``,
or its whole answer with that under ``components``; the bank's page may add ``userAgent``, ``acceptLanguage``,
``timezoneOffset`` (minutes, as JavaScript gives it) and ``webdriver``. Apps send bare values: ``os``, ``osVersion``,
``model``, ``identifierForVendor``, ``installId``, ``locale``, ``carrier``, ``screen``, ``rooted``, ``emulator``...
Components not known here are ignored: nothing in them is looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_BYTES = 1 << 19
MAX_COMPONENTS = 128
MAX_DEPTH = 8
MAX_ITEMS = 4096
# A drawing is sent as an image; everything else is words, which regular expressions read and caches keep.
MAX_TEXT = 1 << 17
MAX_WORD = 1024
_DRAWINGS = ("canvas",)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DECODER = msgspec.json.Decoder()

# Component names by the type of their value; a browser without WebGL gives a status number where an object would be.
_TYPES_OF_NAMES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    (
        "a text",
        (str,),
        "userAgent platform vendor timezone dateTimeLocale osCpu cpuClass acceptLanguage colorGamut os osVersion model "
        "manufacturer locale carrier identifierForVendor installId",
    ),
    (
        "a number",
        (int, float),
        "audio hardwareConcurrency deviceMemory colorDepth timezoneOffset architecture audioBaseLatency monochrome "
        "contrast",
    ),
    (
        "true or false",
        (bool,),
        "webdriver rooted jailbroken emulator cookiesEnabled localStorage sessionStorage indexedDB openDatabase "
        "pdfViewerEnabled reducedMotion reducedTransparency forcedColors invertedColors hdr",
    ),
    (
        "a list",
        (list, tuple),
        "fonts plugins languages domBlockers vendorFlavors screenResolution screenFrame screen",
    ),
    ("an object", (dict, int), "canvas touchSupport webGlBasics webGlExtensions fontPreferences math"),
)
_TYPES = {name: (what, types) for what, types, names in _TYPES_OF_NAMES for name in names.split()}


class BundleError(ValueError):
    """A bundle is refused: ``code``, and the ``component`` at fault ("" for the bundle). No value is in the text."""

    def __init__(self, code: str, component: str, reason: str) -> None:
        super().__init__(f"{code}: {component + ': ' if component else ''}{reason}")
        self.code = code
        self.component = component
        self.reason = reason


@dataclass(frozen=True)
class Bundle:
    """``values``: components that have one; ``failed``: components the device could not or would not tell."""

    values: Mapping[str, Any] = field(repr=False)
    failed: frozenset[str] = field(repr=False)

    @property
    def is_app(self) -> bool:
        """Sent by the bank's app, not by a browser."""
        return "os" in self.values and "userAgent" not in self.values

    def text(self, name: str) -> str:
        """A text component, "" where it is missing."""
        value = self.values.get(name, "")
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float:
        """A numeric component, NaN where it is missing."""
        value = self.values.get(name)
        return float(value) if isinstance(value, (int, float)) else math.nan

    def part(self, name: str, key: str) -> Any:
        """One entry of an object component, None where it is missing."""
        value = self.values.get(name)
        return value.get(key) if isinstance(value, dict) else None


def read_bundle(raw: Mapping[str, Any] | str | bytes) -> Bundle:
    """Check a bundle, given as JSON or decoded. Raises BundleError."""
    if isinstance(raw, (str, bytes)):
        raw = _decoded(raw)
    if not isinstance(raw, Mapping):
        raise BundleError("not-an-object", "", "a bundle is an object of components")
    inner = raw.get("components")
    if isinstance(inner, dict) and "value" not in inner:
        raw = inner
    if len(raw) > MAX_COMPONENTS:
        raise BundleError("too-many-components", "", f"there are more than {MAX_COMPONENTS}")
    values: dict[str, Any] = {}
    failed: list[str] = []
    room = _Room()
    for name, component in raw.items():
        if type(name) is not str or not _NAME.fullmatch(name):
            raise BundleError("bad-name", "", "a component's name is letters, digits and _, 64 at most")
        if type(component) is dict:
            if component.get("error") is not None:
                failed.append(name)
                continue
            if "value" not in component and "duration" not in component:
                raise BundleError("bad-component", name, "has neither a value nor an error")
            component = component.get("value")
        known = _TYPES.get(name)
        if component is None or known is None:
            continue
        what, types = known
        if type(component) not in types:
            raise BundleError("wrong-type", name, f"is not {what}")
        room.enter(component, name)
        values[name] = component
    return Bundle(values, frozenset(failed))


class _Room:
    """What a bundle may still hold; the walk keeps its own stack, so that depth costs no recursion."""

    def __init__(self) -> None:
        self._items = MAX_ITEMS
        self._characters = MAX_BYTES

    def enter(self, component: object, name: str) -> None:
        if type(component) is bool:
            return
        longest = MAX_TEXT if name in _DRAWINGS else MAX_WORD
        stack: list[tuple[object, int]] = [(component, 0)]
        while stack:
            value, depth = stack.pop()
            kind = type(value)
            if kind is dict or kind is list or kind is tuple:
                if depth >= MAX_DEPTH:
                    raise BundleError("too-deep", name, f"is nested deeper than {MAX_DEPTH}")
                members: list[object] = list(value)  # type: ignore[call-overload]
                self._items -= len(members)
                if self._items < 0:
                    raise BundleError("too-many-items", name, f"the bundle has more than {MAX_ITEMS} values")
                if kind is dict:
                    if set(map(type, members)) - {str}:
                        raise BundleError("bad-component", name, "has a key that is not text")
                    members += value.values()  # type: ignore[attr-defined]
                if set(map(type, members)) == {str}:
                    self._read(members, name, longest)  # type: ignore[arg-type]
                else:
                    stack.extend((member, depth + 1) for member in members)
            elif kind is str:
                self._read([value], name, longest)  # type: ignore[list-item]
            elif kind is float:
                if not math.isfinite(value):  # type: ignore[arg-type]
                    raise BundleError("not-finite", name, "has a number that is not finite")
            elif kind is int:
                if not -(2**63) <= value < 2**63:  # type: ignore[operator]
                    raise BundleError("not-finite", name, "has an integer beyond 64 bits")
            elif value is not None and kind is not bool:
                raise BundleError("bad-component", name, "holds what JSON cannot")

    def _read(self, texts: list[str], name: str, longest: int) -> None:
        if max(map(len, texts)) > longest:
            raise BundleError("text-too-long", name, f"has a text of more than {longest} characters")
        self._characters -= sum(map(len, texts))
        if self._characters < 0:
            raise BundleError("too-large", name, f"the bundle has more than {MAX_BYTES} characters")


def _decoded(raw: str | bytes) -> Any:
    if len(raw) > MAX_BYTES:
        raise BundleError("too-large", "", f"a bundle has at most {MAX_BYTES} bytes")
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        # Its text may quote the bundle, so it is not passed on.
        raise BundleError("not-json", "", "is not JSON") from None
