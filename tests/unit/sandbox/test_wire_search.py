"""The search that proves privacy must itself be shown to find what it looks for."""

from __future__ import annotations

import base64
import hashlib

import pytest

from sandbox.wire_search import WireSearch

IBAN = "DE89370400440532013000"
DIGESTS = [hashlib.new(name, IBAN.encode()).digest() for name in ("md5", "sha1", "sha256", "sha512")]


@pytest.mark.parametrize(
    "planted",
    [
        IBAN.encode(),
        IBAN.encode().hex().encode(),
        base64.b64encode(IBAN.encode()),
        *DIGESTS,
        *[digest.hex().encode() for digest in DIGESTS],
        *[digest.hex().upper().encode() for digest in DIGESTS],
        *[base64.b64encode(digest) for digest in DIGESTS],
        *[base64.urlsafe_b64encode(digest) for digest in DIGESTS],
    ],
)
@pytest.mark.parametrize("before", [b"", b"x", b"\x00" * 13])
def test_finds_every_spelling_wherever_it_stands(planted: bytes, before: bytes) -> None:
    search = WireSearch([IBAN, "+4915112345678"])
    leaks = search.search(before + planted + b"tail", file="body")
    assert {leak.identifier for leak in leaks} == {IBAN}
    assert leaks[0].offset <= len(before)


def test_finds_nothing_in_noise() -> None:
    noise = hashlib.shake_256(b"noise").digest(200_000)
    assert WireSearch([IBAN, "T-000123"]).search(noise, file="body") == []


def test_short_needles_are_found_too() -> None:
    assert WireSearch(["T-001"]).search(b"..T-001..", file="b")[0].form == "raw"


def test_refuses_identifiers_that_would_hit_by_chance() -> None:
    with pytest.raises(ValueError, match="too short"):
        WireSearch(["12"])
