"""Browser and operating system from a user agent or from an app's own words: families, and versions that compare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# The first that matches decides, since later browsers name earlier ones. Where two words are looked for, the first is
# an atomic group: what a device sends must not make a search try every pair of places.
_BROWSERS = (
    ("edge", re.compile(r"\b(?:Edg|EdgA|EdgiOS|Edge)/([\d.]+)")),
    ("opera", re.compile(r"\b(?:OPR|OPT|Opera)/([\d.]+)")),
    ("samsung", re.compile(r"\bSamsungBrowser/([\d.]+)")),
    ("firefox", re.compile(r"\b(?:Firefox|FxiOS)/([\d.]+)")),
    ("chrome", re.compile(r"\b(?:Chrome|CriOS|HeadlessChrome|Chromium)/([\d.]+)")),
    ("safari", re.compile(r"\A(?>.*?\bVersion/([\d.]+)).*\bSafari/")),
)
_SYSTEMS = (
    ("windows", re.compile(r"Windows NT ([\d.]+)")),
    ("ios", re.compile(r"\A(?>.*?(?:iPhone|iPad|iPod)).*?OS (\d[\d_.]*)")),
    ("android", re.compile(r"Android ([\d.]+)")),
    ("android", re.compile(r"Android()")),
    ("macos", re.compile(r"Mac OS X (\d[\d_.]*)")),
    ("chromeos", re.compile(r"CrOS \S+ ([\d.]+)")),
    ("linux", re.compile(r"Linux()")),
)
_DIGITS = re.compile(r"\d+(?:[._]\d+)*")
_MOBILE = ("ios", "android")


@dataclass(frozen=True)
class Agent:
    """Families are lower-case words, "" where unknown; versions are integers in order of version, 0 where unknown."""

    browser: str
    browser_version: int
    system: str
    system_version: int
    skeleton: str
    headless: bool

    @property
    def is_mobile(self) -> bool:
        """A telephone's or a tablet's system."""
        return self.system in _MOBILE


@lru_cache(maxsize=4096)
def parse_agent(user_agent: str) -> Agent:
    """What a user agent says; its ``skeleton`` is the text with every version replaced by #."""
    browser, browser_version = _first(_BROWSERS, user_agent)
    system, system_version = _first(_SYSTEMS, user_agent)
    return Agent(
        browser,
        browser_version,
        system,
        system_version,
        without_versions(user_agent),
        "Headless" in user_agent,
    )


def app_agent(system: str, version: str) -> Agent:
    """What an app says of the system it runs on."""
    family = {"ipados": "ios", "iphone os": "ios"}.get(system.lower(), system.lower())
    return Agent("app", 0, family, version_number(version), "", False)


def version_number(text: str) -> int:
    """``126.0.6478`` as an integer that orders like its first three parts (16 bits each); 0 if it begins otherwise."""
    number = 0
    parts = re.match(r"\d+(?:[._]\d+)*", text)
    digits = re.split(r"[._]", parts.group()) if parts else []
    for place in range(3):
        part = min(int(digits[place][:6]), 65535) if place < len(digits) else 0
        number = (number << 16) | part
    return number


def without_versions(text: str) -> str:
    """The text with every number, dotted or not, replaced by #."""
    return _DIGITS.sub("#", text)


def _first(patterns: tuple[tuple[str, re.Pattern[str]], ...], text: str) -> tuple[str, int]:
    for family, pattern in patterns:
        if found := pattern.search(text):
            return family, version_number(found.group(1))
    return "", 0
