"""Bundles: what is refused with which code, what is kept; the signs of tampering one by one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.browsers import START, bundle_of, component, iphone, windows
from scoring.devices import DeviceLinker
from scoring.devices.agents import app_agent, parse_agent, version_number
from scoring.devices.bundle import (
    MAX_BYTES,
    MAX_COMPONENTS,
    MAX_DEPTH,
    MAX_TEXT,
    MAX_WORD,
    BundleError,
    read_bundle,
)
from scoring.devices.consistency import SIGNS, inconsistencies, tampering
from scoring.devices.fingerprint import _DOTTED, Fingerprinter, agent_of

SECRET = "secret-value-of-a-person"


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("raw", "code", "at"),
    [
        ("{", "not-json", ""),
        (b"\xff\xfe", "not-json", ""),
        ('{"canvas": NaN}', "not-json", ""),
        ("[" * 100_000, "not-json", ""),
        ("[]", "not-an-object", ""),
        ("3", "not-an-object", ""),
        (" " * (MAX_BYTES + 1), "too-large", ""),
        ({f"c{i}": 1 for i in range(MAX_COMPONENTS + 1)}, "too-many-components", ""),
        ({SECRET: 1}, "bad-name", ""),
        ({"a" * 65: 1}, "bad-name", ""),
        ({3: 1}, "bad-name", ""),
        ({"canvas": {"values": SECRET}}, "bad-component", "canvas"),
        ({"platform": component(3)}, "wrong-type", "platform"),
        ({"webdriver": component(1)}, "wrong-type", "webdriver"),
        ({"colorDepth": component(True)}, "wrong-type", "colorDepth"),
        ({"fonts": component({"a": SECRET})}, "wrong-type", "fonts"),
        ({"screenResolution": component("1x1")}, "wrong-type", "screenResolution"),
        ({"audio": component(float("nan"))}, "not-finite", "audio"),
        ({"hardwareConcurrency": component(2**70)}, "not-finite", "hardwareConcurrency"),
        ({"math": component({"a": float("inf")})}, "not-finite", "math"),
        ({"fonts": component(nested(MAX_DEPTH + 1))}, "too-deep", "fonts"),
        ({"fonts": component(["x"] * 5000)}, "too-many-items", "fonts"),
        ({"math": component({str(i): 1 for i in range(5000)})}, "too-many-items", "math"),
        ({"canvas": component({"text": "x" * (MAX_TEXT + 1)})}, "text-too-long", "canvas"),
        ({"userAgent": "x" * (MAX_WORD + 1)}, "text-too-long", "userAgent"),
        ({"fonts": component([["x" * (MAX_WORD + 1)]])}, "text-too-long", "fonts"),
        ({"webGlBasics": component({"renderer": "1" * (MAX_WORD + 1)})}, "text-too-long", "webGlBasics"),
        ({"math": component({3: 1})}, "bad-component", "math"),
        ({"math": component({"a": b"bytes"})}, "bad-component", "math"),
        (
            {"canvas": component({str(i): "x" * MAX_TEXT for i in range(5)})},
            "too-large",
            "canvas",
        ),
    ],
)
def test_malformed_bundles_cost_the_device_but_not_the_event(raw, code, at):
    with pytest.raises(BundleError) as refusal:
        read_bundle(raw)
    assert (refusal.value.code, refusal.value.component) == (code, at)
    assert SECRET not in str(refusal.value)
    good = bundle_of(windows(np.random.default_rng(0)))
    seen = DeviceLinker().observe([good, raw, good], np.ones(3, np.uint64), np.full(3, START))
    assert [(each.row, each.code, each.component) for each in seen.refusals] == [(1, code, at)]
    assert seen.device_id[0] == seen.device_id[2] is not None
    assert seen.device_id[1] is None
    assert np.isnan(seen.numbers["device_tampering"][1])


def test_forms_of_one_bundle_are_one_device():
    plain = bundle_of(windows(np.random.default_rng(0)))
    failed = plain | {
        "unheard": component({"of": [1, {"deep": nested(50)}]}),
        "applePay": {"error": {"message": "no"}},
    }
    slower = {name: each | {"duration": 999} for name, each in plain.items()}
    wrapped = {"visitorId": "x", "confidence": {"score": 0.4}, "components": plain, "version": "5.0.0"}
    forms = [plain, failed, slower, wrapped, json.dumps(plain), json.dumps(plain, indent=1).encode()]
    seen = DeviceLinker().observe(forms, np.ones(6, np.uint64), np.full(6, START))
    assert not seen.refusals
    assert len(set(seen.device_id)) == 1
    assert seen.numbers["device_drift"].tolist() == [0] * 6


def test_values_do_not_print():
    bundle = read_bundle({"model": SECRET, "carrier": {"error": {"message": SECRET}}})
    assert bundle.failed == {"carrier"}
    assert SECRET not in repr(bundle)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "canvas audio fonts screenResolution screen timezone timezoneOffset languages platform plugins touchSupport "
    "webGlBasics userAgent os model installId vendor screenFrame deviceMemory acceptLanguage"
)
names = st.sampled_from(NAMES.split()) | st.text(max_size=6)


@given(st.dictionaries(names, json_values | st.builds(component, json_values), max_size=12))
@settings(max_examples=100, deadline=None)
def test_nothing_a_device_sends_raises(bundle):
    seen = DeviceLinker().observe([bundle, bundle], np.ones(2, np.uint64), np.full(2, START))
    assert len(seen.refusals) in (0, 2)
    score = seen.numbers["device_tampering"]
    assert np.isnan(score).all() if seen.refusals else ((score >= 0) & (score < 1)).all()
    assert seen.device_id[0] == seen.device_id[1]


@pytest.mark.parametrize(
    ("text", "browser", "system"),
    [
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.1.2 "
            "Safari/537.36 Edg/126.0.2592.87",
            "edge",
            "windows",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "CriOS/126.0.6478.54 Mobile/15E148 Safari/604.1",
            "chrome",
            "ios",
        ),
        (
            "Mozilla/5.0 (Linux; Android 14; SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/25.0 "
            "Chrome/121.0.0.0 Mobile Safari/537.36",
            "samsung",
            "android",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
            "Safari/605.1.15",
            "safari",
            "macos",
        ),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0", "firefox", "linux"),
        ("curl/8.0", "", ""),
        ("", "", ""),
    ],
)
def test_user_agents(text, browser, system):
    agent = parse_agent(text)
    assert (agent.browser, agent.system) == (browser, system)


def test_versions_order_as_numbers():
    texts = ["", "9", "10", "10.2", "10.10", "10_15_7", "11.0.1", "99999999999.1"]
    numbers = [version_number(text) for text in texts]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)
    assert app_agent("iPadOS", "17.1").system == "ios"


CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"
ANDROID = CHROME.replace("Windows NT 10.0; Win64; x64", "Linux; Android 14; Pixel 8")


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"webdriver": True}, "webdriver"),
        ({"userAgent": CHROME.replace("Chrome", "HeadlessChrome")}, "headless"),
        ({"platform": "MacIntel"}, "platform-mismatch"),
        ({"screenResolution": [0, 0]}, "screen-impossible"),
        ({"screenResolution": [50000, 800]}, "screen-impossible"),
        ({"screenFrame": [0, 9000, 0, 0]}, "screen-impossible"),
        (
            {"userAgent": ANDROID, "platform": "Linux armv8l", "screenResolution": [3840, 2160]},
            "screen-impossible",
        ),
        ({"webGlBasics": {"rendererUnmasked": "Apple M1"}}, "renderer-mismatch"),
        ({"webGlBasics": {"renderer": "Google SwiftShader"}}, "software-renderer"),
        ({"vendor": "Apple Computer, Inc."}, "vendor-mismatch"),
        (
            {"userAgent": ANDROID, "platform": "Linux armv8l", "touchSupport": {"maxTouchPoints": 0}},
            "touch-mismatch",
        ),
        ({"timezoneOffset": 480}, "timezone-mismatch"),
        ({"timezone": "Mars/Olympus"}, "timezone-unknown"),
        ({"timezone": "../../etc/passwd"}, "timezone-unknown"),
        ({"languages": []}, "languages-missing"),
        ({"acceptLanguage": "ru-RU,ru;q=0.9"}, "languages-mismatch"),
        ({"deviceMemory": 7.0}, "hardware-impossible"),
        ({"hardwareConcurrency": 0}, "hardware-impossible"),
        ({"canvas": {"geometry": "unstable", "text": "unstable"}}, "canvas-unstable"),
    ],
)
def test_signs_of_browsers(change, sign):
    honest = bundle_of(windows(np.random.default_rng(0), languages=["de-DE"]))
    assert signs(honest | {"acceptLanguage": component("de-DE,de;q=0.9")}) == ()
    assert sign in signs(honest | {name: component(value) for name, value in change.items()})


def test_blocked_components_are_a_sign():
    honest = bundle_of(windows(np.random.default_rng(0)))
    blocked = {
        name: {"error": {"message": "blocked"}} for name in ("canvas", "audio", "fonts", "webGlBasics")
    }
    assert signs(honest | blocked) == ("components-blocked",)


def test_an_honest_telephone_shows_no_sign():
    assert signs(bundle_of(iphone(np.random.default_rng(0)))) == ()


PHONE = {"os": "Android", "osVersion": "14", "model": "Pixel 8", "installId": "a", "screen": [1080, 2400]}


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({}, None),
        ({"emulator": True}, "emulator"),
        ({"model": "sdk_gphone64_x86_64"}, "emulator"),
        ({"rooted": True}, "rooted"),
        ({"jailbroken": True}, "rooted"),
        ({"installId": ""}, "identifier-missing"),
        ({"timezone": "UTC", "timezoneOffset": 60}, "timezone-mismatch"),
    ],
)
def test_signs_of_apps(change, sign):
    assert signs(PHONE | change) == (() if sign is None else (sign,))


def test_daylight_saving_is_no_sign_on_the_day_it_changes():
    berlin = {"timezone": "Europe/Berlin", "timezoneOffset": -60} | PHONE
    change = 1_774_746_000_000_000  # 2026-03-29 01:00 UTC
    hour = 3_600_000_000
    assert signs(berlin, change + hour) == ()
    assert signs(berlin, change + 48 * hour) == ("timezone-mismatch",)


def test_the_score_grows_with_every_sign_and_stays_below_one():
    assert tampering([]) == 0
    assert tampering(["rooted", "headless"]) == pytest.approx(1 - 0.5 * 0.1)
    assert tampering(SIGNS) < 1


def signs(raw, time_us=START):
    bundle = read_bundle(raw)
    return inconsistencies(bundle, agent_of(bundle), time_us)


@pytest.mark.parametrize("word", ["Version/1 ", "iPhone", "CrOS ", "Mac OS X ", "Chrome/"])
def test_reading_a_user_agent_takes_one_pass_over_it(word):
    # A search that tries every pair of places would take hours here, and seconds in a bundle of the size allowed.
    agent = parse_agent(word * 200_000)
    assert agent.browser_version == 0


def test_a_long_number_in_a_graphics_cards_name_is_read_once():
    assert _DOTTED.sub("#", "1" * 1_000_000) == "1" * 1_000_000
    assert _DOTTED.sub("#", "NVIDIA 551.23.1, v10 4.6") == "NVIDIA #, v10 #"


def test_what_devices_send_does_not_stay_in_caches():
    # Long lists are not remembered; short ones are few and small.
    fingerprinter = Fingerprinter(b"k" * 16)
    for turn in range(3):
        for fonts in ([f"font {turn} {i}" for i in range(4000)], ["x" * 1000 + str(turn)] * 8):
            fingerprinter(read_bundle({"userAgent": "Chrome/1", "fonts": fonts}))
    assert fingerprinter._remembered_bitmap.cache_info().currsize <= 2  # no plugins, one user agent
