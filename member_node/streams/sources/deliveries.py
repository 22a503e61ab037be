"""What passes between a source and scoring: deliveries in, one answer a row out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from governance.messages.problems import RequestError

MAX_EVENT_BYTES = 64 * 1024
MAX_DELIVERY_BYTES = 8 * 2**20
# What a row takes at least, roughly: the weight of a delivery that is not decoded yet.
ROW_BYTES = 200
REFUSED = "refused"
EventId: TypeAlias = int | str


class Encoding(Enum):
    """How a delivery spells its rows; the value is the media type."""

    OBJECT = "application/json"
    LINES = "application/x-ndjson"
    ARROW = "application/vnd.apache.arrow.stream"


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a source hands over at once. ``arrived``: seconds of ``time.perf_counter`` when it was there as a whole."""

    source: str
    encoding: Encoding
    body: bytes
    arrived: float

    @property
    def weight(self) -> int:
        """About how many rows it holds."""
        return 1 if self.encoding is Encoding.OBJECT else 1 + len(self.body) // ROW_BYTES


class ToldReason(msgspec.Struct, frozen=True, gc=False):
    """One rule's word against an event."""

    rule: str
    verdict: str
    text: str


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The answer for one row.

    A judged row, and a duplicate of one, has ``verdict``, ``degraded``, ``reasons`` and ``rule_version``; a refused row
    has ``code`` (of ``scoring.row_codes.RowCode``) and ``field``.
    """

    event_id: EventId | None
    disposition: str
    verdict: str | UnsetType = UNSET
    degraded: bool | UnsetType = UNSET
    reasons: tuple[ToldReason, ...] | UnsetType = UNSET
    rule_version: int | UnsetType = UNSET
    code: str | UnsetType = UNSET
    field: str | UnsetType = UNSET


# One answer a row in the order of the rows, or why the delivery was refused as a whole.
Answered: TypeAlias = list[Answer] | RequestError
# Scores deliveries in their order; what it returns is durable. What it raises means that nothing was accepted.
Take: TypeAlias = Callable[[Sequence[Delivery]], Sequence[Answered]]


def check_size(encoding: Encoding, size: int) -> None:
    """Raise ``RequestError`` for a delivery of too many bytes."""
    most = MAX_EVENT_BYTES if encoding is Encoding.OBJECT else MAX_DELIVERY_BYTES
    if size > most:
        raise RequestError("too-large", f"a delivery as {encoding.value} has at most {most} bytes")
