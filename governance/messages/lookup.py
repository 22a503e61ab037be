"""Private lookup: what a caller sends to a key holder, and what the holder signs (DESIGN 5.1)."""

from __future__ import annotations

from typing import ClassVar

from governance.messages.codec import Message
from governance.messages.signed import Evidence

MAX_ELEMENTS = 4096


class EvaluateRequest(Message, frozen=True):
    """``elements``: 1..4096 blinded ristretto255 elements of 32 bytes, end to end.

    ``quota`` is ``"lookup"`` (new counterparties) or ``"enrolment"`` (a bank's existing book, once per epoch).
    """

    request_id: bytes
    epoch: int
    kind_group: str
    generation: int
    purpose: str
    quota: str
    elements: bytes


class EvaluateResponse(Evidence, frozen=True):
    """``elements`` in the order of the request, ``proof`` one batch DLEQ proof (64 bytes) against the public share."""

    CONTEXT: ClassVar[str] = "evaluate-response"

    request_id: bytes
    request_digest: bytes
    epoch: int
    kind_group: str
    generation: int
    share_index: int
    elements: bytes
    proof: bytes


class EvaluationCount(Message, frozen=True):
    """Requests of one caller within the period. ``refusal`` is empty for permitted ones, else the reason."""

    caller: str
    kind_group: str
    purpose: str
    quota: str
    refusal: str
    requests: int
    elements: int


class EvaluationTotals(Evidence, frozen=True):
    """A key holder's signed account of what it was asked in a period (unix seconds, half open)."""

    CONTEXT: ClassVar[str] = "evaluation-totals"

    holder: str
    sequence: int
    period_start: int
    period_end: int
    counts: list[EvaluationCount]
