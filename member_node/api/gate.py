"""The door to other organisations: no body is read before its headers verify, nor decoded before its digest and nonce.

An answer is signed only when the whole request verified, or all of it but its times or nonce: it is evidence of what
the owner of that signature asked, and a signature can be relayed with another body.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import quote

import anyio
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from governance.messages.codec import MEDIA_TYPE, Message, decode, encode
from governance.messages.http_signatures import (
    HttpSignatureError,
    RequestParts,
    VerifiedHeaders,
    VerifiedRequest,
    collect_headers,
    sign_response,
    verify_headers,
)
from governance.messages.problems import (
    PROBLEM_MEDIA_TYPE,
    ProblemError,
    RequestError,
    make_problem,
    problem_for,
)
from member_node.client.ports import PartyUnreachableError
from member_node.node import MemberNode
from member_node.service.policy import NotJoinedError
from member_node.traffic import UNKNOWN

LOGGER = logging.getLogger(__name__)
# 4096 elements of 32 bytes and the fields around them.
MAX_BODY_BYTES = 160 * 1024
BODY_SECONDS = 30.0
_CLAIMED = re.compile(r';keyid="([a-z][a-z0-9-]{1,31})"')

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Arrival:
    """A request as it came: who signed its headers (None: not verified), or why it was not read to its end."""

    parts: RequestParts
    sender: VerifiedHeaders | None
    fault: Exception | None

    @property
    def party(self) -> str:
        """Who must have sent it, or else claims to have."""
        if self.sender is not None:
            return self.sender.party
        claimed = _CLAIMED.search(self.parts.headers.get("signature-input", ""))
        return claimed[1] if claimed else ""


async def read_capped(request: Request, headers: Mapping[str, str], limit: int) -> bytes:
    """The body if it has at most ``limit`` bytes, else :class:`RequestError` before the rest is read."""
    too_large = RequestError("too-large", f"a body has at most {limit} bytes here")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def arrive(request: Request) -> Arrival:
    """A dependency: the request, its body read only once its headers verify, and only so much of it for so long."""
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
    try:
        headers = collect_headers(request.scope["headers"])
        parts = replace(parts, authority=headers.get("host", ""), headers=headers)
        node: MemberNode = request.app.state.node
        sender = verify_headers(
            parts,
            recipient=node.party,
            verify_keys=node.consortium.verify_keys(),
            now=node.clock(),
        )
        with anyio.fail_after(BODY_SECONDS):
            parts = replace(parts, body=await read_capped(request, headers, MAX_BODY_BYTES))
    except (HttpSignatureError, RequestError, NotJoinedError) as error:
        return Arrival(parts, sender, error)
    except (ClientDisconnect, TimeoutError):
        return Arrival(parts, sender, RequestError("malformed", "the body did not come to its end"))
    return Arrival(parts, sender, None)


class Gate:
    """Verifies requests, answers them, and signs what it answers."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def answer(
        self,
        request: Request,
        arrival: Arrival,
        kind: type[M],
        name: str,
        handle: Callable[[str, M], Message],
    ) -> Response:
        """Verify, decode one ``kind``, call ``handle(caller, message)``, sign. Errors become problems."""
        began = time.perf_counter()
        verified: VerifiedRequest | None = None
        signature = b""
        try:
            verified = self._accept(arrival)
            signature = verified.signature
            self._check_policy_epoch(verified)
            if arrival.parts.headers.get("content-type") != MEDIA_TYPE:
                raise RequestError(
                    "unsupported-media-type", f"a message has media type {MEDIA_TYPE}", verified.party
                )
            message = decode(kind, arrival.parts.body, max_bytes=MAX_BODY_BYTES)
            status, media_type, content = 200, MEDIA_TYPE, encode(handle(verified.party, message))
        except NotJoinedError as error:
            status, media_type, content = _problem(
                RequestError("unavailable", str(error), self._node.party), ""
            )
        except PartyUnreachableError as error:
            status, media_type, content = _problem(RequestError("unavailable", str(error), error.party), "")
        except Exception as error:  # noqa: BLE001 - translated once, here; an unexpected one is logged with its trace
            if isinstance(error, HttpSignatureError) and error.signature:
                signature = error.signature
            status, media_type, content = _problem(error, arrival.party)
        answered = {"content-type": media_type}
        if signature:
            answered = sign_response(
                status,
                media_type,
                content,
                signature,
                signer=self._node.party,
                key=self._node.key,
                now=self._node.clock(),
            )
        if arrival.fault is not None:
            # The rest of the body is not wanted on this connection.
            answered = {**answered, "connection": "close"}
        peer = verified.party if verified is not None else UNKNOWN
        self._record(request, peer, name, arrival.parts, status, answered, content, began)
        return Response(content, status_code=status, headers=dict(answered))

    def _accept(self, arrival: Arrival) -> VerifiedRequest:
        if arrival.fault is not None:
            raise arrival.fault
        if arrival.sender is None:
            raise HttpSignatureError("unsigned", "", "the message has no signature")
        replays, now = self._node.replays, self._node.clock()
        return arrival.sender.accept(
            arrival.parts.body,
            lambda party, nonce, expires: replays.remember(party, nonce, expires, now=now),
        )

    def _check_policy_epoch(self, verified: VerifiedRequest) -> None:
        """Both sides decide by the same signed bundle, or not at all; we learn of a newer one before refusing."""
        consortium = self._node.consortium
        if verified.policy_epoch > consortium.policy_epoch():
            self._node.learn()
        if verified.policy_epoch != (here := consortium.policy_epoch()):
            detail = f"the request is made under policy epoch {verified.policy_epoch}, in force is {here}"
            raise RequestError("stale-policy", detail, verified.party)

    def _record(
        self,
        request: Request,
        peer: str,
        name: str,
        parts: RequestParts,
        status: int,
        answered: Mapping[str, str],
        content: bytes,
        began: float,
    ) -> None:
        self._node.meter.count(
            "answered",
            peer,
            name,
            bytes_in=len(parts.body),
            bytes_out=len(content),
            seconds=time.perf_counter() - began,
            failed=status >= 400,
        )
        if self._node.capture is not None:
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            self._node.capture.write(
                "received", peer, f"{request.method} {target}", parts.headers, parts.body
            )
            self._node.capture.write(
                "sent", peer, f"{status} {request.method} {request.url.path}", answered, content
            )


def _problem(error: Exception, party: str) -> tuple[int, str, bytes]:
    problem = problem_for(error, party)
    if problem.name == "internal" and not isinstance(error, ProblemError):
        LOGGER.error("unexpected error while answering %s", party or "an unknown caller", exc_info=error)
    return problem.status, PROBLEM_MEDIA_TYPE, problem.encode()


def unsigned_problem(error: Exception) -> Response:
    """A problem for whoever is not another organisation (bank-internal calls, unknown paths)."""
    status, media_type, content = _problem(error, "")
    return Response(content, status_code=status, media_type=media_type)


def not_found(detail: str) -> Response:
    """A problem for a path that does not exist."""
    problem = make_problem("not-found", detail)
    return Response(problem.encode(), status_code=problem.status, media_type=PROBLEM_MEDIA_TYPE)
