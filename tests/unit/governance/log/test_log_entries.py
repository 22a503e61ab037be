"""One spelling per entry, equal to the reference RFC 8785 canonicaliser; bounds; evidence round trips."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import InvalidEncodingError, InvalidSignatureError
from governance.log.entries import (
    MAX_BODY_BYTES,
    MAX_INTEGER,
    MalformedEntryError,
    RefusalEntry,
    as_claimed,
    decode_entry,
    encode_entry,
    entry_type,
)
from governance.log.evidence import signed_message, verify_evidence
from governance.log.leaves import entry_leaf_hash, leaf_data


def refusal(**changes: Any) -> RefusalEntry:
    fields: dict[str, Any] = {
        "at": 5,
        "parties": ["bank-a"],
        "party": "bank-a",
        "action": "lookup",
        "resource": "terminals",
        "purpose": "p",
        "reason": "r",
        "rule": "",
        "policy_epoch": 1,
        "since": 5,
        "requests": 1,
    }
    return RefusalEntry(**{**fields, **changes})


@given(st.text(max_size=128), st.integers(0, MAX_INTEGER))
def test_bodies_are_what_the_reference_canonicaliser_writes(text: str, at: int) -> None:
    entry = refusal(purpose=as_claimed(text), at=at)
    body = encode_entry(entry)
    assert body == rfc8785.dumps(msgspec.to_builtins(entry))
    assert decode_entry(body) == entry


def test_every_type_survives_and_is_canonical(sample_log: Any) -> None:
    seen = set()
    for entry in sample_log.entries:
        body = encode_entry(entry)
        assert body == rfc8785.dumps(json.loads(body))
        assert decode_entry(body) == entry
        seen.add(entry_type(entry))
    assert len(seen) == 13


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b + b"\n",
        lambda b: b" " + b,
        lambda b: b.replace(b'"at":5,', b'"at":5.0,'),
        lambda b: b.replace(b'"at":5,', b'"at":-5,'),
        lambda b: b.replace(b'"at":5,', b'"at":9007199254740993,'),
        lambda b: b.replace(b'"at":5,', b'"at":5,"at":5,'),
        lambda b: b.replace(b'"at":5,', b""),
        lambda b: b.replace(b'{"action"', b'{"aa":1,"action"'),
        lambda b: b.replace(b'"lookup"', b'"loo\\u006bup"'),
        lambda b: b.replace(b'["bank-a"]', b'["bank-b","bank-a"]'),
        lambda b: b.replace(b'["bank-a"]', b'["bank-a","bank-a"]'),
        lambda b: b.replace(b'["bank-a"]', b'["Bank A"]'),
        lambda b: b.replace(b'"type":"refusal"', b'"type":"gossip"'),
        lambda b: b.replace(b'"r"', b'"\xff"'),
        lambda b: b"[" * 100_000,
        lambda b: b"",
    ],
)
def test_other_spellings_are_refused(change: Any) -> None:
    body = encode_entry(refusal())
    changed = change(body)
    assert changed != body
    with pytest.raises(MalformedEntryError):
        decode_entry(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"at": -1},
        {"at": MAX_INTEGER + 1},
        {"at": 10**30},
        {"purpose": "x" * 129},
        {"reason": "x" * 501},
        {"purpose": "\ud800"},
        {"party": "bank-a\n"},
        {"parties": ["bank-b", "bank-a"]},
        {"action": "look up"},
    ],
)
def test_fields_out_of_bounds_cannot_be_encoded(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEntryError):
        encode_entry(refusal(**changes))


def test_oversized_bodies_are_refused_unread() -> None:
    with pytest.raises(MalformedEntryError, match="at most"):
        decode_entry(b'"' + b"x" * MAX_BODY_BYTES + b'"')


def test_evidence_is_rebuilt_exactly(sample_log: Any) -> None:
    keys = {party: key.verify_key for party, key in sample_log.keys.items()}
    kinds = set()
    for entry in sample_log.entries:
        verify_evidence(entry, keys)
        rebuilt = signed_message(entry)
        if rebuilt is None:
            continue
        kinds.add(entry_type(entry))
        with pytest.raises(InvalidSignatureError, match="not on the membership roll"):
            verify_evidence(entry, {})
        with pytest.raises(InvalidSignatureError, match=rebuilt[0]):
            verify_evidence(msgspec.structs.replace(entry, signature="00" * 64), keys)
    assert kinds == {"inquiry-intent", "inquiry-veto", "inquiry-outcome", "evaluation-totals"}


@pytest.mark.parametrize(
    ("type_name", "changes"),
    [
        ("inquiry-intent", {"purpose": "investigation"}),
        ("inquiry-intent", {"inquiry_id": "00" * 32}),
        ("inquiry-veto", {"reason": "other"}),
        ("inquiry-outcome", {"commitment": "00" * 32}),
        ("evaluation-totals", {"counts": []}),
    ],
)
def test_the_coordinator_cannot_change_what_a_member_said(
    sample_log: Any, type_name: str, changes: dict[str, Any]
) -> None:
    keys = {party: key.verify_key for party, key in sample_log.keys.items()}
    entry = next(entry for entry in sample_log.entries if entry_type(entry) == type_name)
    with pytest.raises(InvalidSignatureError):
        verify_evidence(msgspec.structs.replace(entry, **changes), keys)


def test_leaf_is_a_salted_commitment() -> None:
    salt, body = bytes(range(32)), b"{}"
    assert leaf_data(salt, body) == hashlib.sha256(b"subrosa/v1/leaf\0" + salt + body).digest()
    assert entry_leaf_hash(salt, body) == hashlib.sha256(b"\0" + leaf_data(salt, body)).digest()
    for length in (0, 31, 33):
        with pytest.raises(InvalidEncodingError):
            leaf_data(bytes(length), body)
