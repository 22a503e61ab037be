"""HTTP message signatures between organisations: one strict profile of RFC 9421 with Ed25519 (docs/protocols/requests.md).

A request covers method, authority, path, query, content-type, content-digest (RFC 9530, also of an empty body),
the recipient's party id and the sender's policy epoch. A response covers status, content-type, content-digest
and the signature of the request it answers, so that it cannot be served for another one. The profile has one
label, one algorithm, one digest and no optional part: whatever differs is refused with a code.

Sans-I/O: the caller supplies the clock, the nonce and the durable replay store.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from crypto.errors import InvalidSignatureError
from crypto.signing import SIGNATURE_SIZE, SigningKey, verify_raw_signature
from governance.messages.codec import MEDIA_TYPE

LABEL = "subrosa"
TAG = "subrosa-v1"
ALGORITHM = "ed25519"
MAX_VALIDITY_SECONDS = 60
CLOCK_SKEW_SECONDS = 5
NONCE_SIZE = 16

RECIPIENT_HEADER = "subrosa-recipient"
POLICY_EPOCH_HEADER = "subrosa-policy-epoch"
REQUEST_COMPONENTS = (
    '"@method"',
    '"@authority"',
    '"@path"',
    '"@query"',
    '"content-type"',
    '"content-digest"',
    f'"{RECIPIENT_HEADER}"',
    f'"{POLICY_EPOCH_HEADER}"',
)
RESPONSE_COMPONENTS = (
    '"@status"',
    '"content-type"',
    '"content-digest"',
    f'"signature";req;key="{LABEL}"',
)
REQUEST_PARAMETERS = frozenset({"created", "expires", "nonce", "keyid", "alg", "tag"})
RESPONSE_PARAMETERS = REQUEST_PARAMETERS - {"nonce"}
SIGNED_HEADERS = frozenset(
    {"content-type", "content-digest", RECIPIENT_HEADER, POLICY_EPOCH_HEADER, "signature-input", "signature"}
)

# The subset of RFC 8941 that this profile writes, in its canonical serialisation only: the text that was
# received is the text that was signed, so nothing is parsed and written again.
_COMPONENT = r'"[a-z0-9@-]{1,64}"(?:;[a-z]{1,16}(?:="[a-z0-9-]{1,32}")?)*'
_PARAMETER = r';[a-z]{1,16}=(?:[0-9]{1,15}|"[ !#-\[\]-~]{0,128}")'
_SIGNATURE_INPUT = re.compile(
    rf"{LABEL}=(\((?P<components>{_COMPONENT}(?: {_COMPONENT})*)?\)(?P<parameters>(?:{_PARAMETER})*))"
)
_SIGNATURE = re.compile(rf"{LABEL}=:([A-Za-z0-9+/]{{86}}==):")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_EPOCH = re.compile(r"0|[1-9][0-9]{0,14}")
_METHOD = re.compile(r"[A-Z]{1,16}")
_VISIBLE = re.compile(r"[!-~]+(?:[ -~]*[!-~])?")


class HttpSignatureError(Exception):
    """A request or response is refused before its body is read. ``code`` is stable, ``party`` as claimed ("" if none)."""

    def __init__(self, code: str, party: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" + (f" (party {party})" if party else ""))
        self.code = code
        self.party = party
        self.detail = detail


@dataclass(frozen=True)
class RequestParts:
    """A request as it is on the wire: ``path`` percent-encoded, ``query`` without "?", header names in lower case."""

    method: str
    authority: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class VerifiedRequest:
    """Who sent the request, the policy epoch it decides by, and its signature (64 bytes) for the response to bind."""

    party: str
    policy_epoch: int
    signature: bytes


def collect_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header lines as a mapping with lower-case names; a signed header that occurs twice is refused."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            if name in SIGNED_HEADERS:
                raise HttpSignatureError("duplicate-header", "", f"header {name} occurs twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def content_digest(body: bytes) -> str:
    """The ``Content-Digest`` value (RFC 9530) of ``body``."""
    return f"sha-256=:{_base64(hashlib.sha256(body).digest())}:"


def sign_request(
    parts: RequestParts,
    *,
    signer: str,
    key: SigningKey,
    recipient: str,
    policy_epoch: int,
    now: int,
    nonce: bytes,
    validity: int = MAX_VALIDITY_SECONDS,
) -> dict[str, str]:
    """The headers to add to the request (six, content-type included).

    ``now`` in unix seconds, ``nonce`` 16 fresh random bytes, ``validity`` in seconds (1..60).
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    if not 1 <= validity <= MAX_VALIDITY_SECONDS:
        raise ValueError(f"validity is 1..{MAX_VALIDITY_SECONDS} seconds, not {validity}")
    headers = {
        "content-type": parts.headers.get("content-type", MEDIA_TYPE),
        "content-digest": content_digest(parts.body),
        RECIPIENT_HEADER: recipient,
        POLICY_EPOCH_HEADER: str(policy_epoch),
    }
    covered = (
        f"({' '.join(REQUEST_COMPONENTS)});created={now};expires={now + validity}"
        f';nonce="{_base64(nonce)}";keyid="{signer}";alg="{ALGORITHM}";tag="{TAG}"'
    )
    base = _signature_base(REQUEST_COMPONENTS, _request_values(parts, headers, signer), covered)
    headers["signature-input"] = f"{LABEL}={covered}"
    headers["signature"] = f"{LABEL}=:{_base64(key.sign_raw(base))}:"
    return headers


def verify_request(
    parts: RequestParts,
    *,
    recipient: str,
    verify_keys: Mapping[str, bytes],
    remember: Callable[[str, str, int], bool],
    now: int,
) -> VerifiedRequest:
    """Verify everything about a received request, the body's digest included, or raise :class:`HttpSignatureError`.

    ``recipient`` is the verifier's own party id. ``remember(party, nonce, expires)`` stores the nonce durably and
    returns False if it was there; keep each until a minute after ``expires``. It is called last, so only requests
    with a valid signature can fill the store.
    """
    covered, components, parameters = _read_signature_input(parts.headers, REQUEST_PARAMETERS)
    party = parameters["keyid"]
    _check_components(components, REQUEST_COMPONENTS, party)
    _check_profile(parameters, party)
    verify_key = verify_keys.get(party)
    if verify_key is None:
        raise HttpSignatureError("unknown-party", party, "the key id is not a party on the membership roll")
    values = _request_values(parts, parts.headers, party)
    if parts.headers[RECIPIENT_HEADER] != recipient:
        raise HttpSignatureError("wrong-recipient", party, f"this is {recipient}, not the recipient that was signed")
    if not _EPOCH.fullmatch(parts.headers[POLICY_EPOCH_HEADER]):
        raise HttpSignatureError("malformed", party, f"{POLICY_EPOCH_HEADER} is not a decimal number")
    if len(_decode_base64(parameters["nonce"], "nonce", party)) != NONCE_SIZE:
        raise HttpSignatureError("malformed", party, f"the nonce is not {NONCE_SIZE} bytes in base64")
    expires = _check_times(parameters, party, now)
    _check_digest(parts.headers["content-digest"], parts.body, party)
    signature = _verify(parts.headers, REQUEST_COMPONENTS, values, covered, verify_key, party)
    if not remember(party, parameters["nonce"], expires):
        raise HttpSignatureError("replayed", party, "this nonce was used before")
    return VerifiedRequest(party, int(parts.headers[POLICY_EPOCH_HEADER]), signature)


def sign_response(
    status: int,
    content_type: str,
    body: bytes,
    request_signature: bytes,
    *,
    signer: str,
    key: SigningKey,
    now: int,
) -> dict[str, str]:
    """The headers of the response (four) to the request whose 64-byte signature is given; ``now`` in unix seconds."""
    headers = {"content-type": content_type, "content-digest": content_digest(body)}
    covered = (
        f"({' '.join(RESPONSE_COMPONENTS)});created={now};expires={now + MAX_VALIDITY_SECONDS}"
        f';keyid="{signer}";alg="{ALGORITHM}";tag="{TAG}"'
    )
    values = _response_values(status, headers, request_signature, signer)
    base = _signature_base(RESPONSE_COMPONENTS, values, covered)
    headers["signature-input"] = f"{LABEL}={covered}"
    headers["signature"] = f"{LABEL}=:{_base64(key.sign_raw(base))}:"
    return headers


def verify_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_signature: bytes,
    *,
    signer: str,
    verify_keys: Mapping[str, bytes],
    now: int,
) -> None:
    """Verify that ``signer`` gave this response to exactly that request, or raise :class:`HttpSignatureError`."""
    covered, components, parameters = _read_signature_input(headers, RESPONSE_PARAMETERS)
    if parameters["keyid"] != signer:
        raise HttpSignatureError("wrong-signer", parameters["keyid"], f"the answer should be signed by {signer}")
    _check_components(components, RESPONSE_COMPONENTS, signer)
    _check_profile(parameters, signer)
    verify_key = verify_keys.get(signer)
    if verify_key is None:
        raise HttpSignatureError("unknown-party", signer, "the key id is not a party on the membership roll")
    values = _response_values(status, headers, request_signature, signer)
    _check_times(parameters, signer, now)
    _check_digest(headers["content-digest"], body, signer)
    _verify(headers, RESPONSE_COMPONENTS, values, covered, verify_key, signer)


def request_signature(headers: Mapping[str, str]) -> bytes:
    """The 64 signature bytes in headers made by :func:`sign_request`; the client keeps them for the response."""
    return _read_signature(headers, "")


def _request_values(parts: RequestParts, headers: Mapping[str, str], party: str) -> list[str]:
    if not _METHOD.fullmatch(parts.method):
        raise HttpSignatureError("malformed", party, "the method is not upper-case letters")
    if not parts.path.startswith("/"):
        raise HttpSignatureError("malformed", party, "the path does not start with a slash")
    derived = [parts.method, parts.authority.lower(), parts.path, f"?{parts.query}"]
    named = ("content-type", "content-digest", RECIPIENT_HEADER, POLICY_EPOCH_HEADER)
    return _one_line([*derived, *(_header(headers, name, party) for name in named)], party)


def _response_values(status: int, headers: Mapping[str, str], signature: bytes, party: str) -> list[str]:
    if len(signature) != SIGNATURE_SIZE:
        raise ValueError(f"a request signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    named = [_header(headers, name, party) for name in ("content-type", "content-digest")]
    return _one_line([str(status), *named, f":{_base64(signature)}:"], party)


def _one_line(values: list[str], party: str) -> list[str]:
    """Refuse what could add a line to the signature base, or be read differently by another implementation."""
    for value in values:
        if not _VISIBLE.fullmatch(value):
            raise HttpSignatureError("malformed", party, "a signed value is not visible ASCII on one line")
    return values


def _header(headers: Mapping[str, str], name: str, party: str) -> str:
    value = headers.get(name)
    if value is None:
        raise HttpSignatureError("missing-header", party, f"header {name} is missing")
    return value


def _signature_base(components: Iterable[str], values: Iterable[str], covered: str) -> bytes:
    """RFC 9421 section 2.5."""
    lines = [f"{component}: {value}" for component, value in zip(components, values, strict=True)]
    return "\n".join([*lines, f'"@signature-params": {covered}']).encode("ascii")


def _read_signature_input(
    headers: Mapping[str, str], required: frozenset[str]
) -> tuple[str, list[str], dict[str, str]]:
    text = headers.get("signature-input")
    if text is None or "signature" not in headers:
        raise HttpSignatureError("unsigned", "", "the message has no signature")
    match = _SIGNATURE_INPUT.fullmatch(text) if len(text) <= 2048 else None
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
        raise HttpSignatureError("unexpected-parameter", party, f"signature parameter {name} is not in the profile")
    for name, value in parameters.items():
        if value.startswith('"') == (name in {"created", "expires"}):
            raise HttpSignatureError("malformed", party, f"signature parameter {name} has the wrong type")
    components = re.findall(_COMPONENT, match["components"] or "")
    return match[1], components, {name: value.strip('"') for name, value in parameters.items()}


def _check_components(components: list[str], expected: tuple[str, ...], party: str) -> None:
    for component in expected:
        if component not in components:
            raise HttpSignatureError("missing-component", party, f"the signature does not cover {component}")
    if tuple(components) != expected:
        raise HttpSignatureError("unexpected-component", party, "the covered components or their order differ")


def _check_profile(parameters: Mapping[str, str], party: str) -> None:
    if parameters["alg"] != ALGORITHM:
        raise HttpSignatureError("wrong-algorithm", party, f"the only accepted algorithm is {ALGORITHM}")
    if parameters["tag"] != TAG:
        raise HttpSignatureError("wrong-tag", party, f"the signature is not tagged {TAG}")


def _check_times(parameters: Mapping[str, str], party: str, now: int) -> int:
    created, expires = int(parameters["created"]), int(parameters["expires"])
    if not 0 < expires - created <= MAX_VALIDITY_SECONDS:
        raise HttpSignatureError(
            "validity-too-long", party, f"expires is not within {MAX_VALIDITY_SECONDS} s after created"
        )
    if created > now + CLOCK_SKEW_SECONDS:
        raise HttpSignatureError("not-yet-valid", party, f"created {created - now} s in the future")
    if now >= expires:
        raise HttpSignatureError("expired", party, f"expired {now - expires} s ago")
    return expires


def _check_digest(header: str, body: bytes, party: str) -> None:
    match = _DIGEST.fullmatch(header)
    if match is None:
        raise HttpSignatureError("malformed", party, "Content-Digest is not one sha-256 digest")
    expected = _decode_base64(match[1], "Content-Digest", party)
    if not hmac.compare_digest(expected, hashlib.sha256(body).digest()):
        raise HttpSignatureError("wrong-digest", party, "the body is not the one that was signed")


def _verify(
    headers: Mapping[str, str],
    components: tuple[str, ...],
    values: list[str],
    covered: str,
    verify_key: bytes,
    party: str,
) -> bytes:
    signature = _read_signature(headers, party)
    try:
        verify_raw_signature(verify_key, _signature_base(components, values, covered), signature)
    except InvalidSignatureError as error:
        raise HttpSignatureError("invalid-signature", party, "the Ed25519 signature does not verify") from error
    return signature


def _read_signature(headers: Mapping[str, str], party: str) -> bytes:
    match = _SIGNATURE.fullmatch(headers.get("signature", ""))
    if match is None:
        raise HttpSignatureError("malformed", party, f"Signature is not one {LABEL!r} signature of 64 bytes")
    return _decode_base64(match[1], "Signature", party)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode_base64(text: str, what: str, party: str) -> bytes:
    """Strict base64: the one spelling only, so that stray bits cannot make two texts of one nonce."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HttpSignatureError("malformed", party, f"{what} is not base64") from error
    if _base64(raw) != text:
        raise HttpSignatureError("malformed", party, f"{what} is not canonical base64")
    return raw
