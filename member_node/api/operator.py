"""The door to the bank-internal API: the caller's token is checked before a byte of the body is read.

The operator token opens everything. A person's own token opens what a fraud desk does: reading, and changes below
``DESK_PATHS``, where the routes ask for the roles they need. A sender's token opens nothing here, only the lane of
events.
"""

from __future__ import annotations

import hmac

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from governance.messages.http_signatures import HttpSignatureError, collect_headers
from governance.messages.problems import RequestError
from member_node.api.gate import read_capped, unsigned_problem
from member_node.service.staff import OPERATOR, Role, Staff, StaffBook

# A hundred thousand values to enrol, or ten thousand transactions.
MAX_BANK_BYTES = 32 * 2**20
BODY_SECONDS = 30.0
# Where people without the admin role may change something.
DESK_PATHS = ("/rules", "/lists", "/models", "/cases", "/alerts", "/lookups", "/indicators", "/sync")
# Where they may not even read.
ADMIN_PATHS = ("/staff",)


def staff_of(request: Request) -> Staff:
    """Who calls, as the door has found."""
    staff = request.scope["state"]["staff"]
    assert isinstance(staff, Staff)
    return staff


class OperatorDoor:
    """Lets only the holders of good tokens through to ``app``, with a body that is there as a whole.

    ``scope["state"]["staff"]`` then says who it is. Everything else is answered here as problem+json. It is the same
    listener as the consortium's: let other banks reach ``/v1/`` only, through a proxy (docs/operations.md).
    """

    def __init__(
        self,
        app: ASGIApp,
        token: bytes,
        *,
        staff: StaffBook | None = None,
        max_bytes: int = MAX_BANK_BYTES,
    ) -> None:
        """``token``: the operator's; ``staff`` knows the personal ones (and the operator's), None if there are none."""
        self._app = app
        self._token = token
        self._staff = staff
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            raise RuntimeError(f"the bank-internal API speaks HTTP, not {scope['type']}")
        request = Request(scope, receive)
        try:
            staff = self._check(request)
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
        state = {**scope.get("state", {}), "staff": staff}
        await self._app({**scope, "state": state}, _replay(body, receive), send)

    def _check(self, request: Request) -> Staff:
        given = collect_headers(request.scope["headers"]).get("authorization", "")
        scheme, _, token = given.partition(" ")
        staff = self._identify(token.strip().encode()) if scheme.lower() == "bearer" else None
        if staff is None:
            raise RequestError("unauthenticated", "the token is missing, wrong or revoked")
        if not staff.has(Role.ANALYST, Role.APPROVER):
            raise RequestError("not-permitted", "a sender's token sends events and does nothing else")
        if not staff.has(Role.ADMIN):
            _check_desk(request.method, _path(request.scope))
        return staff

    def _identify(self, token: bytes) -> Staff | None:
        if self._staff is not None:
            return self._staff.identify(token)
        return _OPERATOR if hmac.compare_digest(token, self._token) else None

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        response = unsigned_problem(error)
        # The rest of the body is not wanted on this connection.
        response.headers["connection"] = "close"
        await response(scope, receive, send)


_OPERATOR = Staff(OPERATOR, frozenset({Role.ADMIN}))


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _check_desk(method: str, path: str) -> None:
    def below(prefixes: tuple[str, ...]) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)

    if below(ADMIN_PATHS) or (method not in ("GET", "HEAD") and not below(DESK_PATHS)):
        raise RequestError("not-permitted", f"{method} {path} takes the operator token or the role admin")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The whole body as one message, then whatever comes next (the end of the connection)."""
    waiting = [body]

    async def receive_again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receive_again
