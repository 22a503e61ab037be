"""The member node as an ASGI application."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

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
from member_node.api.bank import bank_router
from member_node.api.cases import cases_router
from member_node.api.consortium import consortium_router
from member_node.api.event_lane import EventLane
from member_node.api.gate import not_found, unsigned_problem
from member_node.api.lists import list_router
from member_node.api.metrics import health_router, metrics_router
from member_node.api.models import models_router
from member_node.api.operator import OperatorDoor
from member_node.api.rules import rules_router
from member_node.api.staff import staff_router
from member_node.api.streams import stream_router
from member_node.client.ports import PartyUnreachableError
from member_node.compute.batch import BatchCrypto
from member_node.compute.ray_cluster import RayCluster, RayClusterError
from member_node.compute.shards import ShardedEngine
from member_node.node import MemberNode
from member_node.secret_files import TOKEN_FILE, read_secret
from member_node.service.contribution import BrokenReceiptError
from member_node.service.index import FeedError
from member_node.service.inquiry import InquiryFailedError
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.policy import NotJoinedError
from member_node.service.staff import Role, StaffBook
from member_node.settings import MemberSettings
from member_node.storage.staff import StaffStore
from member_node.streaming import attach_stream
from scoring.engine import Engine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec

BANK_PREFIX = "/bank/v1"
STOP_SECONDS = 3.0
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
    RayClusterError,
)


def create_app(settings: MemberSettings) -> FastAPI:
    """An application for one data directory; storage is opened here, threads start with its lifespan."""
    cluster = RayCluster()
    crypto = BatchCrypto(cluster)
    node = MemberNode(settings, map_chunks=crypto.map)
    node.on_close(crypto.close)
    if settings.shards == 1:
        threads = settings.scoring.feature_threads
        return build_app(node, lambda spec: FeatureEngine(spec, threads=threads), _keep)
    return build_app(node, ShardedEngines(cluster, settings.shards, settings.directory), _keep)


def _keep() -> None:
    """What a stream has loaded stays: the collector of garbage would look through it again and again, and stop events
    for tens of milliseconds each time."""
    gc.collect()
    gc.freeze()


class ShardedEngines:
    """Makes the feature engine of a bank's one stream on its Ray; the engine before it is ended first."""

    def __init__(self, cluster: RayCluster, shards: int, directory: Path) -> None:
        """``directory``: the node's, in whose folder ``shards`` they write their checkpoints."""
        self._cluster = cluster
        self._shards = shards
        self._directory = directory
        self._engine: ShardedEngine | None = None

    def __call__(self, spec: FeatureSpec) -> ShardedEngine:
        """An engine without state; raises what :class:`ShardedEngine` raises."""
        if self._engine is not None:
            self._engine.close()
        self._engine = ShardedEngine(self._cluster, spec, self._shards, directory=self._directory)
        return self._engine


class NodeApp(FastAPI):
    """An application that may be given a front before all of the framework's own layers: events come by the thousand,
    and the layers cost a fifth of what an event does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.front: ASGIApp = super().__call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await self.front(scope, receive, send)


def build_app(
    node: MemberNode,
    engine: Callable[[FeatureSpec], Engine] = FeatureEngine,
    on_opened: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application around a node that is already put together; it closes the node when it ends.

    ``engine`` makes the feature engine of a stream that is opened, ``on_opened`` is told when one is.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        node.start()
        desk.resume()
        yield
        await desk.batcher.close(STOP_SECONDS)
        # Not in the pool of the requests: it may be full of those that wait for what is closed here.
        await asyncio.to_thread(node.close)

    desk = attach_stream(node, engine, on_opened)
    app = NodeApp(
        title="Subrosa member node", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.node = node
    app.state.desk = desk
    app.include_router(consortium_router(node))
    app.include_router(health_router(desk.readiness))
    token = read_secret(node.directory / TOKEN_FILE).strip()
    staff = StaffBook(StaffStore(node.database), token, lambda: node.clock() * 1000, secrets.token_bytes)
    bank = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for router in (
        bank_router(node),
        stream_router(desk.stream, node.party),
        rules_router(desk.rulebook, desk.brake, node.party, flush=desk.stream.flush),
        list_router(desk.lists, node.party),
        models_router(desk.models, desk.history, node.party, flush=desk.stream.flush),
        cases_router(desk.cases, node.party),
        staff_router(staff, node.party),
        metrics_router(desk.metrics),
    ):
        bank.include_router(router)
    for each in (app, bank):
        _answer_problems(each, node.party)
    app.mount(BANK_PREFIX, OperatorDoor(bank, token, staff=staff))
    app.front = EventLane(
        app.front,
        check=lambda scope: _check_sender(staff, scope),
        batcher=desk.batcher,
        metrics=desk.metrics,
        party=node.party,
    )
    return app


def _check_sender(staff: StaffBook, scope: Scope) -> None:
    """Refuse whoever is not a sender, the operator or an admin."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    caller = staff.identify(token.strip()) if scheme.lower() == b"bearer" else None
    if caller is None:
        raise RequestError("unauthenticated", "the token is missing, wrong or revoked")
    if not caller.has(Role.SENDER):
        raise RequestError("not-permitted", "events are sent with a sender's or the operator token")


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
        case NotJoinedError() | ConsortiumUnavailableError() | InquiryFailedError() | RayClusterError():
            return RequestError("unavailable", str(error), party)
        case PartyUnreachableError():
            return RequestError("unavailable", str(error), error.party)
        case FeedError() | BrokenReceiptError():
            return RequestError("invalid-proof", error.reason, error.party)
        case LogFollowError():
            return RequestError("invalid-proof", str(error))
        case _:
            return error
