"""The search that proves privacy must itself be shown to find what it looks for."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from pathlib import Path

import pytest

from sandbox.wire_search import _STRETCH, WireSearch

IBAN = "DE89370400440532013000"
DIGESTS = [hashlib.new(name, IBAN.encode()).digest() for name in ("md5", "sha1", "sha256", "sha512")]
VALUES = [IBAN.encode(), *DIGESTS]


@pytest.mark.parametrize(
    "planted",
    [
        *VALUES,
        *[value.hex().encode() for value in VALUES],
        *[value.hex().upper().encode() for value in VALUES],
    ],
)
@pytest.mark.parametrize("before", [b"", b"x", b"\x00" * 13])
def test_finds_every_spelling_wherever_it_stands(planted: bytes, before: bytes) -> None:
    search = WireSearch([IBAN, "+4915112345678"])
    leaks = search.search(before + planted + b"tail", file="body")
    assert {leak.identifier for leak in leaks} == {IBAN}
    assert leaks[0].offset <= len(before)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("before", [b"", b"\xff", b"{\xfb", b'{"account": "', b"\xff" * 7])
@pytest.mark.parametrize("after", [b"", b"\xff", b'"}', b"\x00" * 9])
def test_finds_base64_whatever_stands_around_the_value(encode, value, before, after) -> None:
    body = b"content-digest: " + encode(before + value + after) + b"\r\n"
    leaks = WireSearch([IBAN]).search(body, file="body")
    assert {leak.identifier for leak in leaks} == {IBAN}
    assert {leak.form.rpartition("+")[2] for leak in leaks} == {str(len(before) % 3)}


@pytest.mark.parametrize("identifier", ["T0001", "C000123", "M00001", "198.18.3.4"])
@pytest.mark.parametrize("before", [b"", b"1", b"22"])
def test_short_identifiers_are_found_in_base64_too(identifier: str, before: bytes) -> None:
    body = base64.b64encode(before + identifier.encode() + b"\xfe\xfe")
    assert WireSearch([identifier]).search(body, file="body")


def test_finds_what_lies_across_two_stretches() -> None:
    for shift in range(-len(IBAN) - 1, 2):
        body = bytes(_STRETCH + shift) + IBAN.encode() + bytes(100)
        assert [leak.offset for leak in WireSearch([IBAN]).search(body, file="b")] == [_STRETCH + shift]


def test_finds_nothing_in_noise() -> None:
    noise = hashlib.shake_256(b"noise").digest(300_000)
    search = WireSearch([IBAN, "T-000123", "C000001", "198.18.0.1"])
    assert search.search(noise, file="body") == []
    assert search.search(base64.b64encode(noise), file="body") == []


def test_bodies_shorter_than_any_needle_hold_none() -> None:
    assert WireSearch([IBAN]).search(b"DE", file="b") == []
    assert WireSearch([]).search(IBAN.encode(), file="b") == []


@pytest.mark.parametrize("identifier", ["12", "C001"])
def test_refuses_identifiers_that_would_hit_by_chance(identifier: str) -> None:
    with pytest.raises(ValueError, match="too short"):
        WireSearch([identifier])
    with pytest.raises(ValueError, match="by chance"):
        WireSearch([IBAN], min_length=2)


def test_searches_rows_of_a_database_that_pages_tear_apart(tmp_path: Path) -> None:
    path = tmp_path / "some.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute('CREATE TABLE "odd ""name" (payload BLOB, note TEXT)')
    for padding in range(600, 1200):
        payload = bytes(padding) + IBAN.encode() + bytes(5_000 - padding)
        connection.execute('INSERT INTO "odd ""name" VALUES (?, ?)', (payload, "x"))
    connection.commit()
    connection.close()
    torn = path.read_bytes().count(IBAN.encode())
    rows, leaks = WireSearch([IBAN]).search_database(path)
    assert (rows, len(leaks)) == (600, 600)
    assert torn < 600, "the pages must have torn some values apart for this test to mean anything"
    files, total, _ = WireSearch([IBAN]).search_folder(tmp_path)
    assert (files, total) == (1, path.stat().st_size)
