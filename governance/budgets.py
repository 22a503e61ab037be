"""Evaluation budgets of a key holder: pure arithmetic on integers; the member stores the state in one transaction.

One state belongs to one (caller, kind group). Three limits hold together: a token bucket per second, a daily sum of
``lookup`` elements and a sum of ``enrolment`` elements per epoch. What cannot be spent changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from governance.messages.lookup import MAX_ELEMENTS
from governance.messages.policy import EvaluationBudget
from governance.purposes import Quota

SECONDS_PER_DAY = 86_400


class BudgetExceededError(Exception):
    """``party`` asked for more than its budget; ``limit`` names which.

    ``retry_after`` is in seconds, 0 if waiting does not help.
    """

    def __init__(
        self, party: str, limit: str, allowed: int, remaining: int, asked: int, retry_after: int
    ) -> None:
        super().__init__(
            f"{limit}: {asked} elements asked, {remaining} of {allowed} left"
            + (f", renewed in {retry_after} s" if retry_after else "")
        )
        self.party = party
        self.limit = limit
        self.allowed = allowed
        self.remaining = remaining
        self.asked = asked
        self.retry_after = retry_after


@dataclass(frozen=True)
class BudgetState:
    """What one caller has spent. ``day`` counts UTC days, ``tokens`` are elements left in the bucket at ``second``."""

    day: int = 0
    lookups_today: int = 0
    epoch: int = 0
    enrolled: int = 0
    second: int = 0
    tokens: int = 0


def bucket_size(limits: EvaluationBudget) -> int:
    """Elements that may be asked at once: one second's worth, and never less than one full request."""
    return max(limits.elements_per_second, MAX_ELEMENTS)


def spend(
    state: BudgetState,
    count: int,
    limits: EvaluationBudget,
    now: int,
    *,
    quota: str,
    epoch: int,
    party: str,
) -> BudgetState:
    """The state after ``party`` has ``count`` elements evaluated at ``now`` (unix seconds) in key epoch ``epoch``.

    Raises :class:`BudgetExceededError`. A clock that goes back renews nothing; an epoch that has ended gives nothing.
    """
    if count < 1:
        raise ValueError(f"at least one element is spent, not {count}")
    if epoch < state.epoch:
        raise BudgetExceededError(party, f"epoch {epoch} has ended", 0, 0, count, 0)
    day = max(now // SECONDS_PER_DAY, state.day)
    lookups = state.lookups_today if day == state.day else 0
    enrolled = state.enrolled if epoch == state.epoch else 0
    second = max(now, state.second)
    size = bucket_size(limits)
    tokens = min(size, state.tokens + (second - state.second) * limits.elements_per_second)

    # first what waiting does not help or helps last, so that the answer names the limit that matters
    if quota == Quota.LOOKUP:
        if lookups + count > limits.lookups_per_day:
            renewed = (day + 1) * SECONDS_PER_DAY - now
            left = max(0, limits.lookups_per_day - lookups)
            raise BudgetExceededError(party, "lookups per day", limits.lookups_per_day, left, count, renewed)
        lookups += count
    elif quota == Quota.ENROLMENT:
        if enrolled + count > limits.enrolment_per_epoch:
            left = max(0, limits.enrolment_per_epoch - enrolled)
            raise BudgetExceededError(
                party, "enrolment per epoch", limits.enrolment_per_epoch, left, count, 0
            )
        enrolled += count
    else:
        raise BudgetExceededError(party, "unknown quota", 0, 0, count, 0)
    if count > tokens:
        missing = count - tokens
        wait = (
            -(-missing // limits.elements_per_second)
            if limits.elements_per_second > 0 and count <= size
            else 0
        )
        raise BudgetExceededError(
            party, "elements per second", limits.elements_per_second, tokens, count, wait + (second - now)
        )
    return replace(
        state,
        day=day,
        lookups_today=lookups,
        epoch=epoch,
        enrolled=enrolled,
        second=second,
        tokens=tokens - count,
    )
