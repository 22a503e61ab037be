"""The coordinator as an ASGI application, and how it is served: one worker on uvicorn, on loopback by default."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from coordinator.api.gate import BodyAllowance, read_arrival
from coordinator.api.routes import router
from coordinator.composition import Coordinator
from coordinator.settings import check_private, load_settings
from governance.messages.problems import RequestError

KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10
NO_BODY = 0


def create_app(directory: Path, *, clock: Callable[[], float] = time.time) -> FastAPI:
    """The application over a data directory; the store is opened when it starts, closed when it stops."""
    settings = load_settings(directory)
    return _build(lambda: Coordinator(settings, clock=clock))


def serve(directory: Path) -> None:
    """Serve a data directory until SIGTERM or SIGINT; long polls end at once, other requests get ten seconds.

    From here on this process makes files that only its user can read.
    """
    os.umask(0o077)
    settings = load_settings(directory)
    check_private(directory)
    # Opened here, so that what is wrong with the directory is said before anything listens.
    coordinator = Coordinator(settings, clock=time.time)
    config = uvicorn.Config(
        _build(lambda: coordinator),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    _Server(config, coordinator).run()


class _Server(uvicorn.Server):
    """Sends the long polls home before uvicorn waits for its connections."""

    def __init__(self, config: uvicorn.Config, coordinator: Coordinator) -> None:
        super().__init__(config)
        self._coordinator = coordinator

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._coordinator.release_waiting()
        await super().shutdown(sockets)


def make_allowance(coordinator: Coordinator) -> BodyAllowance:
    """Each party of the roll may fill an equal part of the memory for bodies, at least with one largest body."""
    settings = coordinator.settings
    share = settings.max_arriving_bytes // len(coordinator.consortium.everyone)
    return BodyAllowance(settings.max_arriving_bytes, max(share, settings.max_body_bytes))


def _build(make: Callable[[], Coordinator]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        coordinator = make()
        current_default_thread_limiter().total_tokens = coordinator.settings.threads
        app.state.coordinator = coordinator
        app.state.allowance = make_allowance(coordinator)
        coordinator.start()
        try:
            yield
        finally:
            coordinator.close()

    app = FastAPI(
        title="Subrosa coordinator", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None
    )
    app.include_router(router)
    app.add_exception_handler(HTTPException, _unknown_address)
    return app


async def _unknown_address(request: Request, error: Exception) -> Response:
    """404 and 405 as problems, like everything else."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    name = {404: "not-found", 405: "method-not-allowed"}.get(status, "malformed")
    arrival = await read_arrival(request, BodyAllowance(NO_BODY, NO_BODY))
    fault = RequestError(name, f"{request.method} {request.url.path} is not an endpoint")
    answer: Response = request.app.state.coordinator.gate.refuse(arrival, fault)
    return answer
