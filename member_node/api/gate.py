"""The door to other organisations: nothing is decoded before its signature, digest and nonce are verified."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from fastapi import Request, Response

from governance.messages.codec import MEDIA_TYPE, Message, decode, encode
from governance.messages.http_signatures import (
    HttpSignatureError,
    RequestParts,
    VerifiedRequest,
    collect_headers,
    sign_response,
    verify_request,
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

LOGGER = logging.getLogger(__name__)
# 4096 elements of 32 bytes and the fields around them.
MAX_BODY_BYTES = 160 * 1024

M = TypeVar("M", bound=Message)


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is longer than :data:`MAX_BODY_BYTES`."""
    return await read_capped(request, MAX_BODY_BYTES)


async def read_capped(request: Request, limit: int) -> bytes:
    """The body if it has at most ``limit`` bytes, else :class:`RequestError` before the rest is read."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise RequestError("too-large", f"a body has at most {limit} bytes here")
        chunks.append(chunk)
    return b"".join(chunks)


class Gate:
    """Verifies requests, answers them, and signs what it answers."""

    def __init__(self, node: MemberNode) -> None:
        self._node = node

    def answer(
        self, request: Request, body: bytes, kind: type[M], name: str, handle: Callable[[str, M], Message]
    ) -> Response:
        """Verify, decode one ``kind``, call ``handle(caller, message)``, sign. Errors become signed problems.

        A request whose sender could not be identified gets an unsigned problem: there is nothing to bind it to.
        """
        began = time.perf_counter()
        verified: VerifiedRequest | None = None
        claimed = ""
        headers: Mapping[str, str] = {}
        try:
            headers = collect_headers(request.scope["headers"])
            verified = self._verify(request, headers, body)
            self._check_policy_epoch(verified)
            if headers.get("content-type") != MEDIA_TYPE:
                raise RequestError(
                    "unsupported-media-type", f"a message has media type {MEDIA_TYPE}", verified.party
                )
            message = decode(kind, body, max_bytes=MAX_BODY_BYTES)
            status, media_type, content = 200, MEDIA_TYPE, encode(handle(verified.party, message))
        except NotJoinedError as error:
            status, media_type, content = _problem(
                RequestError("unavailable", str(error), self._node.party), ""
            )
        except PartyUnreachableError as error:
            status, media_type, content = _problem(RequestError("unavailable", str(error), error.party), "")
        except Exception as error:  # noqa: BLE001 - translated once, here; an unexpected one is logged with its trace
            claimed = error.party if isinstance(error, HttpSignatureError) else ""
            status, media_type, content = _problem(error, verified.party if verified else "")
        peer = verified.party if verified else (claimed or "unknown")
        answered = {"content-type": media_type}
        if verified is not None:
            answered = sign_response(
                status,
                media_type,
                content,
                verified.signature,
                signer=self._node.party,
                key=self._node.key,
                now=self._node.clock(),
            )
        self._record(request, peer, name, headers, body, status, answered, content, began)
        return Response(content, status_code=status, headers=answered)

    def _verify(self, request: Request, headers: Mapping[str, str], body: bytes) -> VerifiedRequest:
        node = self._node
        now = node.clock()
        parts = RequestParts(
            method=request.method,
            authority=headers.get("host", ""),
            path=request.scope["raw_path"].decode("latin-1"),
            query=request.scope["query_string"].decode("latin-1"),
            headers=headers,
            body=body,
        )
        return verify_request(
            parts,
            recipient=node.party,
            verify_keys=node.consortium.verify_keys(),
            remember=lambda party, nonce, expires: node.replays.remember(party, nonce, expires, now=now),
            now=now,
        )

    def _check_policy_epoch(self, verified: VerifiedRequest) -> None:
        """Both sides decide by the same signed bundle, or not at all; we learn of a newer one before refusing."""
        consortium = self._node.consortium
        if verified.policy_epoch > consortium.policy_epoch():
            self._node.refresh()
        if verified.policy_epoch != (here := consortium.policy_epoch()):
            detail = f"the request is made under policy epoch {verified.policy_epoch}, in force is {here}"
            raise RequestError("stale-policy", detail, verified.party)

    def _record(
        self,
        request: Request,
        peer: str,
        name: str,
        headers: Mapping[str, str],
        body: bytes,
        status: int,
        answered: Mapping[str, str],
        content: bytes,
        began: float,
    ) -> None:
        self._node.meter.count(
            "answered",
            peer,
            name,
            bytes_in=len(body),
            bytes_out=len(content),
            seconds=time.perf_counter() - began,
            failed=status >= 400,
        )
        if self._node.capture is not None:
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            self._node.capture.write("received", peer, f"{request.method} {target}", headers, body)
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
