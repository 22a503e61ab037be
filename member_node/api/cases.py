"""The fraud desk's queue over the bank-internal API: list, show, assign, note, decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.api.operator import staff_of
from member_node.service.cases import MAX_NOTE, CaseError, CaseNotPermittedError, CaseService, Clearance
from member_node.service.history_files import HistoryError
from member_node.service.staff import Role, SamePersonError
from member_node.service.stream_parts import StreamError
from member_node.storage.cases import MAX_PAGE, CaseFilter
from scoring.lists_values import ListError
from scoring.verdicts import verdict_named

MAX_NAME = 64


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AssignBody(_Body):
    """To whom; empty gives the case back to the queue."""

    assignee: str = Field(max_length=MAX_NAME)


class NoteBody(_Body):
    """What staff noticed."""

    text: str = Field(min_length=1, max_length=MAX_NOTE)


class DecisionBody(_Body):
    """``decision``: fraud, genuine or unclear. ``known_at_ms``: business time, for replays of the past (default: now).

    ``exempt_until_us`` (with genuine): the customer is exempt from ``exempt_rule`` (empty: every rule) until then; an
    analyst's that lasts long is proposed only.
    """

    decision: str = Field(max_length=16)
    text: str = Field(default="", max_length=MAX_NOTE)
    known_at_ms: int | None = Field(default=None, ge=0)
    exempt_rule: str = Field(default="", max_length=MAX_NAME)
    exempt_until_us: int | None = Field(default=None, ge=0)


class ExemptionBody(_Body):
    """``action``: approve or reject a proposed exemption, and why."""

    action: Literal["approve", "reject"]
    why: str = Field(min_length=1, max_length=MAX_NOTE)


def cases_router(cases: CaseService, party: str) -> APIRouter:
    """The routes; the caller puts them behind the operator's door."""
    router = APIRouter(prefix="/cases")

    @router.get("")
    def listed(
        status: str = Query("open", max_length=8),
        kind: str = Query("", max_length=16),
        customer: str = Query("", max_length=256),
        assignee: str | None = Query(None, max_length=MAX_NAME),
        severity: str = Query("allow", max_length=16),
        opened_before: int | None = Query(None, ge=0),
        limit: int = Query(50, ge=1, le=MAX_PAGE),
        offset: int = Query(0, ge=0),
    ) -> dict[str, Any]:
        """Cases, the gravest and oldest first; ``status`` is open, closed or all."""
        try:
            least = int(verdict_named(severity))
        except ValueError as error:
            raise RequestError("malformed", str(error), party) from error
        wanted = CaseFilter("" if status == "all" else status, kind, customer, assignee, least, opened_before)
        return {"cases": cases.find(wanted, limit=limit, offset=offset)}

    @router.get("/counts")
    def counts() -> dict[str, Any]:
        """The length of the queue, and how old it is."""
        return cases.counts()

    @router.get("/exemptions")
    def exemptions(limit: int = Query(50, ge=1, le=MAX_PAGE), offset: int = Query(0, ge=0)) -> dict[str, Any]:
        """Exemptions that wait for an approver, the oldest first."""
        return {"exemptions": cases.proposed(limit=limit, offset=offset)}

    @router.get("/{case_id}")
    def show(case_id: int) -> dict[str, Any]:
        """One case with its alerts and notes."""
        return _said(party, lambda: cases.show(case_id))

    @router.post("/{case_id}/assign")
    def assign(case_id: int, body: AssignBody, request: Request) -> dict[str, Any]:
        """Give the case to somebody."""
        return _said(party, lambda: cases.assign(case_id, body.assignee, staff_of(request).name))

    @router.post("/{case_id}/note")
    def note(case_id: int, body: NoteBody, request: Request) -> dict[str, Any]:
        """Add a note."""
        return _said(party, lambda: cases.note(case_id, body.text, staff_of(request).name))

    @router.post("/{case_id}/decide")
    def decide(case_id: int, body: DecisionBody, request: Request) -> dict[str, Any]:
        """Close the case with a decision, which becomes the outcome of its events."""
        clearance = None
        if body.exempt_until_us is not None:
            clearance = Clearance(body.exempt_rule, body.exempt_until_us)
        elif body.exempt_rule:
            raise RequestError("malformed", "exempt_rule needs exempt_until_us", party)
        staff = staff_of(request)
        return _said(
            party,
            lambda: cases.decide(
                case_id,
                body.decision,
                staff.name,
                text=body.text,
                known_at_ms=body.known_at_ms,
                clearance=clearance,
                may_loosen=staff.has(Role.APPROVER),
            ),
        )

    @router.post("/{case_id}/exemption")
    def settle(case_id: int, body: ExemptionBody, request: Request) -> dict[str, Any]:
        """Approve or reject the exemption that was proposed with the case's decision."""
        staff = staff_of(request)
        verb = cases.approve_exemption if body.action == "approve" else cases.reject_exemption
        return _said(party, lambda: verb(case_id, staff.name, body.why, may_loosen=staff.has(Role.APPROVER)))

    return router


def _said(party: str, verb: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return verb()
    except CaseNotPermittedError as error:
        raise RequestError("not-permitted", str(error), party) from error
    except SamePersonError as error:
        raise RequestError("conflict", f"same-person: {error}", party) from error
    except (CaseError, HistoryError, ListError, StreamError) as error:
        raise RequestError("operator", str(error), party) from error
