"""The bank's own stream over the bank-internal API: live scoring, outcomes, and replay of a file day by day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from governance.messages.problems import RequestError
from member_node.service.history_files import HistoryError
from member_node.service.replay import StreamService
from member_node.service.scoring import StreamHaltedError
from member_node.service.stream_parts import StreamError
from member_node.streams.journal import JournalError
from member_node.streams.mapping import MappingError
from member_node.streams.rejects import EventFileError
from member_node.streams.snapshots import SnapshotError
from scoring.features.spec import SpecError
from scoring.rules.ruleset import RuleSetError

MAX_ROWS = 10_000
# What the bank's own staff can put right; the text says how.
OPERATOR_ERRORS = (
    EventFileError,
    HistoryError,
    JournalError,
    MappingError,
    RuleSetError,
    SnapshotError,
    SpecError,
    StreamError,
    OSError,
)
T = TypeVar("T")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OpenBody(_Body):
    """Paths on the node's own machine. ``features`` and ``rules`` default to the mapping's name in the folders
    ``features`` and ``rules`` beside the mapping's own; without ``events`` the stream is live."""

    mapping: str
    events: str = ""
    features: str = ""
    rules: str = ""


class UntilBody(_Body):
    """Unix milliseconds of business time."""

    until_ms: int = Field(ge=0)


class DayBody(_Body):
    """Days since 1970-01-01 in the data set's zone."""

    day: int = Field(ge=0)


class TransactionsBody(_Body):
    """Rows keyed by schema field; ``time`` in ISO 8601."""

    transactions: list[dict[str, str | int | float | None]] = Field(max_length=MAX_ROWS)


class OutcomeBody(_Body):
    """What became of one scored transaction."""

    event_id: str | int
    fraud: bool
    known_at_ms: int = Field(ge=0)


class OutcomesBody(_Body):
    """Outcomes of transactions this bank has scored."""

    outcomes: list[OutcomeBody] = Field(max_length=MAX_ROWS)


def stream_router(stream: StreamService, party: str) -> APIRouter:
    """The bank-internal routes of a stream; the caller puts them behind the operator's door."""
    router = APIRouter()

    def run(verb: Callable[[], T]) -> T:
        try:
            return verb()
        except StreamHaltedError as error:
            raise RequestError("unavailable", str(error), party) from error
        except OPERATOR_ERRORS as error:
            raise RequestError("operator", str(error), party) from error

    @router.get("/stream")
    def report() -> dict[str, Any]:
        """What is open, how far it has come, and what is known of it."""
        return run(stream.report)

    @router.post("/stream/flush")
    def flush() -> dict[str, Any]:
        """Have everything that was scored so far in the history's files."""
        run(stream.flush)
        return {"flushed": True}

    @router.post("/replay/open")
    def open_stream(body: OpenBody) -> dict[str, Any]:
        """Open a stream; the same again is harmless."""
        mapping = Path(body.mapping)
        beside = mapping.parent.parent
        features = Path(body.features) if body.features else beside / "features" / mapping.name
        rules = Path(body.rules) if body.rules else beside / "rules" / mapping.name
        events = Path(body.events) if body.events else None
        return asdict(run(lambda: stream.open(mapping, features, rules, events)))

    @router.post("/replay/confirm")
    def confirm(body: UntilBody) -> dict[str, Any]:
        """Outcomes known by then, the evidence rule, and contributions."""
        return asdict(run(lambda: stream.confirm(body.until_ms)))

    @router.post("/replay/share")
    def share(body: DayBody) -> dict[str, Any]:
        """Mirror the index and ask for matured counts."""
        return asdict(run(lambda: stream.share(body.day)))

    @router.post("/replay/score")
    def score(body: UntilBody) -> dict[str, Any]:
        """Score the replayed file's events before then."""
        return asdict(run(lambda: stream.score(body.until_ms)))

    @router.post("/transactions")
    def transactions(body: TransactionsBody) -> dict[str, Any]:
        """Score live rows in their order."""
        answers, rejects = run(lambda: stream.score_rows(body.transactions))
        return {"scored": answers, "rejected": [asdict(reject) for reject in rejects]}

    @router.post("/outcomes")
    def outcomes(body: OutcomesBody) -> dict[str, Any]:
        """Take outcomes of scored transactions."""
        rows = [(str(each.event_id), each.fraud, each.known_at_ms) for each in body.outcomes]
        return {"recorded": run(lambda: stream.learn(rows))}

    return router
