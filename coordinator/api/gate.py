"""The one way in: verify who asks, read at most so many bytes, act, sign what goes back.

The signature covers the body's digest, so it is verified before the body is read: whoever is not on the roll has
nothing of its own in memory here. Every failure becomes a problem document here and nowhere else. It is signed only
when the whole request verified, or all of it but its times or nonce: an answer bound to a signature is evidence of
what its owner asked, and a signature can be relayed with another body.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import anyio
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from crypto.errors import CryptoError
from crypto.signing import SigningKey
from governance.inquiries import InquiryError
from governance.log.entries import MalformedEntryError
from governance.members import MembershipError
from governance.messages.codec import MEDIA_TYPE, MalformedError, Message, encode
from governance.messages.http_signatures import (
    HttpSignatureError,
    RequestParts,
    VerifiedHeaders,
    VerifiedRequest,
    collect_headers,
    sign_response,
    verify_headers,
)
from governance.messages.problems import PROBLEM_MEDIA_TYPE, RequestError, problem_for
from governance.policy.decision import PolicyError, RefusedError

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0

EXPECTED = (
    CryptoError,
    HttpSignatureError,
    InquiryError,
    MalformedError,
    MembershipError,
    PolicyError,
    RefusedError,
    RequestError,
)


@dataclass(frozen=True)
class Arrival:
    """A request as it came: who signed its headers (None: not verified), or why it was not read to its end."""

    parts: RequestParts
    sender: VerifiedHeaders | None
    fault: Exception | None


@dataclass(frozen=True)
class Call:
    """A verified request: who sent it, its body and its query parameters."""

    party: str
    body: bytes
    query: str


class BodyAllowance:
    """How many bytes of bodies may lie in memory at a time, in all and of one party. Used on the event loop only."""

    def __init__(self, total: int, per_party: int) -> None:
        self._free = total
        self._per_party = per_party
        self._held: Counter[str] = Counter()

    def take(self, party: str, size: int) -> None:
        """Account for ``size`` more bytes of ``party``, or raise ``unavailable``."""
        if size > self._per_party - self._held[party]:
            raise RequestError("unavailable", "too many large requests of this party arrive at a time", party)
        if size > self._free:
            raise RequestError("unavailable", "too many large requests arrive at a time")
        self._free -= size
        self._held[party] += size

    def give_back(self, party: str, size: int) -> None:
        """``size`` bytes of ``party`` are done with."""
        self._free += size
        self._held[party] -= size
        if not self._held[party]:
            del self._held[party]


async def arrive(request: Request) -> AsyncIterator[Arrival]:
    """A dependency: the request, its body held against the allowance until the answer has left."""
    allowance: BodyAllowance = request.app.state.allowance
    arrival = await read_arrival(request, allowance)
    try:
        yield arrival
    finally:
        if arrival.sender is not None:
            allowance.give_back(arrival.sender.party, len(arrival.parts.body))


async def read_arrival(request: Request, allowance: BodyAllowance) -> Arrival:
    """Read a request: its body only once its headers verify, and never more of it, or for longer, than is allowed."""
    coordinator = request.app.state.coordinator
    raw_path = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    parts = RequestParts(
        method=request.method,
        authority="",
        path=raw_path.decode("latin-1"),
        query=request.scope["query_string"].decode("latin-1"),
        headers={},
        body=b"",
    )
    sender: VerifiedHeaders | None = None
    fault: Exception | None = None
    try:
        headers = collect_headers(request.scope["headers"])
        parts = replace(parts, authority=headers.get("host", ""), headers=headers)
        sender = coordinator.gate.identify(parts)
        with anyio.fail_after(BODY_SECONDS):
            body = await _capped_body(
                request, sender.party, headers, coordinator.settings.max_body_bytes, allowance
            )
        parts = replace(parts, body=body)
    except (HttpSignatureError, RequestError) as error:
        fault = error
    except (ClientDisconnect, TimeoutError):
        fault = RequestError("malformed", "the body did not come to its end")
    return Arrival(parts, sender, fault)


async def _capped_body(
    request: Request, party: str, headers: Mapping[str, str], limit: int, allowance: BodyAllowance
) -> bytes:
    too_large = RequestError("too-large", f"the body has more than {limit} bytes")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            if size + len(chunk) > limit:
                raise too_large
            allowance.take(party, len(chunk))
            size += len(chunk)
            chunks.append(chunk)
    except BaseException:
        allowance.give_back(party, size)
        raise
    return b"".join(chunks)


class Gate:
    """Verifies requests to ``party`` and signs its answers."""

    def __init__(
        self,
        party: str,
        key: SigningKey,
        verify_keys: Mapping[str, bytes],
        policy_epoch: int,
        remember: Callable[[str, str, int], bool],
        clock: Callable[[], float],
    ) -> None:
        self._party = party
        self._key = key
        self._verify_keys = verify_keys
        self._policy_epoch = policy_epoch
        self._remember = remember
        self._clock = clock

    def identify(self, parts: RequestParts) -> VerifiedHeaders:
        """Who signed the headers of ``parts``, whose body is not read yet; raises HttpSignatureError."""
        return verify_headers(
            parts, recipient=self._party, verify_keys=self._verify_keys, now=int(self._clock())
        )

    def serve(
        self, arrival: Arrival, action: Callable[[Call], Message], *, any_policy_epoch: bool = False
    ) -> Response:
        """Answer with what ``action`` returns, or with a problem.

        ``any_policy_epoch``: also callers that still decide by another policy are served, because this is how
        they find the one in force.
        """
        parts = arrival.parts
        try:
            verified = self._accept(arrival)
        except (HttpSignatureError, RequestError) as error:
            return self._refuse_unverified(arrival, error)
        except Exception as error:
            logger.exception("%s %s failed", parts.method, parts.path)
            return self._refuse_unverified(arrival, error)
        party = verified.party
        try:
            if parts.headers["content-type"] != MEDIA_TYPE:
                raise RequestError("unsupported-media-type", f"the only media type is {MEDIA_TYPE}")
            if not any_policy_epoch and verified.policy_epoch != self._policy_epoch:
                raise RequestError(
                    "stale-policy",
                    f"the caller decides by policy epoch {verified.policy_epoch}, in force is {self._policy_epoch}",
                )
            body = encode(action(Call(party, parts.body, parts.query)))
        except EXPECTED as error:
            problem = problem_for(error, party)
        except MalformedEntryError as error:
            # What the caller wrote does not fit the log: nothing of it was kept.
            problem = problem_for(MalformedError(str(error)), party)
        except Exception as error:
            logger.exception("%s %s failed", parts.method, parts.path)
            problem = problem_for(error, party)
        else:
            return self._signed(200, MEDIA_TYPE, body, verified.signature)
        return self._signed(problem.status, PROBLEM_MEDIA_TYPE, problem.encode(), verified.signature)

    def refuse(self, arrival: Arrival, error: RequestError) -> Response:
        """``error`` as a problem, for a request that no endpoint takes; its nonce stays unused."""
        try:
            signature = self._accept(arrival, remember=False).signature
        except (HttpSignatureError, RequestError):
            return self._refuse_unverified(arrival, error)
        problem = problem_for(error, arrival.sender.party if arrival.sender else "")
        return self._signed(problem.status, PROBLEM_MEDIA_TYPE, problem.encode(), signature)

    def _accept(self, arrival: Arrival, *, remember: bool = True) -> VerifiedRequest:
        if arrival.fault is not None:
            raise arrival.fault
        if arrival.sender is None:
            raise HttpSignatureError("unsigned", "", "the message has no signature")
        return arrival.sender.accept(
            arrival.parts.body, self._remember if remember else lambda party, nonce, expires: True
        )

    def _refuse_unverified(self, arrival: Arrival, error: Exception) -> Response:
        """A problem, signed only if ``error`` carries a signature that verified."""
        party = arrival.sender.party if arrival.sender else _claimed_party(arrival.parts.headers)
        problem = problem_for(error, party)
        if isinstance(error, HttpSignatureError) and error.signature:
            response = self._signed(problem.status, PROBLEM_MEDIA_TYPE, problem.encode(), error.signature)
        else:
            response = Response(problem.encode(), problem.status, media_type=PROBLEM_MEDIA_TYPE)
        if arrival.fault is not None:
            # The rest of the body is not wanted on this connection.
            response.headers["connection"] = "close"
        return response

    def _signed(self, status: int, media_type: str, body: bytes, signature: bytes) -> Response:
        headers = sign_response(
            status,
            media_type,
            body,
            signature,
            signer=self._party,
            key=self._key,
            now=int(self._clock()),
        )
        return Response(body, status, headers=headers)


def _claimed_party(headers: Mapping[str, str]) -> str:
    """The party a request claims to be of, for an answer that cannot say more."""
    _, _, rest = headers.get("signature-input", "").partition(';keyid="')
    claimed, quote_mark, _ = rest.partition('"')
    return claimed if quote_mark and len(claimed) <= 32 and claimed.isascii() else ""
