"""A seeded population of browsers and phones that drift the way real ones do, with the truth beside every visit.

Canvas and audio are functions of graphics card, driver and browser family, as in the field: identical machines draw
identically. What a device's owner does (fonts, screen, languages) sets desktops apart; telephones of one model and
country hardly differ.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAY = 86_400_000_000
START = 1_780_000_000_000_000
BASE_FONTS = [f"Base {i}" for i in range(22)]
EXTRA_FONTS = [f"Extra {i}" for i in range(40)]
GPUS = [
    "ANGLE (Intel, Intel(R) UHD Graphics 620 Direct3D11 vs_5_0 ps_5_0, D3D11-27.20.100)",
    "ANGLE (Intel, Intel(R) Iris(R) Xe Graphics Direct3D11 vs_5_0 ps_5_0, D3D11-30.0.101)",
    "ANGLE (Intel, Intel(R) HD Graphics 530 Direct3D11 vs_5_0 ps_5_0, D3D11)",
    "ANGLE (NVIDIA, NVIDIA GeForce RTX 3060 Direct3D11 vs_5_0 ps_5_0, D3D11)",
    "ANGLE (NVIDIA, NVIDIA GeForce GTX 1650 Direct3D11 vs_5_0 ps_5_0, D3D11)",
    "ANGLE (AMD, AMD Radeon(TM) Graphics Direct3D11 vs_5_0 ps_5_0, D3D11)",
]
SCREENS = [[1920, 1080], [1366, 768], [2560, 1440], [1536, 864], [1440, 900], [1280, 720]]
LANGUAGES = [["de-DE", "de", "en"], ["en-US", "en"], ["fr-FR", "fr"], ["de-DE"], ["tr-TR", "tr", "de"]]
IPHONES = ["390x844", "393x852", "428x926", "375x667", "430x932"]


def component(value: Any) -> dict[str, Any]:
    """A component as a browser sends it."""
    return {"value": value, "duration": 1}


@dataclass
class Device:
    """One true device: its bundle without versions, and how it lives."""

    kind: str
    bundle: dict[str, Any]
    version: int
    lag: float


def windows(random: np.random.Generator, browser: str = "chrome", **fixed: Any) -> Device:
    """A laptop or desktop PC with Chrome, Edge or Firefox."""
    gpu = fixed.get("gpu", str(random.choice(GPUS)))
    driver = fixed.get("driver", int(random.integers(0, 4)))
    family = "gecko" if browser == "firefox" else "blink"
    fonts = BASE_FONTS + sorted(
        random.choice(EXTRA_FONTS, int(random.integers(0, 12)), replace=False).tolist()
    )
    values = {
        "fonts": fixed.get("fonts", fonts),
        "canvas": {
            "winding": True,
            "geometry": f"geo-{family}-{gpu}-{driver}",
            "text": f"txt-{family}-{driver}",
        },
        "audio": 124.04344968475198 if family == "blink" else 35.73833402246237,
        "languages": [fixed.get("languages", LANGUAGES[int(random.choice(5, p=[0.4, 0.2, 0.1, 0.2, 0.1]))])],
        "colorDepth": 24,
        "screenResolution": fixed.get(
            "screen", SCREENS[int(random.choice(6, p=[0.4, 0.15, 0.15, 0.1, 0.1, 0.1]))]
        ),
        "screenFrame": [0, 0, 40, 0],
        "hardwareConcurrency": fixed.get("cores", int(random.choice([4, 8, 12, 16]))),
        "timezone": "Europe/Berlin",
        "timezoneOffset": -120,
        "platform": "Win32",
        "plugins": [{"name": "PDF Viewer"}, {"name": "Chrome PDF Viewer"}],
        "touchSupport": {"maxTouchPoints": fixed.get("touch", int(random.choice([0, 10], p=[0.8, 0.2])))},
        "vendor": "" if browser == "firefox" else "Google Inc.",
        "vendorFlavors": [] if browser == "firefox" else ["chrome"],
        "cookiesEnabled": True,
        "localStorage": True,
        "sessionStorage": True,
        "indexedDB": True,
        "colorGamut": "srgb",
        "contrast": 0,
        "fontPreferences": {"default": fixed.get("zoom", float(random.choice([149.3, 149.31, 152.2])))},
        "math": {"acos": 1.4473588658278522, "family": family},
        "webGlBasics": {"vendorUnmasked": "Google Inc.", "rendererUnmasked": gpu},
        "webGlExtensions": {"extensions": [f"EXT_{i}" for i in range(20)], "driver": driver},
        "dateTimeLocale": "de-DE",
    }
    if browser != "firefox":
        values["deviceMemory"] = fixed.get("memory", float(random.choice([4, 8, 8, 16])))
    return Device(browser, {k: component(v) for k, v in values.items()}, 120, float(random.random() * 10))


def iphone(random: np.random.Generator) -> Device:
    """A telephone with Safari: little sets it apart from others of its model."""
    model = str(random.choice(IPHONES))
    sides = [int(side) for side in model.split("x")]
    language = LANGUAGES[int(random.choice(5, p=[0.6, 0.2, 0.05, 0.1, 0.05]))]
    values = {
        "fonts": ["Helvetica Neue", "Arial"],
        "canvas": {"winding": True, "geometry": f"geo-ios-{model}", "text": "txt-ios"},
        "audio": 124.04344884395687,
        "languages": [language],
        "colorDepth": 32,
        "screenResolution": sides,
        "hardwareConcurrency": 4,
        "timezone": "Europe/Berlin",
        "platform": "iPhone",
        "touchSupport": {"maxTouchPoints": 5},
        "vendor": "Apple Computer, Inc.",
        "vendorFlavors": ["safari"],
        "cookiesEnabled": True,
        "fontPreferences": {"default": 147.5},
        "math": {"acos": 1.4473588658278522},
        "webGlBasics": {"vendorUnmasked": "Apple Inc.", "rendererUnmasked": "Apple GPU"},
        "dateTimeLocale": language[0],
    }
    return Device("iphone", {k: component(v) for k, v in values.items()}, 17, float(random.random() * 10))


def agent_text(kind: str, version: int) -> str:
    """The user agent of one kind of device at a version of its browser."""
    mozilla = "Mozilla/5.0"
    if kind == "iphone":
        return (
            f"{mozilla} (iPhone; CPU iPhone OS {version}_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            f"Version/{version}.1 Mobile/15E148 Safari/604.1"
        )
    system = "(Windows NT 10.0; Win64; x64"
    if kind == "firefox":
        return f"{mozilla} {system}; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"
    tail = f" Edg/{version}.0.0.0" if kind == "edge" else ""
    return f"{mozilla} {system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36{tail}"


def bundle_of(device: Device) -> dict[str, Any]:
    """What the device sends now."""
    return copy.deepcopy(device.bundle) | {"userAgent": component(agent_text(device.kind, device.version))}


def visits(
    seed: int, desktops: int, phones: int, days: int = 120
) -> tuple[list[dict[str, Any]], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Bundles, true device int [n], time int64 [n] and whether the window was private bool [n], in order of time."""
    random = np.random.default_rng(seed)
    kinds = ["chrome", "edge", "firefox"]
    devices = [windows(random, kinds[int(random.choice(3, p=[0.6, 0.25, 0.15]))]) for _ in range(desktops)]
    devices += [iphone(random) for _ in range(phones)]
    moments = sorted(
        (float(day), owner)
        for owner in range(len(devices))
        for day in np.cumsum(random.exponential(6.0, 40))
        if day < days
    )
    bundles, truth, times, private = [], [], [], []
    for day, owner in moments:
        device = devices[owner]
        live(device, day, random)
        shown = bundle_of(device)
        hidden = bool(random.random() < 0.05)
        visit(shown, device.kind, hidden, random)
        bundles.append(shown)
        truth.append(owner)
        times.append(START + int(day * DAY))
        private.append(hidden)
    return bundles, np.array(truth), np.array(times), np.array(private)


def live(device: Device, day: float, random: np.random.Generator) -> None:
    """Lasting changes until ``day``: the release calendar, drivers, fonts."""
    period = 120.0 if device.kind == "iphone" else 28.0
    current = (17 if device.kind == "iphone" else 120) + int(max(day - device.lag, 0) // period)
    if current > device.version:
        device.version = current
        if random.random() < 0.05:
            device.bundle["canvas"]["value"]["text"] += f"+{current}"
        if device.kind != "iphone" and random.random() < 0.1:
            device.bundle["webGlExtensions"]["value"]["extensions"].append(f"EXT_new{current}")
    if device.kind != "iphone" and random.random() < 0.02:
        device.bundle["fonts"]["value"] = [*device.bundle["fonts"]["value"], f"New {random.integers(0, 50)}"]


def visit(shown: dict[str, Any], kind: str, hidden: bool, random: np.random.Generator) -> None:
    """Passing changes of one visit: another screen, a trip, a resized window, a private window."""
    chance = random.random(4)
    if chance[0] < 0.08 and kind != "iphone":
        shown["screenResolution"] = component([3840, 2160])
    if chance[1] < 0.03:
        shown["timezone"] = component("Asia/Tokyo")
        shown["timezoneOffset"] = component(-540)
    if chance[2] < 0.3 and kind != "iphone":
        shown["screenFrame"] = component([0, 0, int(random.integers(0, 8)) * 10, 0])
    if hidden and kind in ("firefox", "iphone"):
        noise = int(random.integers(0, 2**31))
        shown["canvas"]["value"]["geometry"] += f"noise{noise}"
        shown["canvas"]["value"]["text"] += f"noise{noise}"
        shown["audio"] = component(shown["audio"]["value"] + noise * 1e-15)
    elif hidden:
        shown["indexedDB"] = component(bool(chance[3] < 0.5))
