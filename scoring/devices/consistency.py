"""What does not fit together in a bundle: signs of a browser that pretends, of automation, emulators and rooted phones.

Each sign that is there takes its weight's share of what is left of trust: score = 1 - product of (1 - weight). None of
them is proof: a traveller's clock, a company's remote desktop or a privacy browser show some, so they are evidence for
rules and a person, with their names.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import zoneinfo
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from scoring.devices.agents import Agent
from scoring.devices.bundle import Bundle
from scoring.devices.fingerprint import flat_texts, identifier_of, renderer_of, screen_of, touch_points

SIGNS: Final[Mapping[str, float]] = {
    "webdriver": 0.9,
    "headless": 0.9,
    "emulator": 0.8,
    "identifier-moved": 0.8,
    "platform-mismatch": 0.7,
    "screen-impossible": 0.7,
    "renderer-mismatch": 0.6,
    "vendor-mismatch": 0.6,
    "rooted": 0.5,
    "touch-mismatch": 0.5,
    "timezone-mismatch": 0.5,
    "timezone-unknown": 0.4,
    "software-renderer": 0.4,
    "languages-mismatch": 0.4,
    "languages-missing": 0.4,
    "hardware-impossible": 0.4,
    "components-blocked": 0.4,
    "canvas-unstable": 0.3,
    "identifier-missing": 0.3,
}
_EXPECTED = (
    "canvas",
    "audio",
    "fonts",
    "webGlBasics",
    "screenResolution",
    "timezone",
    "languages",
    "platform",
)
_PLATFORMS = {
    "windows": re.compile(r"Win"),
    "macos": re.compile(r"Mac"),
    "ios": re.compile(r"iP(hone|ad|od)|Mac"),  # newer tablets call themselves a Mac
    "android": re.compile(r"Linux|Android"),
    "linux": re.compile(r"Linux|X11|FreeBSD"),
    "chromeos": re.compile(r"Linux|CrOS"),
}
_VENDORS = {
    "chrome": "Google",
    "edge": "Google",
    "opera": "Google",
    "samsung": "Google",
    "safari": "Apple",
    "firefox": "",
}
_RENDERERS = (
    (re.compile(r"Direct3D|D3D"), ("windows",)),
    (re.compile(r"Apple (GPU|M\d)|Metal"), ("macos", "ios")),
    (re.compile(r"Adreno|Mali-|PowerVR|Xclipse"), ("android", "chromeos", "linux", "windows")),
)
_SOFTWARE = re.compile(
    r"SwiftShader|llvmpipe|Basic Render|softpipe|VirtualBox|VMware|Parallels", re.IGNORECASE
)
_EMULATED = re.compile(
    r"sdk_gphone|google_sdk|emulator|simulator|goldfish|ranchu|genymotion|bluestacks|^generic|^x86_64$|^i386$",
    re.IGNORECASE,
)
_MEMORY = {0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0}
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+){0,2}")
_MAX_SIDE = 16_384
_MAX_PHONE_SIDE = 2_000  # in CSS pixels
_DAY = dt.timedelta(days=1)


def tampering(signs: Iterable[str]) -> float:
    """The score in [0, 1] of some of :data:`SIGNS`."""
    return 1.0 - math.prod(1.0 - SIGNS[sign] for sign in signs)


def inconsistencies(bundle: Bundle, agent: Agent, time_us: int) -> tuple[str, ...]:
    """The signs in a bundle sent at ``time_us`` (UTC microseconds), in the order of :data:`SIGNS`."""
    found = set(_app_signs(bundle) if bundle.is_app else _browser_signs(bundle, agent))
    found |= set(_place_signs(bundle, time_us)) | set(_screen_signs(bundle, agent))
    return tuple(sign for sign in SIGNS if sign in found)


def _app_signs(bundle: Bundle) -> Iterable[str]:
    if bundle.values.get("emulator") is True or _EMULATED.search(bundle.text("model")):
        yield "emulator"
    if bundle.values.get("rooted") is True or bundle.values.get("jailbroken") is True:
        yield "rooted"
    if not identifier_of(bundle, "identifierForVendor") and not identifier_of(bundle, "installId"):
        yield "identifier-missing"


def _browser_signs(bundle: Bundle, agent: Agent) -> Iterable[str]:
    vendor, renderer = renderer_of(bundle)
    if bundle.values.get("webdriver") is True:
        yield "webdriver"
    if agent.headless:
        yield "headless"
    platform, wanted = bundle.text("platform"), _PLATFORMS.get(agent.system)
    if platform and wanted and not wanted.match(platform):
        yield "platform-mismatch"
    if _SOFTWARE.search(renderer):
        yield "software-renderer"
    elif agent.system and any(
        pattern.search(f"{vendor} {renderer}") and agent.system not in systems
        for pattern, systems in _RENDERERS
    ):
        yield "renderer-mismatch"
    made_by = bundle.values.get("vendor")
    if isinstance(made_by, str) and agent.system != "ios" and agent.browser in _VENDORS:
        expected = _VENDORS[agent.browser]
        if not made_by.startswith(expected) or (made_by and not expected):
            yield "vendor-mismatch"
    touches = touch_points(bundle)
    if (agent.is_mobile and touches == 0) or touches < 0 or touches > 256:
        yield "touch-mismatch"
    yield from _language_signs(bundle)
    yield from _hardware_signs(bundle, agent)
    missing = [name for name in _EXPECTED if name in bundle.failed or name not in bundle.values]
    if 2 * len(missing) >= len(_EXPECTED):
        yield "components-blocked"
    if "unstable" in (bundle.part("canvas", "geometry"), bundle.part("canvas", "text")):
        yield "canvas-unstable"


def _language_signs(bundle: Bundle) -> Iterable[str]:
    if "languages" not in bundle.values:
        return
    languages = flat_texts(bundle.values["languages"])
    if not any(languages):
        yield "languages-missing"
        return
    header = bundle.text("acceptLanguage")
    accepted = [each.split(";")[0].strip().lower() for each in header.split(",") if each.strip()]
    if (
        accepted
        and "*" not in accepted
        and accepted[0].split("-")[0] not in {language.lower().split("-")[0] for language in languages}
    ):
        yield "languages-mismatch"


def _hardware_signs(bundle: Bundle, agent: Agent) -> Iterable[str]:
    memory, cores = bundle.number("deviceMemory"), bundle.number("hardwareConcurrency")
    if (
        (not math.isnan(memory) and (memory not in _MEMORY or agent.browser in ("firefox", "safari")))
        or (not math.isnan(cores) and not (1 <= cores <= 1024 and cores == int(cores)))
        or bundle.number("colorDepth") in (0, 1)
    ):
        yield "hardware-impossible"


def _place_signs(bundle: Bundle, time_us: int) -> Iterable[str]:
    name, offset = bundle.text("timezone"), bundle.number("timezoneOffset")
    if not name:
        return
    zone = _zone(name)
    if zone is None:
        yield "timezone-unknown"
    elif not math.isnan(offset):
        moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=time_us)
        # A day on either side, since the page may have been opened before the clocks changed.
        offsets = [each.astimezone(zone).utcoffset() for each in (moment - _DAY, moment, moment + _DAY)]
        if all(each is not None and -each.total_seconds() / 60 != offset for each in offsets):
            yield "timezone-mismatch"


def _screen_signs(bundle: Bundle, agent: Agent) -> Iterable[str]:
    sides = screen_of(bundle)
    if not sides:
        return
    longer, shorter = sides
    if (
        shorter <= 0
        or longer > _MAX_SIDE
        or longer > 8 * shorter
        or (not bundle.is_app and agent.is_mobile and shorter > _MAX_PHONE_SIDE)
    ):
        yield "screen-impossible"
    else:
        frame = bundle.values.get("screenFrame") or ()
        if any(isinstance(each, (int, float)) and each > longer for each in frame):
            yield "screen-impossible"


@lru_cache(maxsize=1024)
def _zone(name: str) -> zoneinfo.ZoneInfo | None:
    if not _ZONE.fullmatch(name):
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None
