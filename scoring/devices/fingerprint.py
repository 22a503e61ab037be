"""The canonical vector of a bundle: what must not change, what may, and the keys under which a device is looked up.

Components are compared as keyed hashes, and lists as bitmaps of their items' hashes, so that nothing of a bundle is
kept that could be read back without the bank's key. Hashes are BLAKE2b with a key (RFC 7693), which takes a canvas of
100 KB at a gigabyte a second.

The changeable components lie in three groups: rendering, software, settings. A candidate shares one whole group and all
of the immutable part, so that a look-up meets few devices even among a million: drift seldom touches all three at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from scoring.devices.agents import Agent, app_agent, parse_agent, without_versions
from scoring.devices.bundle import Bundle

RENDERING, SOFTWARE, SETTINGS = range(3)
# name, group, weight in the similarity; the order is that of the vector
COMPONENTS: tuple[tuple[str, int, float], ...] = (
    ("canvas", RENDERING, 4.0),
    ("audio", RENDERING, 3.0),
    ("webGlExtensions", RENDERING, 2.0),
    ("math", RENDERING, 1.0),
    ("fonts", SOFTWARE, 4.0),
    ("plugins", SOFTWARE, 2.0),
    ("userAgent", SOFTWARE, 2.0),
    ("fontPreferences", SOFTWARE, 2.0),
    ("flavours", SOFTWARE, 1.0),
    ("screen", SETTINGS, 2.0),
    ("timezone", SETTINGS, 2.0),
    ("languages", SETTINGS, 3.0),
    ("locale", SETTINGS, 1.0),
    ("display", SETTINGS, 1.0),
    ("storage", SETTINGS, 1.0),
    ("carrier", SETTINGS, 1.0),
)
CANVAS, AUDIO, EXTENSIONS, MATH, FONTS, PLUGINS, AGENT = range(7)
FIRST_SETTING = 9
WEIGHTS = np.array([weight for _, _, weight in COMPONENTS])
# Words of the bitmaps of fonts, plugins and user agent: [begin, end) of 64 bits each.
SETS = ((FONTS, 0, 4), (PLUGINS, 4, 6), (AGENT, 6, 8))
SET_WORDS = 8
# Places in ``Fingerprint.buckets``.
EXACT, GROUPS, VENDOR_ID, INSTALL_ID, BUCKETS = 0, 1, 4, 5, 6
# What is longer, or has more items, is hashed anew each time: caches must stay small whatever devices send.
_REMEMBERED_LENGTH = 512
_REMEMBERED_ITEMS, _REMEMBERED_CHARACTERS = 256, 4096
# A browser that tells less than this (in weights) looks like too many others to be known again.
LEAST_EVIDENCE = 12.0

_DISPLAY = ("colorGamut", "invertedColors", "forcedColors", "monochrome", "contrast", "reducedMotion", "hdr")
_STORAGE = ("cookiesEnabled", "localStorage", "sessionStorage", "indexedDB", "pdfViewerEnabled")
_NO_CANVAS = ("", "unsupported", "unstable", "skipped")
# From the beginning of a number only, or a long one without dots would be read from each of its digits.
_DOTTED = re.compile(r"(?<!\d)\d++(?:\.\d++)+")
_ENCODER = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """``hashes`` uint32 [components], 0 where missing; ``sets`` uint64 [8]; ``versions`` int64 [browser, system];
    ``buckets`` uint64 [6], 0 where a key does not exist; ``immutable`` uint64."""

    agent: Agent
    immutable: int
    hashes: NDArray[np.uint32]
    sets: NDArray[np.uint64]
    versions: NDArray[np.int64]
    buckets: NDArray[np.uint64]

    @property
    def is_telling(self) -> bool:
        """Whether it can be told from others at all: it has an identifier of the app, or enough components."""
        return bool(self.buckets.any())


class Fingerprinter:
    """Makes fingerprints under one key of 16 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # Browsers share most of what they tell; what they do not share (canvas) is too long to be kept.
        self._remembered_hash32 = lru_cache(maxsize=1 << 14)(self._hash32)
        self._remembered_bitmap = lru_cache(maxsize=1 << 11)(self._bitmap)

    def __call__(self, bundle: Bundle) -> Fingerprint:
        agent = agent_of(bundle)
        parts = _app_parts(bundle) if bundle.is_app else _browser_parts(bundle, agent)
        texts = [parts.get(name) for name, _, _ in COMPONENTS]
        hashes = np.fromiter((self._part(text) for text in texts), np.uint32, len(texts))
        immutable = self._hash64("immutable", _immutable(bundle, agent))
        items = _items(bundle, agent)
        sets = np.frombuffer(
            b"".join(self._set(items[place], end - begin) for place, begin, end in SETS), np.uint64
        )
        versions = np.array([agent.browser_version, agent.system_version], np.int64)
        return Fingerprint(
            agent,
            immutable,
            hashes,
            sets,
            versions,
            self._buckets(bundle, agent, immutable, hashes, versions),
        )

    def _buckets(
        self,
        bundle: Bundle,
        agent: Agent,
        immutable: int,
        hashes: NDArray[np.uint32],
        versions: NDArray[np.int64],
    ) -> NDArray[np.uint64]:
        buckets = np.zeros(BUCKETS, np.uint64)
        head, vector = immutable.to_bytes(8, "little"), hashes.tobytes()
        evidence = sum(
            weight for held, (_, _, weight) in zip(hashes.tolist(), COMPONENTS, strict=True) if held
        )
        # Every telephone of one model and system draws the same in every browser of iOS.
        if not bundle.is_app and agent.system != "ios" and evidence >= LEAST_EVIDENCE:
            buckets[EXACT] = self._hash64("exact", head + versions.tobytes() + vector)
            for group, (begin, end) in enumerate(_MEMBERS):
                members = vector[4 * begin : 4 * end]
                if members.strip(b"\0"):
                    buckets[GROUPS + group] = self._hash64(f"group{group}", head + members)
        for place, name in ((VENDOR_ID, "identifierForVendor"), (INSTALL_ID, "installId")):
            if identifier := identifier_of(bundle, name):
                buckets[place] = self._hash64(name, identifier.encode("utf-8", "replace"))
        return buckets

    def _part(self, part: bytes | None) -> int:
        if not part:
            return 0
        return self._hash32(part) if len(part) > _REMEMBERED_LENGTH else self._remembered_hash32(part)

    def _hash32(self, part: bytes) -> int:
        digest = blake2b(part, digest_size=4, key=self._key).digest()
        return int.from_bytes(digest, "little") or 1

    def _hash64(self, what: str, content: bytes) -> int:
        digest = blake2b(content, digest_size=8, key=self._key, person=what.encode()[:16]).digest()
        return int.from_bytes(digest, "little") or 1

    def _set(self, items: tuple[str, ...], words: int) -> bytes:
        small = len(items) <= _REMEMBERED_ITEMS and sum(map(len, items)) <= _REMEMBERED_CHARACTERS
        return self._remembered_bitmap(items, words) if small else self._bitmap(items, words)

    def _bitmap(self, items: tuple[str, ...], words: int) -> bytes:
        bits = 0
        for item in items:
            bits |= 1 << self._part(item.encode("utf-8", "replace")) % (64 * words)
        return bits.to_bytes(8 * words, "little")


# [begin, end) of each group in the vector
_MEMBERS = (
    (CANVAS, FONTS),
    (FONTS, FIRST_SETTING),
    (FIRST_SETTING, len(COMPONENTS)),
)


def agent_of(bundle: Bundle) -> Agent:
    """Browser and system as the bundle tells them."""
    if bundle.is_app:
        return app_agent(bundle.text("os"), bundle.text("osVersion"))
    return parse_agent(bundle.text("userAgent"))


def identifier_of(bundle: Bundle, name: str) -> str:
    """An identifier in lower case; "" where it is missing or nothing but zeros, which a system gives for "not told"."""
    identifier = bundle.text(name).strip().lower()
    return identifier if identifier.strip("0-") else ""


def renderer_of(bundle: Bundle) -> tuple[str, str]:
    """The graphics card's vendor and name as WebGL tells them, "" where it does not."""
    found = []
    for plain in ("vendor", "renderer"):
        value = bundle.part("webGlBasics", f"{plain}Unmasked") or bundle.part("webGlBasics", plain)
        found.append(value if isinstance(value, str) else "")
    return found[0], found[1]


def touch_points(bundle: Bundle) -> float:
    """The most touches at once, NaN where it is missing."""
    value = bundle.part("touchSupport", "maxTouchPoints")
    return float(value) if isinstance(value, (int, float)) else float("nan")


def screen_of(bundle: Bundle) -> tuple[float, ...]:
    """Both sides in pixels, the longer first; () where they are missing or no pair of numbers."""
    sides = bundle.values.get("screenResolution") or bundle.values.get("screen") or ()
    if len(sides) != 2 or not all(isinstance(side, (int, float)) for side in sides):
        return ()
    return tuple(sorted(map(float, sides), reverse=True))


def flat_texts(value: object) -> list[str]:
    """The texts of a list, and of lists in it, in their order."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    if all(type(each) is str for each in value):
        return list(value)
    return [text for each in value for text in flat_texts(each)]


def _immutable(bundle: Bundle, agent: Agent) -> bytes:
    if bundle.is_app:
        return repr((agent.system, bundle.text("manufacturer"), bundle.text("model"))).encode(
            "utf-8", "replace"
        )
    vendor, renderer = renderer_of(bundle)
    return repr(
        (
            agent.browser,
            agent.system,
            bundle.text("platform"),
            bundle.text("cpuClass"),
            bundle.values.get("architecture"),
            vendor,
            _DOTTED.sub("#", renderer),  # drivers are updated
            touch_points(bundle),
            bundle.values.get("hardwareConcurrency"),
            bundle.values.get("deviceMemory"),
        )
    ).encode("utf-8", "replace")


def _browser_parts(bundle: Bundle, agent: Agent) -> dict[str, bytes | None]:
    values = bundle.values
    audio = bundle.number("audio")
    geometry, text = bundle.part("canvas", "geometry"), bundle.part("canvas", "text")
    return {
        "canvas": None if geometry in _NO_CANVAS or text in _NO_CANVAS else _bytes(values.get("canvas")),
        "audio": _bytes(audio) if audio > 0 else None,  # negative numbers say why there is none
        "webGlExtensions": _bytes(values.get("webGlExtensions")),
        "math": _bytes(values.get("math")),
        "fonts": _bytes(sorted(flat_texts(values.get("fonts")))),
        "plugins": _bytes(sorted(_plugin_names(values.get("plugins")))),
        "userAgent": agent.skeleton.encode("utf-8", "replace") or None,
        "fontPreferences": _bytes(values.get("fontPreferences")),
        "flavours": _bytes([bundle.text("vendor"), flat_texts(values.get("vendorFlavors"))]),
        "screen": _bytes(screen_of(bundle)),
        "timezone": _bytes(bundle.text("timezone")),
        "languages": _bytes(flat_texts(values.get("languages"))),
        "locale": _bytes(bundle.text("dateTimeLocale")),
        "display": _bytes([values.get("colorDepth"), *(values.get(name) for name in _DISPLAY)]),
        "storage": _bytes([values.get(name) for name in _STORAGE]),
    }


def _app_parts(bundle: Bundle) -> dict[str, bytes | None]:
    return {
        "screen": _bytes(screen_of(bundle)),
        "timezone": _bytes(bundle.text("timezone")),
        "languages": _bytes(flat_texts(bundle.values.get("languages"))),
        "locale": _bytes(bundle.text("locale")),
        "carrier": _bytes(bundle.text("carrier")),
    }


def _items(bundle: Bundle, agent: Agent) -> dict[int, tuple[str, ...]]:
    return {
        FONTS: tuple(flat_texts(bundle.values.get("fonts"))),
        PLUGINS: tuple(_plugin_names(bundle.values.get("plugins"))),
        AGENT: tuple(agent.skeleton.split()),
    }


def _plugin_names(plugins: object) -> list[str]:
    if not isinstance(plugins, (list, tuple)):
        return []
    names = [each.get("name") for each in plugins if isinstance(each, dict)]
    return [without_versions(name) for name in names if isinstance(name, str)]


def _bytes(value: Any) -> bytes | None:
    """Canonical bytes of a component; None where there is nothing in it."""
    if (
        value is None
        or value in ("", (), [], {})
        or (isinstance(value, list) and not any(map(_holds, value)))
    ):
        return None
    return _ENCODER.encode(value)


def _holds(value: object) -> bool:
    return value is not None and value != "" and value != []
