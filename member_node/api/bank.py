"""What the bank's own staff and systems call, with the operator token, on the bank's own network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.index import MAX_LABELS
from governance.messages.problems import ProblemError, RequestError
from governance.policy.parameters import tier_for
from governance.purposes import Purpose, Quota
from member_node.client.ports import PartyUnreachableError
from member_node.node import MemberNode
from member_node.service.contribution import Finding
from member_node.storage.questions import InquiryRecord

MAX_TEXT = 256
MAX_INQUIRIES = 1000
MAX_VALUES = 100_000


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LookupBody(_Body):
    """One value to look up. ``now_ms``: business time in unix milliseconds (0: the clock) that labels are valid at."""

    kind: str = Field(max_length=32)
    value: str = Field(max_length=MAX_TEXT)
    purpose: str = Purpose.INVESTIGATION.value
    now_ms: int = Field(default=0, ge=0)


class EnrolBody(_Body):
    """The bank's existing book of one kind: tags are fetched under the enrolment quota."""

    kind: str = Field(max_length=32)
    values: list[str] = Field(max_length=MAX_VALUES)


class FindingBody(_Body):
    """One finding; times in unix milliseconds of business time."""

    kind: str = Field(max_length=32)
    value: str = Field(max_length=MAX_TEXT)
    typology: str = Field(max_length=48)
    distinct_victims: int = Field(ge=0, lt=10**6)
    first_seen_ms: int = Field(ge=0)
    last_seen_ms: int = Field(ge=0)

    def finding(self) -> Finding:
        """The finding as the service takes it."""
        return Finding(
            self.kind,
            self.value,
            self.typology,
            self.distinct_victims,
            self.first_seen_ms,
            self.last_seen_ms,
        )


class IndicatorBody(FindingBody):
    """One finding, contributed at ``now_ms`` of business time."""

    now_ms: int = Field(ge=0)


class IndicatorsBody(_Body):
    """Many findings, contributed at ``now_ms`` of business time."""

    findings: list[FindingBody] = Field(max_length=MAX_LABELS)
    now_ms: int = Field(ge=0)


class InquiryBody(_Body):
    """Days since 1970-01-01, both inclusive."""

    first_day: int = Field(ge=0)
    last_day: int = Field(ge=0)


class SyncBody(_Body):
    """``now_ms``: business time in unix milliseconds."""

    now_ms: int = Field(default=0, ge=0)


def ledger_row(record: InquiryRecord, outcomes_sent: Mapping[bytes, bool]) -> dict[str, Any]:
    """What a member knows of one inquiry; ``outcome_logged`` is null unless it asked and has the aggregate."""
    return {
        "inquiry_id": record.inquiry_id.hex(),
        "requester": record.requester,
        "first_day": record.first_day,
        "last_day": record.last_day,
        "decided_at": record.decided_at,
        "takes_part": not record.refusal,
        "refusal": record.refusal,
        "contributed": bool(record.contribution),
        "outcome_logged": outcomes_sent.get(record.inquiry_id),
    }


def bank_router(node: MemberNode) -> APIRouter:
    """The bank-internal routes of ``node``; the caller puts them behind the operator's door."""
    router = APIRouter()

    @router.get("/status")
    def status() -> dict[str, Any]:
        """Everything the node knows of itself and of what others asked of it."""
        return node.status()

    @router.post("/sync")
    def sync(body: SyncBody | None = None) -> dict[str, Any]:
        """Fetch roll, policy, checkpoint and index."""
        node.refresh()
        report = node.index.sync(body.now_ms if body else 0)
        return {
            "deltas": report.deltas,
            "labels": report.labels,
            "refused": list(report.refused),
            "matches": [
                {"kind": match.kind, "value": match.value, "contributor": match.contributor}
                for match in report.matches
            ],
            "overdue_receipts": report.overdue_receipts,
            "withheld_deltas": report.behind,
        }

    @router.post("/lookups")
    def look_up(body: LookupBody) -> dict[str, Any]:
        """Ask the consortium about one value, and show the labels on it."""
        report = node.lookup.tags(body.kind, [body.value], purpose=body.purpose)
        if report.invalid:
            raise RequestError("invalid-indicator", f"{body.kind}: {report.invalid[body.value]}", node.party)
        labels = node.index.evidence(body.kind, [body.value]).get(body.value, ())
        now_ms = body.now_ms or int(time.time() * 1000)
        victims = sum(each.distinct_victims for each in labels if each.issued_at <= now_ms < each.expires_at)
        tier = tier_for(node.consortium.policy, victims)
        return {
            "kind": body.kind,
            "asked_consortium": report.evaluated > 0,
            "now_ms": now_ms,
            "distinct_victims": victims,
            "tier": None if tier is None else {"name": tier.name, "verdict": tier.verdict},
            "labels": [
                {
                    "contributor": label.contributor,
                    "typology": label.typology,
                    "grade": label.grade,
                    "distinct_victims": label.distinct_victims,
                    "first_seen_ms": label.first_seen,
                    "last_seen_ms": label.last_seen,
                    "issued_at_ms": label.issued_at,
                    "expires_at_ms": label.expires_at,
                }
                for label in labels
            ],
        }

    @router.post("/enrolments")
    def enrol(body: EnrolBody) -> dict[str, Any]:
        """Fetch tags for the bank's existing book once per key epoch, so that new labels match it at once."""
        report = node.lookup.tags(body.kind, body.values, quota=Quota.ENROLMENT)
        return {"cached": report.cached, "evaluated": report.evaluated, "invalid": len(report.invalid)}

    @router.post("/indicators")
    def contribute(body: IndicatorBody) -> dict[str, Any]:
        """Contribute one indicator to the index."""
        return {"accepted": node.contribution.contribute([body.finding()], body.now_ms)}

    @router.post("/indicators/batch")
    def contribute_batch(body: IndicatorsBody) -> dict[str, Any]:
        """Contribute many indicators at once."""
        findings = [each.finding() for each in body.findings]
        return {"accepted": node.contribution.contribute(findings, body.now_ms)}

    @router.post("/inquiries")
    def ask(body: InquiryBody) -> dict[str, Any]:
        """Ask the confirmed frauds of the whole cohort; only non-zero cells are listed."""
        aggregate = node.inquiry.ask(body.first_day, body.last_day)
        days, cells = aggregate.nonzero()
        return {
            "first_day": body.first_day,
            "days": int(aggregate.shape[0]),
            "cells": int(aggregate.shape[1]),
            "total": int(aggregate.sum()),
            "counts": [
                {
                    "day": body.first_day + int(day),
                    "entity": node.directory_values[int(cell)],
                    "count": int(aggregate[day, cell]),
                }
                for day, cell in zip(days, cells, strict=True)
            ],
        }

    @router.get("/inquiries")
    def inquiries() -> dict[str, Any]:
        """The member's own ledger: the newest inquiries it has decided on."""
        sent = node.questions.outcomes_sent()
        return {"inquiries": [ledger_row(each, sent) for each in node.questions.inquiries(MAX_INQUIRIES)]}

    @router.get("/inquiries/{identifier}")
    def inquiry(identifier: str) -> dict[str, Any]:
        """One inquiry of the ledger, with the state the coordinator gives."""
        try:
            record = node.questions.inquiry(bytes.fromhex(identifier))
        except ValueError as error:
            raise RequestError("malformed", "an inquiry's id is 64 hexadecimal digits") from error
        if record is None:
            raise RequestError("not-found", "this member has decided on no such inquiry", node.party)
        row = ledger_row(record, node.questions.outcomes_sent())
        try:
            status = node.coordinator.inquiry_status(record.inquiry_id, 0.0)
        except (PartyUnreachableError, ProblemError) as error:
            return row | {"state": "unknown", "state_reason": str(error), "waiting_for": [], "cohort": []}
        return row | {
            "state": status.state,
            "state_reason": "",
            "waiting_for": status.waiting_for,
            "cohort": status.cohort,
        }

    @router.post("/totals")
    def send_totals() -> dict[str, Any]:
        """Send the evaluation totals now instead of at the end of the hour."""
        return {"sent": node.totals.send()}

    return router
