"""Laws of the canonical encoding, for every message type there is: found by walking the package."""

from __future__ import annotations

import importlib
import pkgutil
from typing import get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import governance.messages
from governance.messages.codec import MalformedError, Message, decode, encode

for module in pkgutil.iter_modules(governance.messages.__path__):
    importlib.import_module(f"governance.messages.{module.name}")


def concrete(kind: type[Message]) -> list[type[Message]]:
    found = [leaf for child in kind.__subclasses__() for leaf in concrete(child)]
    own = [kind] if kind.__struct_fields__ and kind.__module__.startswith("governance.messages") else []
    return own + found


KINDS = sorted(set(concrete(Message)), key=lambda kind: kind.__name__)

# msgspec accepts what MessagePack can hold: signed and unsigned integers of 64 bits
SCALARS: dict[object, st.SearchStrategy[object]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
}


def values(hint: object) -> st.SearchStrategy[object]:
    if hint in SCALARS:
        return SCALARS[hint]
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Message):
        hints = get_type_hints(hint)
        return st.builds(hint, **{name: values(hints[name]) for name in hint.__struct_fields__})
    raise AssertionError(f"a wire type holds {hint!r}: extend the law, or choose a type with one encoding")


MESSAGES = {kind: values(kind) for kind in KINDS}


def test_all_message_types_are_here() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {
        "Signed",
        "Inquiry",
        "PolicyBundle",
        "MembershipRoll",
        "Deltas",
        "EvaluateRequest",
        "LogPage",
    } <= names
    assert len(names) == len(KINDS) >= 25


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_decode_is_the_inverse_of_encode(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    body = encode(message)  # type: ignore[arg-type]
    assert decode(kind, body) == message
    assert encode(decode(kind, body)) == body


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_a_changed_body_is_another_message_or_none(kind: type[Message], data: st.DataObject) -> None:
    """No two bodies are one message: what still decodes after a change decodes to something else."""
    message = data.draw(MESSAGES[kind])
    body = encode(message)  # type: ignore[arg-type]
    index = data.draw(st.integers(0, len(body) - 1))
    changed = body[:index] + bytes([body[index] ^ data.draw(st.integers(1, 255))]) + body[index + 1 :]
    try:
        other = decode(kind, changed)
    except MalformedError:
        return
    assert other != message
    assert encode(other) == changed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(body=st.binary(max_size=60), cut=st.integers(0, 3), data=st.data())
def test_foreign_bytes_are_refused_or_canonical(
    kind: type[Message], body: bytes, cut: int, data: st.DataObject
) -> None:
    """Arbitrary, shortened and extended bodies raise ``MalformedError`` and nothing else."""
    whole = encode(data.draw(MESSAGES[kind]))  # type: ignore[arg-type]
    for candidate in (body, whole + body, whole[: len(whole) - cut]):
        try:
            message = decode(kind, candidate)
        except MalformedError:
            assert candidate != whole
        else:
            assert encode(message) == candidate


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_field_has_a_default_or_may_be_missing(kind: type[Message]) -> None:
    """A default would give a message two encodings; every field is written."""
    assert all(field.required for field in msgspec.structs.fields(kind))
