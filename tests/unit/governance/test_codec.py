"""One spelling per message: whatever is not the canonical encoding is refused."""

from __future__ import annotations

import msgspec
import pytest

from governance.messages.codec import MAX_MESSAGE_BYTES, MalformedError, decode, encode
from governance.messages.inquiry import Veto
from governance.messages.lookup import EvaluateRequest, EvaluationCount, EvaluationTotals

VETO = Veto(inquiry_id=b"\x01" * 4, member="bank-a", reason="no")
FIELDS = [("inquiry_id", b"\x01" * 4), ("member", "bank-a"), ("reason", "no")]


def packed(pairs: list[tuple[object, object]]) -> bytes:
    """A MessagePack map of up to 15 pairs in this order, repeated keys included."""
    return bytes([0x80 | len(pairs)]) + b"".join(
        msgspec.msgpack.encode(key) + msgspec.msgpack.encode(value) for key, value in pairs
    )


def test_the_canonical_encoding_is_a_map_in_the_order_of_the_definition() -> None:
    assert encode(VETO) == packed(FIELDS)
    assert decode(Veto, packed(FIELDS)) == VETO


@pytest.mark.parametrize(
    "body",
    [
        b"",
        packed(FIELDS)[:-1],
        packed(FIELDS) + b"\x00",
        packed(list(reversed(FIELDS))),
        packed([*FIELDS, ("reason", "no")]),
        packed([("reason", "yes"), *FIELDS]),
        packed([*FIELDS, ("extra", 1)]),
        packed(FIELDS[:2]),
        packed([*FIELDS[:2], ("reason", None)]),
        packed([*FIELDS[:2], ("reason", b"no")]),
        packed([*FIELDS[:2], (b"reason", "no")]),
        packed([("inquiry_id", "\x01\x01\x01\x01"), *FIELDS[1:]]),
        # the same values with longer headers: map16, str8, bin16
        b"\xde\x00\x03" + packed(FIELDS)[1:],
        packed(FIELDS).replace(b"\xa6bank-a", b"\xd9\x06bank-a"),
        packed(FIELDS).replace(b"\xc4\x04", b"\xc5\x00\x04"),
        packed(FIELDS).replace(b"\xa2no", b"\xa2\xff\xfe"),
        b"\x93" + b"\xc4\x01\x01\xa1a\xa1b",
        b"\xc1",
        b"\x91" * 100_000,
    ],
)
def test_any_other_spelling_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError, match="Veto"):
        decode(Veto, body)


def test_integers_have_one_length() -> None:
    request = EvaluateRequest(
        request_id=b"r",
        epoch=1,
        kind_group="terminals",
        generation=1,
        purpose="p",
        quota="lookup",
        elements=b"",
    )
    body = encode(request)
    assert decode(EvaluateRequest, body) == request
    for longer in (b"\xcc\x01", b"\xcd\x00\x01", b"\xd0\x01", b"\xd3" + bytes(7) + b"\x01"):
        changed = body.replace(b"\xa5epoch\x01", b"\xa5epoch" + longer)
        assert changed != body
        with pytest.raises(MalformedError, match="canonical"):
            decode(EvaluateRequest, changed)
    with pytest.raises(MalformedError):
        decode(EvaluateRequest, body.replace(b"\xa5epoch\x01", b"\xa5epoch\xcb" + bytes(8)))
    with pytest.raises(MalformedError):
        decode(EvaluateRequest, body.replace(b"\xa5epoch\x01", b"\xa5epoch\xc3"))


def test_nested_messages_are_canonical_too() -> None:
    count = EvaluationCount(
        caller="bank-a", kind_group="g", purpose="p", quota="lookup", refusal="", requests=1, elements=2
    )
    totals = EvaluationTotals(holder="bank-b", sequence=1, period_start=0, period_end=1, counts=[count])
    body = encode(totals)
    assert decode(EvaluationTotals, body) == totals
    with pytest.raises(MalformedError, match="canonical"):
        decode(EvaluationTotals, body.replace(b"\xa8requests\x01", b"\xa8requests\xcc\x01"))


def test_size_is_checked_before_parsing() -> None:
    with pytest.raises(MalformedError, match="at most 3"):
        decode(Veto, encode(VETO), max_bytes=3)
    with pytest.raises(MalformedError, match=f"{MAX_MESSAGE_BYTES + 1} bytes"):
        decode(Veto, bytes(MAX_MESSAGE_BYTES + 1))


def test_messages_are_values() -> None:
    assert hash(VETO) == hash(decode(Veto, encode(VETO)))
    with pytest.raises(AttributeError, match="immutable"):
        VETO.reason = "yes"  # type: ignore[misc]
