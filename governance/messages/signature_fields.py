"""Reading and writing the fields of an HTTP message signature: the subset of RFC 9421 that this protocol uses.

The subset of structured fields (RFC 8941) is read in its canonical serialisation only. The text that was received
is the text that was signed, so nothing is parsed and written again, where two parsers could differ.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping

LABEL = "subrosa"
MAX_SIGNATURE_INPUT_CHARACTERS = 2048

_COMPONENT = r'"[a-z0-9@-]{1,64}"(?:;[a-z]{1,16}(?:="[a-z0-9-]{1,32}")?)*'
_PARAMETER = r';[a-z]{1,16}=(?:[0-9]{1,15}|"[ !#-\[\]-~]{0,128}")'
_SIGNATURE_INPUT = re.compile(
    rf"{LABEL}=(\((?P<components>{_COMPONENT}(?: {_COMPONENT})*)?\)(?P<parameters>(?:{_PARAMETER})*))"
)
_SIGNATURE = re.compile(rf"{LABEL}=:([A-Za-z0-9+/]{{86}}==):")
# One character, then one greedy run: a header of 60 kB with a bad end must not cost quadratic time.
_VISIBLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_INTEGERS = frozenset({"created", "expires"})


class HttpSignatureError(Exception):
    """A request or response is refused before its body is read.

    ``code`` is stable (a row of ``problems``), ``party`` the claimed signer, "" if there is none. ``signature`` is
    the request's if it did verify and only time or nonce refuse it: no other problem may be bound to it, because
    whoever relays a signature with another body would get an answer that seems to be one to the sender's own request.
    """

    def __init__(self, code: str, party: str, detail: str, signature: bytes = b"") -> None:
        super().__init__(f"{code}: {detail}" + (f" (party {party})" if party else ""))
        self.code = code
        self.party = party
        self.detail = detail
        self.signature = signature


def read_signature_input(
    headers: Mapping[str, str], required: frozenset[str]
) -> tuple[str, list[str], dict[str, str]]:
    """The text of components and parameters, the components, and exactly the ``required`` parameters by name."""
    text = headers.get("signature-input")
    if text is None or "signature" not in headers:
        raise HttpSignatureError("unsigned", "", "the message has no signature")
    match = _SIGNATURE_INPUT.fullmatch(text) if len(text) <= MAX_SIGNATURE_INPUT_CHARACTERS else None
    if match is None:
        raise HttpSignatureError("malformed", "", f"Signature-Input is not one canonical {LABEL!r} signature")
    parameters: dict[str, str] = {}
    for parameter in re.findall(_PARAMETER, match["parameters"]):
        name, _, value = parameter[1:].partition("=")
        if name in parameters:
            raise HttpSignatureError("malformed", "", f"signature parameter {name} occurs twice")
        parameters[name] = value
    party = parameters.get("keyid", "").strip('"')
    for name in sorted(required - parameters.keys()):
        raise HttpSignatureError("missing-parameter", party, f"signature parameter {name} is missing")
    for name in sorted(parameters.keys() - required):
        raise HttpSignatureError(
            "unexpected-parameter", party, f"signature parameter {name} is not in the profile"
        )
    for name, value in parameters.items():
        if value.startswith('"') == (name in _INTEGERS):
            raise HttpSignatureError("malformed", party, f"signature parameter {name} has the wrong type")
    components = re.findall(_COMPONENT, match["components"] or "")
    return match[1], components, {name: value.strip('"') for name, value in parameters.items()}


def read_signature(headers: Mapping[str, str], party: str) -> bytes:
    """The 64 signature bytes of ``party``."""
    match = _SIGNATURE.fullmatch(headers.get("signature", ""))
    if match is None:
        raise HttpSignatureError("malformed", party, f"Signature is not one {LABEL!r} signature of 64 bytes")
    return decode_base64(match[1], "Signature", party)


def signature_base(components: Iterable[str], values: Iterable[str], covered: str) -> bytes:
    """RFC 9421 section 2.5; ``covered`` is the text of the components and parameters."""
    lines = [f"{component}: {value}" for component, value in zip(components, values, strict=True)]
    return "\n".join([*lines, f'"@signature-params": {covered}']).encode("ascii")


def check_visible(values: list[str], party: str) -> list[str]:
    """Refuse what could add a line to the signature base, or be read differently by another implementation."""
    for value in values:
        if not _VISIBLE.fullmatch(value):
            raise HttpSignatureError("malformed", party, "a signed value is not visible ASCII on one line")
    return values


def encode_base64(raw: bytes) -> str:
    """Base64 with padding (RFC 4648 section 4), as structured fields write bytes."""
    return base64.b64encode(raw).decode("ascii")


def decode_base64(text: str, what: str, party: str) -> bytes:
    """Strict base64: the one spelling only, so that stray bits cannot make two texts of one nonce."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HttpSignatureError("malformed", party, f"{what} is not base64") from error
    if encode_base64(raw) != text:
        raise HttpSignatureError("malformed", party, f"{what} is not canonical base64")
    return raw
