"""What a member node needs from others, as protocols: an HTTP client and an in-process service satisfy the same one.

All calls block. They raise :class:`~governance.messages.problems.ProblemError` when the other party refuses,
:class:`PartyUnreachableError` when it does not answer (or not verifiably), and
:class:`~governance.messages.codec.MalformedError` when it answers nonsense. Whatever they return still has to be
verified by the caller: a client only knows that the party it called has signed the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from governance.messages.index import Deltas, SubmitLabels
from governance.messages.inquiry import InquiryStatus, InquiryTask, InquiryTasks, OpenInquiry
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.lookup import EvaluateRequest
from governance.messages.signed import Signed

# ``map_chunks(function, chunks)`` gives the results in the order of the chunks. Functions are top level, arguments
# and results picklable, so that a bank may spread them over its own processes.
MapChunks = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
Clock = Callable[[], int]
Random = Callable[[int], bytes]


class PartyUnreachableError(Exception):
    """``party`` did not answer, or what came back is not provably its answer."""

    def __init__(self, party: str, reason: str) -> None:
        super().__init__(f"{party} did not answer: {reason}")
        self.party = party
        self.reason = reason


@dataclass(frozen=True)
class Patience:
    """How long a key holder may take. On a loaded machine an honest one needs seconds for 4096 elements.

    A call ends after ``seconds`` plus ``seconds_per_element`` for each element; after ``late_share`` of that another
    holder is asked as well.
    """

    seconds: float = 4.0
    seconds_per_element: float = 0.004
    late_share: float = 0.25

    def deadline(self, elements: int) -> float:
        """Seconds after which a call is given up."""
        return self.seconds + self.seconds_per_element * elements

    def late(self, elements: int) -> float:
        """Seconds after which a call is late."""
        return self.late_share * self.deadline(elements)


DEFAULT_PATIENCE = Patience()


class NotMaturedError(Exception):
    """The local statistic does not yet hold every day of the window; ``last_matured_day`` is the newest it does."""

    def __init__(self, last_matured_day: int) -> None:
        super().__init__(f"outcomes are complete up to day {last_matured_day} only")
        self.last_matured_day = last_matured_day


class CoordinatorPort(Protocol):
    """The coordinator, as one member sees it. ``since`` is the size of the log the caller has verified."""

    def membership(self) -> Signed:
        """The newest signed :class:`~governance.messages.roll.MembershipRoll`."""

    def policy(self) -> Signed:
        """The newest signed :class:`~governance.messages.policy.PolicyBundle`."""

    def checkpoint(self, since: int) -> CheckpointUpdate:
        """The newest checkpoint with the proof that it extends the tree of ``since`` entries."""

    def log(self, first: int, count: int, since: int) -> LogPage:
        """Up to ``count`` entries from index ``first`` that the caller may read."""

    def submit_labels(self, submission: SubmitLabels) -> Signed:
        """Offer labels to the index; a signed :class:`~governance.messages.index.Receipt`."""

    def deltas(self, after: int, since: int) -> Deltas:
        """The next page of the feed."""

    def send_totals(self, totals: Signed) -> CheckpointUpdate:
        """Hand in signed :class:`~governance.messages.lookup.EvaluationTotals`."""

    def open_inquiry(self, opening: OpenInquiry) -> InquiryTask:
        """Ask for an inquiry; the caller's own task when it is permitted."""

    def tasks(self, wait: float, since: int) -> InquiryTasks:
        """Inquiries that wait for the caller; blocks up to ``wait`` seconds (at most 20) for the first one."""

    def send_mask_key(self, inquiry_id: bytes, envelope: Signed) -> None:
        """A signed :class:`~governance.messages.inquiry.MaskKey`; sending the same again is harmless."""

    def send_contribution(self, inquiry_id: bytes, envelope: Signed) -> None:
        """A signed :class:`~governance.messages.inquiry.Contribution`; sending the same again is harmless."""

    def send_veto(self, inquiry_id: bytes, envelope: Signed) -> None:
        """A signed :class:`~governance.messages.inquiry.Veto`."""

    def inquiry_status(self, inquiry_id: bytes, wait: float) -> InquiryStatus:
        """The state of an inquiry; blocks up to ``wait`` seconds for a change."""

    def send_outcome(self, inquiry_id: bytes, envelope: Signed) -> CheckpointUpdate:
        """A signed :class:`~governance.messages.inquiry.Outcome`."""


class KeyHolderPort(Protocol):
    """One key holder, as one caller sees it."""

    def evaluate(self, request: EvaluateRequest) -> Signed:
        """A signed :class:`~governance.messages.lookup.EvaluateResponse`."""


class LocalStatistic(Protocol):
    """A bank's own statistic behind the template ``confirmed-frauds-per-entity``."""

    def counts(self, first_day: int, last_day: int) -> NDArray[np.int64]:
        """Confirmed frauds by day of the transaction and entity: int64 of shape [days, cells].

        Days count from 1970-01-01 in the data set's zone, both inclusive; cells are in the order of the public
        directory. Raises :class:`NotMaturedError` unless every day of the window is completely matured.
        """


def map_in_turn(function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
    """The plainest :data:`MapChunks`: in this thread, one after the other."""
    return [function(chunk) for chunk in chunks]
