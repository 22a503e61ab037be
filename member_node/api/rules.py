"""The rulebook over the bank-internal API: versions, their life, the brake and the trail of changes.

Refusals are problem documents whose detail begins with a code (``same-person: ...``): ``unknown-version`` and
``unknown-rule`` answer 404, ``stale``, ``wrong-state``, ``same-person``, ``nothing-before`` and ``too-many`` 409, a
missing role 403, anything wrong in a text or a number 422.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.api.operator import staff_of
from member_node.service.history_files import HistoryError
from member_node.service.rulebook import MAX_WHY, NotPermittedError, Rulebook, RulebookError
from member_node.service.stream_parts import StreamError
from member_node.storage.rulebook import VersionRow
from scoring.brake import BrakeCount
from scoring.rules.ruleset import MAX_BYTES, RuleSetError
from scoring.rules.versions import Action, Code, Deployed, LifecycleError

T = TypeVar("T")
MAX_ENTRIES = 1000
_NOT_FOUND = frozenset({Code.UNKNOWN_VERSION, Code.UNKNOWN_RULE})
_UNPROCESSABLE = frozenset({Code.BAD_PERCENT})


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextBody(_Body):
    """A rule set's text (TOML)."""

    text: str = Field(max_length=MAX_BYTES)


class SaveBody(TextBody):
    """A text to save as a new version, and why; ``propose``: ask for its approval at once."""

    why: str = Field(max_length=MAX_WHY)
    propose: bool = True


class ActBody(_Body):
    """An act on a version, and why.

    ``deployment``: the number of the deployment the caller has seen, for acts that change it; ``percent`` of customers,
    for a rollout.
    """

    # Out of JSON it comes as text, which strictness would refuse.
    action: Action = Field(strict=False)
    why: str = Field(max_length=MAX_WHY)
    deployment: int | None = None
    percent: float = 0.0


class ReleaseBody(_Body):
    """A rule to release from the brake, and why; ``deployment`` as in :class:`ActBody`."""

    rule: str = Field(max_length=64)
    why: str = Field(max_length=MAX_WHY)
    deployment: int


def rules_router(
    rulebook: Callable[[], Rulebook],
    brake: Callable[[], Sequence[BrakeCount]],
    party: str,
    flush: Callable[[], None] = lambda: None,
) -> APIRouter:
    """The rulebook's routes; the caller puts them behind the operator's door.

    ``rulebook`` and ``brake`` may raise ``StreamError`` while no stream is open; ``brake`` gives the live windows;
    ``flush`` brings what was scored so far into the history's files, for a backtest in another process.
    """
    router = APIRouter(prefix="/rules")

    def run(verb: Callable[[], T]) -> T:
        try:
            return verb()
        except LifecycleError as error:
            name = "conflict"
            if error.code in _NOT_FOUND:
                name = "not-found"
            elif error.code in _UNPROCESSABLE:
                name = "operator"
            raise RequestError(name, f"{error.code}: {error}", party) from error
        except NotPermittedError as error:
            raise RequestError("not-permitted", str(error), party) from error
        except (HistoryError, RulebookError, StreamError, ValueError) as error:
            raise RequestError("operator", str(error), party) from error

    def opened() -> Rulebook:
        return run(rulebook)

    @router.get("")
    def overview() -> dict[str, Any]:
        """What is deployed, and every version without its text."""
        book = opened()
        return {
            "deployed": deployed_row(book.deployed),
            "versions": [version_row(row, text=False) for row in book.versions()],
        }

    @router.get("/columns")
    def columns() -> dict[str, Any]:
        """The columns rules may read now, with their types."""
        return {"columns": [asdict(column) for column in opened().columns().values()]}

    @router.get("/versions/{number}")
    def show(number: int) -> dict[str, Any]:
        """One version with its text."""
        return run(lambda: version_row(opened().version(number), text=True))

    @router.post("/check")
    def check(body: TextBody) -> dict[str, Any]:
        """Whether a text would be accepted; where it is wrong if not."""
        try:
            ruleset = opened().check(body.text)
        except RuleSetError as error:
            return {
                "ok": False,
                "error": str(error),
                "rule": error.rule,
                "line": error.line,
                "column": error.column,
                "expression_line": error.expression_line,
                "expression_column": error.expression_column,
            }
        return {"ok": True, "rules": len(ruleset.rules), "columns": sorted(ruleset.columns)}

    @router.post("/versions")
    def save(body: SaveBody, request: Request) -> dict[str, Any]:
        """Save a text as a new version, and propose it."""
        staff = staff_of(request)

        def verb() -> dict[str, Any]:
            number = opened().save(body.text, staff, body.why)
            if body.propose:
                opened().act(Action.PROPOSE, number, staff, body.why)
            return version_row(opened().version(number), text=False)

        return run(verb)

    @router.post("/versions/{number}/act")
    def act(number: int, body: ActBody, request: Request) -> dict[str, Any]:
        """Propose, approve, reject, shadow, hold, roll out, activate, roll back or retire a version."""
        staff = staff_of(request)

        def verb() -> dict[str, Any]:
            after = opened().act(
                body.action, number, staff, body.why, seen=body.deployment, percent=body.percent
            )
            return {
                "version": version_row(opened().version(number), text=False),
                "deployed": deployed_row(after),
            }

        return run(verb)

    @router.get("/brake")
    def windows() -> dict[str, Any]:
        """What the brake's windows hold for every live rule, and which are stopped."""
        counts = [asdict(count) for count in run(brake)]
        return {"rules": counts, "stopped": sorted({each["rule"] for each in counts if each["braked"]})}

    @router.post("/brake/release")
    def release(body: ReleaseBody, request: Request) -> dict[str, Any]:
        """Let a stopped rule decide again."""
        staff = staff_of(request)
        if not any(count.rule == body.rule and count.braked for count in run(brake)):
            raise RequestError("conflict", f"wrong-state: no live rule {body.rule!r} is stopped", party)
        after = run(lambda: opened().release(body.rule, staff, body.why, seen=body.deployment))
        return {"deployed": deployed_row(after)}

    @router.post("/history")
    def history() -> dict[str, Any]:
        """Have everything scored so far in the history's files, which a backtest reads."""
        run(flush)
        return {"written": True}

    @router.get("/audit")
    def audit(after: int = 0, limit: int = MAX_ENTRIES) -> dict[str, Any]:
        """The trail of changes behind sequence ``after``, and whether it is whole."""
        entries = opened().audit(max(0, after), min(max(1, limit), MAX_ENTRIES))
        told = [asdict(entry) | {"chain": entry.chain.hex()} for entry in entries]
        return {"entries": told, "whole": opened().trail_is_whole()}

    return router


def version_row(row: VersionRow, *, text: bool) -> dict[str, Any]:
    """A version as the API tells it; with its ``text`` also the columns it read when it was saved."""
    told = asdict(row)
    if text:
        told["columns"] = json.loads(row.columns)
    else:
        del told["text"], told["columns"]
    return told


def deployed_row(deployed: Deployed) -> dict[str, Any]:
    """What is deployed as the API tells it; null where there is none."""
    return {
        "deployment": deployed.number,
        "active": deployed.active or None,
        "rollout": deployed.rollout or None,
        "percent": deployed.percent,
        "shadows": list(deployed.shadows),
        "before": list(deployed.before),
    }
