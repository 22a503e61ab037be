"""The one way in: read at most so many bytes, verify who asks, act, sign what goes back.

Every failure becomes a problem document here and nowhere else. It is signed whenever the request carried a
signature to bind the answer to, so that the caller knows it comes from the coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
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
    collect_headers,
    request_signature,
    sign_response,
    verify_request,
)
from governance.messages.problems import PROBLEM_MEDIA_TYPE, Problem, RequestError, problem_for
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
    """A request as it came, or why it was not read to its end."""

    parts: RequestParts
    fault: Exception | None


@dataclass(frozen=True)
class Call:
    """A verified request: who sent it, its body and its query parameters."""

    party: str
    body: bytes
    query: str


class BodyAllowance:
    """How many bytes of unverified bodies may lie in memory at a time. Used on the event loop only."""

    def __init__(self, total: int) -> None:
        self._free = total

    def take(self, size: int) -> None:
        """Account for ``size`` more bytes, or raise ``unavailable``."""
        if size > self._free:
            raise RequestError("unavailable", "too many large requests arrive at a time")
        self._free -= size

    def give_back(self, size: int) -> None:
        """``size`` bytes are done with."""
        self._free += size


async def arrive(request: Request) -> AsyncIterator[Arrival]:
    """A dependency: the request, its body held against the allowance until the answer has left."""
    allowance: BodyAllowance = request.app.state.allowance
    arrival = await read_arrival(request, allowance)
    try:
        yield arrival
    finally:
        allowance.give_back(len(arrival.parts.body))


async def read_arrival(request: Request, allowance: BodyAllowance) -> Arrival:
    """Read a request, but never more of its body than the settings allow, nor for longer."""
    limit: int = request.app.state.coordinator.settings.max_body_bytes
    fault: Exception | None = None
    headers: Mapping[str, str] = {}
    body = b""
    try:
        headers = collect_headers(request.scope["headers"])
        with anyio.fail_after(BODY_SECONDS):
            body = await _capped_body(request, headers, limit, allowance)
    except (HttpSignatureError, RequestError) as error:
        fault = error
    except (ClientDisconnect, TimeoutError):
        fault = RequestError("malformed", "the body did not come to its end")
    raw_path = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    parts = RequestParts(
        method=request.method,
        authority=headers.get("host", ""),
        path=raw_path.decode("latin-1"),
        query=request.scope["query_string"].decode("latin-1"),
        headers=headers,
        body=body,
    )
    return Arrival(parts, fault)


async def _capped_body(
    request: Request, headers: Mapping[str, str], limit: int, allowance: BodyAllowance
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
            allowance.take(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
    except BaseException:
        allowance.give_back(size)
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

    def serve(
        self, arrival: Arrival, action: Callable[[Call], Message], *, any_policy_epoch: bool = False
    ) -> Response:
        """Answer with what ``action`` returns, or with a problem.

        ``any_policy_epoch``: also callers that still decide by another policy are served, because this is how
        they find the one in force.
        """
        parts = arrival.parts
        party = ""
        try:
            if arrival.fault is not None:
                raise arrival.fault
            verified = verify_request(
                parts,
                recipient=self._party,
                verify_keys=self._verify_keys,
                remember=self._remember,
                now=int(self._clock()),
            )
            party = verified.party
            if parts.headers["content-type"] != MEDIA_TYPE:
                raise RequestError("unsupported-media-type", f"the only media type is {MEDIA_TYPE}")
            if not any_policy_epoch and verified.policy_epoch != self._policy_epoch:
                raise RequestError(
                    "stale-policy",
                    f"the caller decides by policy epoch {verified.policy_epoch}, in force is {self._policy_epoch}",
                )
            body = encode(action(Call(party, parts.body, parts.query)))
        except EXPECTED as error:
            return self.refuse(arrival, problem_for(error, party or _claimed_party(parts.headers)))
        except MalformedEntryError as error:
            # What the caller wrote does not fit the log: nothing of it was kept.
            return self.refuse(arrival, problem_for(MalformedError(str(error)), party))
        except Exception as error:
            logger.exception("%s %s failed", parts.method, parts.path)
            return self.refuse(arrival, problem_for(error, party))
        return self._signed(200, MEDIA_TYPE, body, verified.signature)

    def refuse(self, arrival: Arrival, problem: Problem) -> Response:
        """The problem as a response: signed if the request had a well-formed signature."""
        body = problem.encode()
        try:
            signature = request_signature(arrival.parts.headers)
        except HttpSignatureError:
            response = Response(body, problem.status, media_type=PROBLEM_MEDIA_TYPE)
        else:
            response = self._signed(problem.status, PROBLEM_MEDIA_TYPE, body, signature)
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
