"""The coordinator's endpoints: each reads its query or body and calls one service (docs/protocols)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from coordinator.api.gate import Arrival, Call, arrive
from coordinator.api.query import Query, read_inquiry_id
from coordinator.composition import Coordinator
from governance.messages.codec import Message, decode
from governance.messages.index import SubmitLabels
from governance.messages.inquiry import OpenInquiry
from governance.messages.log import LogPage
from governance.messages.problems import RequestError
from governance.messages.signed import Signed
from governance.policy import requests
from governance.purposes import Purpose

router = APIRouter()

STEPS = {"mask-key": "mask_key", "contribution": "contribution", "veto": "veto", "outcome": "outcome"}


def running(request: Request) -> Coordinator:
    """The coordinator this application serves."""
    coordinator: Coordinator = request.app.state.coordinator
    return coordinator


Running = Annotated[Coordinator, Depends(running)]
Arrived = Annotated[Arrival, Depends(arrive)]


@router.get("/health")
def health(coordinator: Running) -> Response:
    """Alive; unsigned."""
    head = coordinator.log.head
    return JSONResponse(
        {"status": "serving", "party": coordinator.settings.party, "entries": head.size, "signed": head.time}
    )


@router.get("/ready")
def ready(coordinator: Running) -> Response:
    """200 once the coordinator serves; unsigned."""
    return JSONResponse({"status": "ready", "party": coordinator.settings.party})


@router.get("/v1/membership")
def membership(coordinator: Running, arrival: Arrived) -> Response:
    """The signed membership roll."""

    def action(call: Call) -> Message:
        Query(call.query)
        return coordinator.consortium.signed_roll

    return coordinator.gate.serve(arrival, action, any_policy_epoch=True)


@router.get("/v1/policy")
def policy(coordinator: Running, arrival: Arrived) -> Response:
    """The signed policy bundle in force."""

    def action(call: Call) -> Message:
        Query(call.query)
        return coordinator.consortium.signed_policy

    return coordinator.gate.serve(arrival, action, any_policy_epoch=True)


@router.get("/v1/checkpoint")
def checkpoint(coordinator: Running, arrival: Arrived) -> Response:
    """The newest checkpoint, never older than the refresh interval, with a proof from ``since``."""

    def action(call: Call) -> Message:
        since = Query(call.query, "since").number("since")
        head = coordinator.log.fresh_head(coordinator.settings.checkpoint_refresh_seconds)
        return coordinator.log.update(since, head)

    return coordinator.gate.serve(arrival, action, any_policy_epoch=True)


@router.get("/v1/log")
def log_page(coordinator: Running, arrival: Arrived) -> Response:
    """Entries the caller may read from ``first`` on; a page that is not full is the last one."""

    def action(call: Call) -> LogPage:
        query = Query(call.query, "first", "count", "since")
        everything = coordinator.consortium.is_regulator(call.party)
        coordinator.permission.require_read(
            requests.read_log(call.party, own=not everything), str(Purpose.OVERSIGHT)
        )
        return coordinator.log.page(
            query.number("first"),
            query.number("count", 100),
            query.number("since"),
            None if everything else call.party,
        )

    return coordinator.gate.serve(arrival, action, any_policy_epoch=True)


@router.post("/v1/index/labels")
def submit_labels(coordinator: Running, arrival: Arrived) -> Response:
    """A batch of signed labels; a signed receipt."""

    def action(call: Call) -> Message:
        Query(call.query)
        return coordinator.index.submit(call.party, decode(SubmitLabels, call.body))

    return coordinator.gate.serve(arrival, action)


@router.get("/v1/index/deltas")
def deltas(coordinator: Running, arrival: Arrived) -> Response:
    """The feed after delta ``after``."""

    def action(call: Call) -> Message:
        query = Query(call.query, "after", "since")
        return coordinator.index.deltas(call.party, query.number("after"), query.number("since"))

    return coordinator.gate.serve(arrival, action)


@router.post("/v1/evaluation-totals")
def evaluation_totals(coordinator: Running, arrival: Arrived) -> Response:
    """A key holder's signed account."""

    def action(call: Call) -> Message:
        Query(call.query)
        return coordinator.totals.submit(call.party, decode(Signed, call.body))

    return coordinator.gate.serve(arrival, action)


@router.post("/v1/inquiries")
def open_inquiry(coordinator: Running, arrival: Arrived) -> Response:
    """A signed inquiry with its public context."""

    def action(call: Call) -> Message:
        Query(call.query)
        return coordinator.inquiries.open(call.party, decode(OpenInquiry, call.body))

    return coordinator.gate.serve(arrival, action)


@router.get("/v1/inquiries/tasks")
def tasks(coordinator: Running, arrival: Arrived) -> Response:
    """What waits for the caller; a long poll."""

    def action(call: Call) -> Message:
        query = Query(call.query, "wait", "since")
        return coordinator.inquiries.tasks(call.party, query.seconds("wait"), query.number("since"))

    return coordinator.gate.serve(arrival, action)


@router.get("/v1/inquiries/{inquiry}")
def inquiry_status(coordinator: Running, arrival: Arrived, inquiry: str) -> Response:
    """The state of one inquiry; a long poll for its next change."""

    def action(call: Call) -> Message:
        seconds = Query(call.query, "wait").seconds("wait")
        return coordinator.inquiries.status(call.party, read_inquiry_id(inquiry), seconds)

    return coordinator.gate.serve(arrival, action)


@router.post("/v1/inquiries/{inquiry}/{step}")
def inquiry_step(coordinator: Running, arrival: Arrived, inquiry: str, step: str) -> Response:
    """A mask key, contribution, veto or outcome; a checkpoint that covers what was logged of it."""

    def action(call: Call) -> Message:
        Query(call.query)
        if step not in STEPS:
            raise RequestError("not-found", f"a step is one of {', '.join(STEPS)}")
        identifier = read_inquiry_id(inquiry)
        return coordinator.inquiries.accept(call.party, identifier, STEPS[step], decode(Signed, call.body))

    return coordinator.gate.serve(arrival, action)
