"""The bank's models over the bank-internal API: what there is and what serves, changes of state, drift."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.api.operator import staff_of
from member_node.service.history_files import HistoryError
from member_node.service.models import ModelBook, card_of
from member_node.service.staff import Role
from member_node.service.stream_parts import StreamError
from member_node.service.training import ScoredHistory, history_drift
from member_node.storage.registry import RegisteredModel, UnknownModelError
from scoring.drift import ColumnDrift, DriftReport
from scoring.models.artefact import ArtefactError
from scoring.models.dataset import DatasetError
from scoring.models.lifecycle import LifecycleError
from scoring.models.served import ModelError

LOGGER = logging.getLogger(__name__)
MAX_WHY = 500
DAY_US = 86_400_000_000
T = TypeVar("T")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RegisterBody(_Body):
    """The name under which a trained model lies in the node's ``models`` folder (``NAME.trained``), and its SHA-256."""

    name: str = Field(max_length=64)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    why: str = Field(default="", max_length=MAX_WHY)


class ChangeBody(_Body):
    """Why, for the audit trail."""

    why: str = Field(default="", max_length=MAX_WHY)


class DriftBody(_Body):
    """Unix milliseconds of business time; ``until_ms`` 0: the newest event; ``since_ms`` 0: seven days before that."""

    since_ms: int = Field(default=0, ge=0)
    until_ms: int = Field(default=0, ge=0)


def models_router(
    book: ModelBook, history: ScoredHistory, party: str, flush: Callable[[], None] = lambda: None
) -> APIRouter:
    """The routes; the caller puts them behind the operator's door.

    ``flush`` brings what was scored so far into the history's files (``StreamError``: no stream is open).
    """
    router = APIRouter(prefix="/models")

    def run(verb: Callable[[], T]) -> T:
        try:
            return verb()
        except UnknownModelError as error:
            raise RequestError("not-found", str(error), party) from error
        except (ArtefactError, DatasetError, HistoryError, LifecycleError, ModelError, OSError) as error:
            raise RequestError("operator", str(error), party) from error

    def name_of(request: Request, *roles: Role) -> str:
        """Who calls, if they have one of the roles (none asked for: anybody on the staff)."""
        staff = staff_of(request)
        if roles and not staff.has(*roles):
            raise RequestError("not-permitted", f"this needs the role {' or '.join(roles)}", party)
        return staff.name

    def flushed() -> None:
        try:
            flush()
        except StreamError:
            LOGGER.info("no stream is open: the history's files hold all there is")

    @router.get("")
    def listed() -> dict[str, Any]:
        """All models, the newest first, and what serves now."""
        serving = book.serving()
        return {
            "models": [model_row(each) for each in book.models()],
            "serving": {
                "active": None if serving.active is None else serving.active.version,
                "shadows": [each.version for each in serving.shadows],
                "failure": serving.failure,
                "out_of_service": {str(version): why for version, why in serving.broken.items()},
                "rows_without_score": {
                    str(each.version): each.failures
                    for each in (serving.active, *serving.shadows)
                    if each is not None
                },
            },
            "columns": None if book.columns is None else sorted(book.columns),
        }

    @router.get("/{version}")
    def show(version: int) -> dict[str, Any]:
        """One model: what it was trained on, how good it was, who changed its state."""
        model = run(lambda: book.model(version))
        return {
            **model_row(model),
            "card": msgspec.to_builtins(card_of(model)),
            "changes": [asdict(each) for each in book.changes(version)],
        }

    @router.post("")
    def register(body: RegisterBody, request: Request) -> dict[str, Any]:
        """Register a trained model's file, which is taken away."""
        who = name_of(request)
        digest = bytes.fromhex(body.digest)
        return model_row(run(lambda: book.take_in(body.name, digest, who, body.why)))

    @router.post("/history")
    def written() -> dict[str, Any]:
        """Have everything scored so far in the history's files, which a training reads."""
        flushed()
        return {"written": True}

    @router.post("/rollback")
    def roll_back(body: ChangeBody, request: Request) -> dict[str, Any]:
        """Go back to the model before the active one."""
        return model_row(run(lambda: book.roll_back(name_of(request, Role.APPROVER), body.why)))

    @router.post("/{version}/shadow")
    def shadow(version: int, body: ChangeBody, request: Request) -> dict[str, Any]:
        """Let a model score beside the active one: every event pays for it, so an approver lets it in."""
        return model_row(run(lambda: book.shadow(version, name_of(request, Role.APPROVER), body.why)))

    @router.post("/{version}/promote")
    def promote(version: int, body: ChangeBody, request: Request) -> dict[str, Any]:
        """Make a model the active one; by somebody else than who registered it."""
        return model_row(run(lambda: book.promote(version, name_of(request, Role.APPROVER), body.why)))

    @router.post("/{version}/retire")
    def retire(version: int, body: ChangeBody, request: Request) -> dict[str, Any]:
        """Take a model out of service."""
        return model_row(run(lambda: book.retire(version, name_of(request, Role.APPROVER), body.why)))

    @router.post("/{version}/drift")
    def drift(version: int, body: DriftBody) -> dict[str, Any]:
        """How far the history has moved from what the model was trained on."""

        def measure() -> dict[str, Any]:
            flushed()
            last = history.span_us()[1] + 1
            until = body.until_ms * 1000 if body.until_ms else last
            since = body.since_ms * 1000 if body.since_ms else until - 7 * DAY_US
            model = book.load(version)
            return {"version": version, "since_us": since, "until_us": until} | drift_row(
                history_drift(history, model, since, until)
            )

        return run(measure)

    return router


def model_row(model: RegisteredModel) -> dict[str, Any]:
    """A line of the registry for people and programs; times in ISO 8601."""
    card = card_of(model)
    metrics = card.metrics
    return {
        "version": model.version,
        "name": model.name,
        "state": model.state.value,
        "digest": model.digest.hex(),
        "features": len(card.features),
        "roc_auc": metrics.roc_auc,
        "average_precision": metrics.average_precision,
        "suggested_threshold": metrics.suggested_threshold,
        "registered_by": model.registered_by,
        "registered_at": _moment(model.registered_at_us),
        "changed_at": _moment(model.changed_at_us),
        "replaced": model.replaced or None,
        "file_kept": model.kept,
    }


def drift_row(report: DriftReport) -> dict[str, Any]:
    """A drift report as JSON; a measure that is not defined is null."""

    def row(each: ColumnDrift) -> dict[str, Any]:
        shown = {name: None if value != value else value for name, value in asdict(each).items()}
        return shown | {"level": each.level}

    return {
        "rows_then": report.rows_then,
        "rows_now": report.rows_now,
        "level": report.level,
        "score": row(report.score),
        "features": [row(each) for each in report.features],
    }


def _moment(time_us: int) -> str:
    return dt.datetime.fromtimestamp(time_us / 1e6, tz=dt.UTC).isoformat(timespec="seconds")
