"""The door to the bank-internal API: the operator token is checked before a byte of the body is read."""

from __future__ import annotations

import hmac

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from governance.messages.http_signatures import HttpSignatureError, collect_headers
from governance.messages.problems import RequestError
from member_node.api.gate import read_capped, unsigned_problem

# A hundred thousand values to enrol, or ten thousand transactions.
MAX_BANK_BYTES = 32 * 2**20
BODY_SECONDS = 30.0


class OperatorDoor:
    """Lets only the holder of the operator token through to ``app``, with a body that is there as a whole.

    Everything else is answered here as problem+json. It is the same listener as the consortium's: let other banks
    reach ``/v1/`` only, through a proxy (docs/operations.md).
    """

    def __init__(self, app: ASGIApp, token: bytes, *, max_bytes: int = MAX_BANK_BYTES) -> None:
        self._app = app
        self._token = token
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            raise RuntimeError(f"the bank-internal API speaks HTTP, not {scope['type']}")
        request = Request(scope, receive)
        try:
            self._check(request)
            with anyio.fail_after(BODY_SECONDS):
                body = await read_capped(request, request.headers, self._max_bytes)
        except (HttpSignatureError, RequestError) as error:
            await self._refuse(error, scope, receive, send)
            return
        except TimeoutError:
            late = RequestError("malformed", "the body did not come to its end")
            await self._refuse(late, scope, receive, send)
            return
        except ClientDisconnect:
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, request: Request) -> None:
        given = collect_headers(request.scope["headers"]).get("authorization", "")
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            raise RequestError("unauthenticated", "the operator token is missing or wrong")

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        response = unsigned_problem(error)
        # The rest of the body is not wanted on this connection.
        response.headers["connection"] = "close"
        await response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The whole body as one message, then whatever comes next (the end of the connection)."""
    waiting = [body]

    async def receive_again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receive_again
