"""Envelopes: who signed, what kind of message it is, and that neither can be exchanged."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from crypto.errors import InvalidSignatureError
from crypto.signing import SigningKey
from governance.messages.codec import MalformedError, Message, decode, encode
from governance.messages.inquiry import Contribution, MaskKey, Outcome, Veto
from governance.messages.signed import Evidence, Signed, open_signed, sign_message

KEYS = {party: SigningKey(hashlib.sha256(party.encode()).digest()) for party in ("bank-a", "bank-b")}
VERIFY_KEYS = {party: key.verify_key for party, key in KEYS.items()}
VETO = Veto(inquiry_id=bytes(32), member="bank-a", reason="no")


def envelope() -> Signed:
    return sign_message(VETO, "bank-a", KEYS["bank-a"])


def test_round_trip() -> None:
    assert open_signed(Veto, envelope(), VERIFY_KEYS) == VETO
    travelled = decode(Signed, encode(envelope()))
    assert open_signed(Veto, travelled, VERIFY_KEYS) == VETO


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": "bank-b"},
        {"signature": bytes(64)},
        {"signature": b""},
        {"signature": bytes(65)},
        {"payload": encode(Veto(inquiry_id=bytes(32), member="bank-a", reason="yes"))},
        {"payload": b""},
    ],
)
def test_any_change_is_refused_naming_the_signer(changes: dict[str, object]) -> None:
    changed = msgspec.structs.replace(envelope(), **changes)
    with pytest.raises(InvalidSignatureError, match=f"Veto: the signature of '{changed.signer}'"):
        open_signed(Veto, changed, VERIFY_KEYS)


def test_an_unknown_signer_is_refused() -> None:
    changed = msgspec.structs.replace(envelope(), signer="bank-z")
    with pytest.raises(InvalidSignatureError, match="'bank-z' is not on the membership roll"):
        open_signed(Veto, changed, VERIFY_KEYS)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    """Same payload, same key, another context: a contribution can never be shown as a veto."""
    for kind in (Contribution, MaskKey, Outcome):
        with pytest.raises(InvalidSignatureError):
            open_signed(kind, envelope(), VERIFY_KEYS)


def test_a_valid_signature_does_not_make_a_payload_canonical() -> None:
    payload = encode(VETO).replace(b"\xa2no", b"\xd9\x02no")
    signed = Signed(signer="bank-a", payload=payload, signature=KEYS["bank-a"].sign("veto", payload))
    with pytest.raises(MalformedError, match="canonical"):
        open_signed(Veto, signed, VERIFY_KEYS)


def every(kind: type[Message]) -> list[type[Message]]:
    return [found for child in kind.__subclasses__() for found in (child, *every(child))]


def test_every_kind_of_evidence_has_its_own_context() -> None:
    contexts = [kind.CONTEXT for kind in every(Evidence)]  # type: ignore[attr-defined]
    assert len(contexts) >= 4
    assert len(set(contexts)) == len(contexts)
    assert all(context and "\0" not in context for context in contexts)
