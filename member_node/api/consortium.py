"""What other organisations may call: evaluation by this key holder, and whether the node is there."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from governance.messages.lookup import EvaluateRequest
from governance.messages.signed import Signed
from member_node.api.gate import Arrival, Gate, arrive
from member_node.node import MemberNode

ELEMENT_SIZE = 32


def consortium_router(node: MemberNode) -> APIRouter:
    """The consortium-facing routes of ``node``."""
    router = APIRouter()
    gate = Gate(node)

    def evaluate_for(caller: str, request: EvaluateRequest) -> Signed:
        answer = node.holder.evaluate(caller, request)
        node.meter.count_elements("answered", caller, "evaluate", len(request.elements) // ELEMENT_SIZE)
        return answer

    @router.post("/v1/evaluate")
    def evaluate(request: Request, arrival: Annotated[Arrival, Depends(arrive)]) -> Response:
        """A signed EvaluateRequest of a member; a signed EvaluateResponse."""
        return gate.answer(request, arrival, EvaluateRequest, "evaluate", evaluate_for)

    @router.get("/health")
    def health() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"party": node.party, "status": "up"})

    @router.get("/ready")
    def ready() -> JSONResponse:
        """The node has verified the roll, the policy and a fresh checkpoint."""
        is_ready = node.is_ready()
        return JSONResponse({"party": node.party, "ready": is_ready}, status_code=200 if is_ready else 503)

    return router
