"""What can be seen of a node from outside: Prometheus metrics (with a token), health and readiness (without)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from member_node.metrics import NodeMetrics


@dataclass(frozen=True)
class Readiness:
    """Whether a node can score. ``faults``: why it cannot; ``degraded``: what it does without, in short words.

    Both are fixed words, because anybody on the listener's network can read them.
    """

    faults: Sequence[str] = ()
    degraded: Sequence[str] = ()

    @property
    def state(self) -> str:
        """``not-ready``, ``degraded`` or ``ready``."""
        if self.faults:
            return "not-ready"
        return "degraded" if self.degraded else "ready"


def metrics_router(metrics: NodeMetrics) -> APIRouter:
    """``GET /metrics`` in Prometheus' text format; the caller puts it behind the operator's door."""
    router = APIRouter()

    @router.get("/metrics")
    def show() -> Response:
        """Counters, histograms and gauges."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def health_router(readiness: Callable[[], Readiness]) -> APIRouter:
    """``GET /healthz`` (the process answers) and ``GET /readyz`` (it can score; 503 where it cannot).

    A degraded node is ready: it gives verdicts, and says in them what they lack.
    """
    router = APIRouter()

    @router.get("/healthz")
    async def healthy() -> dict[str, str]:
        """The process is alive."""
        return {"state": "alive"}

    @router.get("/readyz")
    def ready() -> JSONResponse:
        """Whether events are scored now."""
        found = readiness()
        content = {"state": found.state, "faults": list(found.faults), "degraded": list(found.degraded)}
        return JSONResponse(content, status_code=503 if found.faults else 200)

    return router
