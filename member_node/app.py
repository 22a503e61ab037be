"""The member node as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from crypto.errors import CryptoError
from governance.budgets import BudgetExceededError
from governance.indicators import InvalidIndicatorError
from governance.inquiries import InquiryError
from governance.log.follow import LogFollowError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.http_signatures import HttpSignatureError
from governance.messages.problems import ProblemError, RequestError
from governance.policy.decision import PolicyError, RefusedError
from member_node.api.bank import bank_router, operator_check
from member_node.api.consortium import consortium_router
from member_node.api.gate import not_found, unsigned_problem
from member_node.api.streams import stream_router
from member_node.client.ports import PartyUnreachableError
from member_node.compute.batch import BatchCrypto
from member_node.compute.ray_cluster import RayCluster
from member_node.node import MemberNode
from member_node.service.contribution import BrokenReceiptError
from member_node.service.index import FeedError
from member_node.service.inquiry import InquiryFailedError
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.settings import MemberSettings
from member_node.streaming import attach_stream

BANK_PREFIX = "/bank/v1"
EXPECTED_ERRORS: tuple[type[Exception], ...] = (
    RequestError,
    ProblemError,
    HttpSignatureError,
    MalformedError,
    InvalidIndicatorError,
    RefusedError,
    PolicyError,
    BudgetExceededError,
    InquiryError,
    MembershipError,
    CryptoError,
    NotJoinedError,
    ConsortiumUnavailableError,
    InquiryFailedError,
    PartyUnreachableError,
    FeedError,
    BrokenReceiptError,
    LogFollowError,
)


def create_app(settings: MemberSettings) -> FastAPI:
    """An application for one data directory; storage is opened here, threads start with its lifespan."""
    crypto = BatchCrypto(RayCluster())
    node = MemberNode(settings, map_chunks=crypto.map)
    node.on_close(crypto.close)
    return build_app(node)


def build_app(node: MemberNode) -> FastAPI:
    """The application around a node that is already put together; it closes the node when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        node.start()
        yield
        await run_in_threadpool(node.close)

    app = FastAPI(
        title="Subrosa member node", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.node = node
    app.include_router(consortium_router(node))
    guarded = [Depends(operator_check(node))]
    app.include_router(bank_router(node), prefix=BANK_PREFIX, dependencies=guarded)
    stream = stream_router(attach_stream(node), node.party)
    app.include_router(stream, prefix=BANK_PREFIX, dependencies=guarded)
    _answer_problems(app, node.party)
    return app


def _answer_problems(app: FastAPI, party: str) -> None:
    """Every error leaves as problem+json, translated in one table."""

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return unsigned_problem(
                RequestError("method-not-allowed", "see docs/operations.md for the methods")
            )
        return not_found("there is nothing under this path")

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> Response:
        # Pydantic quotes the input it refuses: only places and reasons are passed on.
        places = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        return unsigned_problem(RequestError("malformed", places, ""))

    def answer(_request: Request, error: Exception) -> Response:
        return unsigned_problem(_translated(error, party))

    # By type, because what is registered for Exception is also raised again and logged as a crash.
    for kind in EXPECTED_ERRORS:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)


def _translated(error: Exception, party: str) -> Exception:
    """The member's own errors as rows of the one table of problems."""
    match error:
        case NotJoinedError() | ConsortiumUnavailableError() | InquiryFailedError():
            return RequestError("unavailable", str(error), party)
        case PartyUnreachableError():
            return RequestError("unavailable", str(error), error.party)
        case FeedError() | BrokenReceiptError():
            return RequestError("invalid-proof", error.reason, error.party)
        case LogFollowError():
            return RequestError("invalid-proof", str(error))
        case _:
            return error
