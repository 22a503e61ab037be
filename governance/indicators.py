"""Kinds of indicators and their normal forms: all banks must turn the same thing into the same bytes.

A normal form is the input of the OPRF, so a change here changes tags: it needs a new ``NORMAL_FORMS_VERSION``, which
the membership roll names per epoch. No error and no ``repr`` contains a value, not even in a chained exception:
the libraries below quote what they refuse, so their exceptions are dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import idna
import phonenumbers
from schwifty import IBAN
from schwifty.exceptions import SchwiftyException
from stdnum import imei

NORMAL_FORMS_VERSION = 1
MAX_VALUE_CHARACTERS = 256
MAX_ACCOUNT_CHARACTERS = 64

_OPRF_DOMAIN = b"subrosa/v1"


class Kind(StrEnum):
    """What an indicator is a value of."""

    ACCOUNT = "account"
    IBAN = "iban"
    PHONE = "phone"
    DEVICE = "device"
    EMAIL_DOMAIN = "email_domain"
    TERMINAL = "terminal"
    MERCHANT = "merchant"


# A key holder sees the group of a blinded element, never its kind: keys, budgets and scopes are per group.
KIND_GROUPS: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.ACCOUNT: "accounts",
        Kind.IBAN: "accounts",
        Kind.PHONE: "contacts",
        Kind.EMAIL_DOMAIN: "contacts",
        Kind.DEVICE: "devices",
        Kind.TERMINAL: "terminals",
        Kind.MERCHANT: "terminals",
    }
)
ALL_KIND_GROUPS: tuple[str, ...] = tuple(sorted(set(KIND_GROUPS.values())))


class InvalidIndicatorError(ValueError):
    """A value has no normal form. ``reason`` never repeats the value."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NormalForm:
    """The canonical text of an indicator. It is as secret as the value, so it does not print."""

    kind: Kind
    text: str = field(repr=False)


def kind_group(kind: str) -> str:
    """The kind group of ``kind``; raises :class:`InvalidIndicatorError` for an unknown kind."""
    return KIND_GROUPS[_known(kind)]


def normalise(kind: str, value: str) -> NormalForm:
    """The normal form of ``value``; raises :class:`InvalidIndicatorError`."""
    known = _known(kind)
    return NormalForm(known, _checked(known, value, _NORMALISERS[known]))


def normalise_batch(kind: str, values: Sequence[str]) -> list[NormalForm | InvalidIndicatorError]:
    """Normal forms in the order of ``values``; a refused value gives its error in its place."""
    known = _known(kind)
    normaliser = _NORMALISERS[known]
    result: list[NormalForm | InvalidIndicatorError] = []
    for value in values:
        try:
            result.append(NormalForm(known, _checked(known, value, normaliser)))
        except InvalidIndicatorError as error:
            result.append(error)
    return result


def oprf_input(form: NormalForm) -> bytes:
    """The OPRF's input: ``"subrosa/v1"``, kind and normal form, each after its length in two bytes (big-endian)."""
    parts = (_OPRF_DOMAIN, form.kind.encode(), form.text.encode())
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _known(kind: str) -> Kind:
    if kind not in Kind._value2member_map_:
        raise InvalidIndicatorError("indicator", "the kind is unknown")
    return Kind(kind)


def _checked(kind: Kind, value: str, normaliser: Callable[[str], str]) -> str:
    if not isinstance(value, str):
        raise InvalidIndicatorError(kind, "the value is not text")
    if len(value) > MAX_VALUE_CHARACTERS:
        raise InvalidIndicatorError(kind, f"the value is longer than {MAX_VALUE_CHARACTERS} characters")
    return normaliser(value)


_SEPARATORS = re.compile(r"[\s\-./_:,]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _account_text(kind: Kind, value: str) -> str:
    """Formats nobody has standardised: NFKC, upper case, separators removed, decimal digits in ASCII."""
    if value.isascii() and value.isalnum() and len(value) <= MAX_ACCOUNT_CHARACTERS:
        return value.upper()
    text = _fold(value)
    if not text:
        raise InvalidIndicatorError(kind, "the value is empty")
    if not text.isalnum():
        raise InvalidIndicatorError(
            kind, "the value has characters other than letters, digits and separators"
        )
    if len(text) > MAX_ACCOUNT_CHARACTERS:
        raise InvalidIndicatorError(
            kind, f"the value has more than {MAX_ACCOUNT_CHARACTERS} letters and digits"
        )
    return text


def _fold(value: str) -> str:
    text = unicodedata.normalize("NFKC", value)
    text = unicodedata.normalize("NFKC", _SEPARATORS.sub("", text).upper())
    if text.isascii():
        return text
    return "".join(str(digit) if (digit := unicodedata.decimal(char, -1)) >= 0 else char for char in text)


def _normalise_account(value: str) -> str:
    return _account_text(Kind.ACCOUNT, value)


def _normalise_terminal(value: str) -> str:
    return _account_text(Kind.TERMINAL, value)


def _normalise_merchant(value: str) -> str:
    return _account_text(Kind.MERCHANT, value)


def _normalise_iban(value: str) -> str:
    """ISO 13616: country's length and structure and the check digits are right; compact upper-case form."""
    text = _fold(value)
    try:
        compact: str | None = str(IBAN(text).compact) if text.isascii() else None
    except SchwiftyException:
        compact = None
    if compact is None:
        raise InvalidIndicatorError(
            Kind.IBAN, "not a valid IBAN (country, length, structure or check digits)"
        )
    return compact


def _normalise_phone(value: str) -> str:
    """E.164 from an international number ("+" or "00" first). An extension is dropped: it is not part of E.164."""
    text = unicodedata.normalize("NFKC", value).strip()
    if text.startswith("00"):
        text = "+" + text[2:]
    if not text.startswith("+"):
        raise InvalidIndicatorError(
            Kind.PHONE, "not in international form (start with + and the country code)"
        )
    try:
        number: phonenumbers.PhoneNumber | None = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        number = None
    # possible, not valid: assigned ranges change with every release of the metadata, and banks' versions differ
    if number is None or not phonenumbers.is_possible_number(number):
        raise InvalidIndicatorError(Kind.PHONE, "not a possible phone number")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


_HEX_DEVICE = re.compile(r"\{?[0-9A-Fa-f]+(?:[-:. ][0-9A-Fa-f]+)*\}?")
_HEX_SEPARATORS = re.compile(r"[-:. {}]")
_IMEI = re.compile(r"[0-9]{2}[- ]?[0-9]{6}[- ]?[0-9]{6}[- ]?[0-9]")
_OPAQUE_DEVICE = re.compile(r"[A-Za-z0-9._~+/=:-]{8,128}")
_MIN_HEX_DEVICE = 12


def _normalise_device(value: str) -> str:
    """Device ids: UUID, MAC and other hexadecimal ids in lower case without separators; others keep their case."""
    text = unicodedata.normalize("NFKC", value).strip()
    if _HEX_DEVICE.fullmatch(text):
        digits = _HEX_SEPARATORS.sub("", text).lower()
        if _IMEI.fullmatch(text) and not imei.is_valid(digits):
            raise InvalidIndicatorError(
                Kind.DEVICE, "fifteen digits, but the check digit of the IMEI is wrong"
            )
        if _MIN_HEX_DEVICE <= len(digits) <= 128:
            return digits
    if not _OPAQUE_DEVICE.fullmatch(text):
        raise InvalidIndicatorError(
            Kind.DEVICE, "not 8 to 128 characters of letters, digits and . _ ~ + / = : -"
        )
    return text


_PLAIN_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])")
MAX_DOMAIN_CHARACTERS = 253


def _normalise_email_domain(value: str) -> str:
    """A domain in its ASCII form (IDNA 2008 after UTS 46); of an address only what follows the last "@" is used."""
    text = value.rpartition("@")[2].strip().removesuffix(".")
    lowered = text.lower()
    if lowered.isascii() and "--" not in lowered and len(lowered) <= MAX_DOMAIN_CHARACTERS:
        if _PLAIN_DOMAIN.fullmatch(lowered):
            return lowered
        encoded = None
    else:
        try:
            encoded = idna.encode(text, uts46=True, std3_rules=True).decode("ascii").removesuffix(".")
        except (idna.IDNAError, UnicodeError):
            encoded = None
    if encoded is None or not _PLAIN_DOMAIN.fullmatch(encoded) or len(encoded) > MAX_DOMAIN_CHARACTERS:
        raise InvalidIndicatorError(Kind.EMAIL_DOMAIN, "not a registrable internet domain name")
    return encoded


_NORMALISERS: Mapping[Kind, Callable[[str], str]] = MappingProxyType(
    {
        Kind.ACCOUNT: _normalise_account,
        Kind.IBAN: _normalise_iban,
        Kind.PHONE: _normalise_phone,
        Kind.DEVICE: _normalise_device,
        Kind.EMAIL_DOMAIN: _normalise_email_domain,
        Kind.TERMINAL: _normalise_terminal,
        Kind.MERCHANT: _normalise_merchant,
    }
)
