"""The member node as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from governance.messages.problems import RequestError
from member_node.api.bank import bank_router, operator_check
from member_node.api.consortium import consortium_router
from member_node.api.gate import not_found, unsigned_problem
from member_node.api.streams import stream_router
from member_node.client.ports import PartyUnreachableError
from member_node.node import MemberNode
from member_node.service.inquiry import InquiryFailedError
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.settings import MemberSettings
from member_node.streaming import attach_stream

BANK_PREFIX = "/bank/v1"


def create_app(settings: MemberSettings) -> FastAPI:
    """An application for one data directory; storage is opened here, threads start with its lifespan."""
    return build_app(MemberNode(settings))


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

    @app.exception_handler(NotJoinedError)
    @app.exception_handler(ConsortiumUnavailableError)
    @app.exception_handler(InquiryFailedError)
    async def unavailable(_request: Request, error: Exception) -> Response:
        return unsigned_problem(RequestError("unavailable", str(error), party))

    @app.exception_handler(PartyUnreachableError)
    async def unreachable(_request: Request, error: PartyUnreachableError) -> Response:
        return unsigned_problem(RequestError("unavailable", str(error), error.party))

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        return unsigned_problem(error)
