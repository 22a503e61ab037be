"""HTTP message signatures between organisations: one strict profile of RFC 9421 with Ed25519.

docs/protocols/requests.md describes it for other implementations.

A request covers method, authority, path, query, content-type, content-digest (RFC 9530, also of an empty body),
the recipient's party id and the sender's policy epoch. A response covers status, content-type, content-digest
and the signature of the request it answers, so that it cannot be served for another one. The profile has one
label, one algorithm, one digest and no optional part: whatever differs is refused with a code.

Sans-I/O: the caller supplies the clock, the nonce and the durable replay store.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from crypto.errors import InvalidSignatureError
from crypto.signing import SIGNATURE_SIZE, SigningKey, verify_raw_signature
from governance.messages.codec import MEDIA_TYPE
from governance.messages.signature_fields import (
    LABEL,
    HttpSignatureError,
    check_visible,
    decode_base64,
    encode_base64,
    read_signature,
    read_signature_input,
    signature_base,
)

__all__ = [
    "HttpSignatureError",
    "RequestParts",
    "VerifiedHeaders",
    "VerifiedRequest",
    "collect_headers",
    "content_digest",
    "request_signature",
    "sign_request",
    "sign_response",
    "verify_headers",
    "verify_request",
    "verify_response",
]

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

_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_EPOCH = re.compile(r"0|[1-9][0-9]{0,14}")
_METHOD = re.compile(r"[A-Z]{1,16}")


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


@dataclass(frozen=True)
class VerifiedHeaders:
    """A request whose signature verifies and is in time, before its body is known; ``digest`` is the body's SHA-256."""

    party: str
    policy_epoch: int
    signature: bytes
    nonce: str
    expires: int
    digest: bytes

    def accept(self, body: bytes, remember: Callable[[str, str, int], bool]) -> VerifiedRequest:
        """The verified request, if ``body`` is the signed one and its nonce is new; else :class:`HttpSignatureError`.

        ``remember(party, nonce, expires)`` stores the nonce durably and returns False if it was there; keep each until
        a minute after ``expires``. It is called last, so only requests that verify can fill the store.
        """
        if not hmac.compare_digest(self.digest, hashlib.sha256(body).digest()):
            raise HttpSignatureError("wrong-digest", self.party, "the body is not the one that was signed")
        if not remember(self.party, self.nonce, self.expires):
            raise HttpSignatureError("replayed", self.party, "this nonce was used before", self.signature)
        return VerifiedRequest(self.party, self.policy_epoch, self.signature)


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
    return f"sha-256=:{encode_base64(hashlib.sha256(body).digest())}:"


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
        f';nonce="{encode_base64(nonce)}";keyid="{signer}";alg="{ALGORITHM}";tag="{TAG}"'
    )
    base = signature_base(REQUEST_COMPONENTS, _request_values(parts, headers, signer), covered)
    headers["signature-input"] = f"{LABEL}={covered}"
    headers["signature"] = f"{LABEL}=:{encode_base64(key.sign_raw(base))}:"
    return headers


def verify_headers(
    parts: RequestParts, *, recipient: str, verify_keys: Mapping[str, bytes], now: int
) -> VerifiedHeaders:
    """Verify all of a received request that does not need its body, or raise :class:`HttpSignatureError`.

    ``parts.body`` is not looked at: a server calls this before it reads the body, then :meth:`VerifiedHeaders.accept`
    with the body. ``recipient`` is the verifier's own party id, ``now`` unix seconds. The times are judged after the
    signature, so that an error about them carries a signature that verified.
    """
    covered, components, parameters = read_signature_input(parts.headers, REQUEST_PARAMETERS)
    party = parameters["keyid"]
    _check_components(components, REQUEST_COMPONENTS, party)
    _check_profile(parameters, party)
    verify_key = verify_keys.get(party)
    if verify_key is None:
        raise HttpSignatureError("unknown-party", party, "the key id is not a party on the membership roll")
    values = _request_values(parts, parts.headers, party)
    if parts.headers[RECIPIENT_HEADER] != recipient:
        raise HttpSignatureError(
            "wrong-recipient", party, f"this is {recipient}, not the recipient that was signed"
        )
    if not _EPOCH.fullmatch(parts.headers[POLICY_EPOCH_HEADER]):
        raise HttpSignatureError("malformed", party, f"{POLICY_EPOCH_HEADER} is not a decimal number")
    if len(decode_base64(parameters["nonce"], "nonce", party)) != NONCE_SIZE:
        raise HttpSignatureError("malformed", party, f"the nonce is not {NONCE_SIZE} bytes in base64")
    digest = _read_digest(parts.headers["content-digest"], party)
    signature = _verify(parts.headers, REQUEST_COMPONENTS, values, covered, verify_key, party)
    expires = _check_times(parameters, party, now, signature)
    return VerifiedHeaders(
        party=party,
        policy_epoch=int(parts.headers[POLICY_EPOCH_HEADER]),
        signature=signature,
        nonce=parameters["nonce"],
        expires=expires,
        digest=digest,
    )


def verify_request(
    parts: RequestParts,
    *,
    recipient: str,
    verify_keys: Mapping[str, bytes],
    remember: Callable[[str, str, int], bool],
    now: int,
) -> VerifiedRequest:
    """Verify everything about a received request, the body's digest included, or raise :class:`HttpSignatureError`.

    :func:`verify_headers` and :meth:`VerifiedHeaders.accept` in one, for a body that is there already.
    """
    verified = verify_headers(parts, recipient=recipient, verify_keys=verify_keys, now=now)
    return verified.accept(parts.body, remember)


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
    base = signature_base(RESPONSE_COMPONENTS, values, covered)
    headers["signature-input"] = f"{LABEL}={covered}"
    headers["signature"] = f"{LABEL}=:{encode_base64(key.sign_raw(base))}:"
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
    covered, components, parameters = read_signature_input(headers, RESPONSE_PARAMETERS)
    if parameters["keyid"] != signer:
        raise HttpSignatureError(
            "wrong-signer", parameters["keyid"], f"the answer should be signed by {signer}"
        )
    _check_components(components, RESPONSE_COMPONENTS, signer)
    _check_profile(parameters, signer)
    verify_key = verify_keys.get(signer)
    if verify_key is None:
        raise HttpSignatureError("unknown-party", signer, "the key id is not a party on the membership roll")
    values = _response_values(status, headers, request_signature, signer)
    _check_times(parameters, signer, now)
    if not hmac.compare_digest(
        _read_digest(headers["content-digest"], signer), hashlib.sha256(body).digest()
    ):
        raise HttpSignatureError("wrong-digest", signer, "the body is not the one that was signed")
    _verify(headers, RESPONSE_COMPONENTS, values, covered, verify_key, signer)


def request_signature(headers: Mapping[str, str]) -> bytes:
    """The 64 signature bytes in headers made by :func:`sign_request`; the client keeps them for the response."""
    return read_signature(headers, "")


def _request_values(parts: RequestParts, headers: Mapping[str, str], party: str) -> list[str]:
    if not _METHOD.fullmatch(parts.method):
        raise HttpSignatureError("malformed", party, "the method is not upper-case letters")
    if not parts.path.startswith("/"):
        raise HttpSignatureError("malformed", party, "the path does not start with a slash")
    derived = [parts.method, parts.authority.lower(), parts.path, f"?{parts.query}"]
    named = ("content-type", "content-digest", RECIPIENT_HEADER, POLICY_EPOCH_HEADER)
    return check_visible([*derived, *(_header(headers, name, party) for name in named)], party)


def _response_values(status: int, headers: Mapping[str, str], signature: bytes, party: str) -> list[str]:
    if len(signature) != SIGNATURE_SIZE:
        raise ValueError(f"a request signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    named = [_header(headers, name, party) for name in ("content-type", "content-digest")]
    return check_visible([str(status), *named, f":{encode_base64(signature)}:"], party)


def _header(headers: Mapping[str, str], name: str, party: str) -> str:
    value = headers.get(name)
    if value is None:
        raise HttpSignatureError("missing-header", party, f"header {name} is missing")
    return value


def _check_components(components: list[str], expected: tuple[str, ...], party: str) -> None:
    for component in expected:
        if component not in components:
            raise HttpSignatureError("missing-component", party, f"the signature does not cover {component}")
    if tuple(components) != expected:
        raise HttpSignatureError(
            "unexpected-component", party, "the covered components or their order differ"
        )


def _check_profile(parameters: Mapping[str, str], party: str) -> None:
    if parameters["alg"] != ALGORITHM:
        raise HttpSignatureError("wrong-algorithm", party, f"the only accepted algorithm is {ALGORITHM}")
    if parameters["tag"] != TAG:
        raise HttpSignatureError("wrong-tag", party, f"the signature is not tagged {TAG}")


def _check_times(parameters: Mapping[str, str], party: str, now: int, signature: bytes = b"") -> int:
    """When the message expires (unix seconds); ``signature`` goes into the error if it has verified."""
    created, expires = int(parameters["created"]), int(parameters["expires"])
    if not 0 < expires - created <= MAX_VALIDITY_SECONDS:
        raise HttpSignatureError(
            "validity-too-long",
            party,
            f"expires is not within {MAX_VALIDITY_SECONDS} s after created",
            signature,
        )
    if created > now + CLOCK_SKEW_SECONDS:
        raise HttpSignatureError(
            "not-yet-valid", party, f"created {created - now} s in the future", signature
        )
    if now >= expires:
        raise HttpSignatureError("expired", party, f"expired {now - expires} s ago", signature)
    return expires


def _read_digest(header: str, party: str) -> bytes:
    """The SHA-256 that a Content-Digest header names."""
    match = _DIGEST.fullmatch(header)
    if match is None:
        raise HttpSignatureError("malformed", party, "Content-Digest is not one sha-256 digest")
    return decode_base64(match[1], "Content-Digest", party)


def _verify(
    headers: Mapping[str, str],
    components: tuple[str, ...],
    values: list[str],
    covered: str,
    verify_key: bytes,
    party: str,
) -> bytes:
    signature = read_signature(headers, party)
    try:
        verify_raw_signature(verify_key, signature_base(components, values, covered), signature)
    except InvalidSignatureError as error:
        raise HttpSignatureError(
            "invalid-signature", party, "the Ed25519 signature does not verify"
        ) from error
    return signature
