"""Normal forms: what banks write differently becomes the same bytes, and no error repeats a value."""

from __future__ import annotations

import sys
import traceback
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.indicators import (
    ALL_KIND_GROUPS,
    KIND_GROUPS,
    InvalidIndicatorError,
    Kind,
    NormalForm,
    kind_group,
    normalise,
    normalise_batch,
    oprf_input,
)


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (
            "account",
            ["4711-0815", "4711 0815", "4711.0815", " 47110815\t", "４７１１0815", "٤٧١١٠٨١٥"],
            "47110815",
        ),
        ("account", ["ab-12/c", "AB 12 C", "ａｂ１２ｃ"], "AB12C"),
        ("account", ["straße1", "STRASSE1"], "STRASSE1"),
        ("terminal", ["0042", "00-42"], "0042"),
        ("terminal", ["t 1", "T1"], "T1"),
        ("merchant", ["shop_7", "SHOP7"], "SHOP7"),
        (
            "iban",
            ["DE89 3704 0044 0532 0130 00", "de89370400440532013000", "DE89-3704-0044-0532-0130-00"],
            "DE89370400440532013000",
        ),
        ("iban", ["GB29 NWBK 6016 1331 9268 19"], "GB29NWBK60161331926819"),
        (
            "phone",
            ["+49 30 1234567", "0049 30 1234567", "+49 (30) 123-45-67", "＋49301234567"],
            "+49301234567",
        ),
        ("phone", ["+39 06 1234 5678"], "+390612345678"),
        ("phone", ["+1 212 555 0100 ext. 7", "+12125550100"], "+12125550100"),
        (
            "device",
            [
                "123E4567-E89B-12D3-A456-426614174000",
                "{123e4567-e89b-12d3-a456-426614174000}",
                "123e4567e89b12d3a456426614174000",
            ],
            "123e4567e89b12d3a456426614174000",
        ),
        ("device", ["00:1B:44:11:3A:B7", "00-1b-44-11-3a-b7"], "001b44113ab7"),
        ("device", ["49-015420-323751-8", "490154203237518"], "490154203237518"),
        ("device", [" Ab3dE_f-9XyZ0 "], "Ab3dE_f-9XyZ0"),
        (
            "email_domain",
            ["Example.COM", "someone@example.com", "example.com.", '"a@b"@Example.com'],
            "example.com",
        ),
        (
            "email_domain",
            ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example"],
            "xn--bcher-kva.example",
        ),
        ("email_domain", ["例え。jp"], "xn--r8jz45g.jp"),
    ],
)
def test_spellings_of_one_thing_have_one_normal_form(kind: str, values: list[str], text: str) -> None:
    assert {normalise(kind, value).text for value in values} == {text}
    assert normalise(kind, text).text == text


SECRET = "Zq7SECRET"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("account", ""),
        ("account", " - "),
        ("account", SECRET + "€"),
        ("account", SECRET * 20),
        ("account", SECRET + "\x00"),
        ("account", SECRET + "\u200b"),
        ("account", SECRET + "\u0301\u0316"),
        ("terminal", SECRET + "*"),
        ("merchant", SECRET + "&Co"),
        ("iban", "DE88 3704 0044 0532 0130 00"),
        ("iban", SECRET),
        ("iban", "ZZ" + SECRET),
        ("iban", "ДЕ89370400440532013000"),
        ("iban", "DE8937040044053201300"),
        ("phone", "030 1234567"),
        ("phone", "+"),
        ("phone", "+999 1234567"),
        ("phone", "+49 1"),
        ("phone", SECRET),
        ("phone", "+" + SECRET),
        ("device", "short"),
        ("device", SECRET + " with blanks"),
        ("device", "49-015420-323751-9"),
        ("device", SECRET * 20),
        ("device", SECRET + "é"),
        ("email_domain", ""),
        ("email_domain", "localhost"),
        ("email_domain", SECRET + "_x.example"),
        ("email_domain", "-a.example"),
        ("email_domain", "a..example"),
        ("email_domain", "127.0.0.1"),
        ("email_domain", "xn--" + SECRET + ".example"),
        ("email_domain", "x" * 64 + ".example"),
        ("email_domain", ".".join(["a" * 60] * 5)),
        ("email_domain", SECRET + "@"),
    ],
)
def test_what_has_no_normal_form_is_refused_without_repeating_it(kind: str, value: str) -> None:
    with pytest.raises(InvalidIndicatorError) as caught:
        normalise(kind, value)
    error = caught.value
    assert error.kind == kind
    assert error.__cause__ is None
    assert error.__context__ is None  # the libraries' exceptions quote the value
    printed = "".join(traceback.format_exception_only(error))
    stripped = value.strip()
    assert len(stripped) < 4 or stripped.lower() not in printed.lower()
    assert SECRET.lower() not in printed.lower()


def test_every_letter_and_digit_of_unicode_has_one_stable_account_form() -> None:
    """Upper case and composition could undo each other: for no character do they, and this stays so."""
    changing = [
        char
        for char in map(chr, range(0x80, sys.maxunicode + 1))
        if char.isalnum() and (char.upper() != char or unicodedata.normalize("NFKC", char) != char)
    ]
    assert len(changing) > 5000
    for form in normalise_batch("account", changing):
        if isinstance(form, NormalForm):
            assert normalise("account", form.text) == form


def test_wrong_types_and_kinds() -> None:
    with pytest.raises(InvalidIndicatorError, match="not text"):
        normalise("account", 4711)  # type: ignore[arg-type]
    for kind in ("shoe", SECRET, ""):
        with pytest.raises(InvalidIndicatorError, match="the kind is unknown") as caught:
            normalise(kind, "1")
        assert SECRET not in str(caught.value)
        with pytest.raises(InvalidIndicatorError):
            kind_group(kind)
        with pytest.raises(InvalidIndicatorError):
            normalise_batch(kind, [])


def test_a_normal_form_does_not_print() -> None:
    assert SECRET.upper() not in repr(normalise("account", SECRET))


def test_a_batch_keeps_its_order_and_the_good_values() -> None:
    first, second, third = normalise_batch("terminal", ["a1", "a*", "A 1"])
    assert first == third == NormalForm(Kind.TERMINAL, "A1")
    assert isinstance(second, InvalidIndicatorError)


def test_every_kind_has_a_group() -> None:
    assert set(KIND_GROUPS) == set(Kind)
    assert ALL_KIND_GROUPS == ("accounts", "contacts", "devices", "terminals")
    assert kind_group("merchant") == kind_group("terminal") == "terminals"


def test_oprf_input_is_length_prefixed() -> None:
    assert oprf_input(NormalForm(Kind.TERMINAL, "42")) == b"\0\x0asubrosa/v1\0\x08terminal\0\x0242"


@given(st.sampled_from(list(Kind)), st.text(max_size=40))
def test_normal_forms_are_stable_and_refusals_are_typed(kind: Kind, value: str) -> None:
    try:
        form = normalise(kind, value)
    except InvalidIndicatorError:
        return
    assert normalise(kind, form.text) == form
    assert form.text == unicodedata.normalize("NFKC", form.text)
    assert oprf_input(form)


@given(
    st.text(alphabet="abcXYZ0189", min_size=1, max_size=30), st.lists(st.sampled_from(" -./_"), max_size=6)
)
def test_separators_and_case_never_matter(value: str, separators: list[str]) -> None:
    spelled = "".join(char + (separators[i] if i < len(separators) else "") for i, char in enumerate(value))
    assert normalise("account", spelled.lower()).text == normalise("account", value.upper()).text


@given(
    st.sampled_from(list(Kind)),
    st.sampled_from(list(Kind)),
    st.text("AB12", max_size=5),
    st.text("AB12", max_size=5),
)
def test_different_indicators_have_different_inputs(a: Kind, b: Kind, x: str, y: str) -> None:
    same = (a, x) == (b, y)
    assert (oprf_input(NormalForm(a, x)) == oprf_input(NormalForm(b, y))) == same
