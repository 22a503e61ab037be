"""How much a rule may decline before the brake stops it: part of a rule set's text, so approved with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoring.verdicts import Verdict

HOUR_US = 3_600_000_000
# More would be no brake at all.
MAX_MIN_EVENTS = 10**9
MAX_MIN_CUSTOMERS = 10**6
MAX_WINDOW_US = 30 * 24 * HOUR_US


def check_share(share: float, what: str) -> float:
    """``share`` if it is in (0, 1]; raises ValueError naming ``what`` otherwise (NaN included)."""
    if not (math.isfinite(share) and 0.0 < share <= 1.0):
        raise ValueError(f"{what} is above 0 and at most 1, not {share}")
    return share


@dataclass(frozen=True)
class BrakeLimits:
    """The shares of events, each in (0, 1], that one rule may give a verdict to within ``window_us`` microseconds.

    A rule is judged only when it has seen at least ``min_events`` events in the window: a share of few is noise. Of one
    customer so few declines count that at least ``min_customers`` take part in stopping a rule, as far as the share of
    ``min_events`` is that many. Raises ValueError for values outside their range.
    """

    window_us: int = HOUR_US
    min_events: int = 1000
    min_customers: int = 5
    challenge: float = 0.2
    review: float = 0.1
    block: float = 0.05

    def __post_init__(self) -> None:
        if not 1_000_000 <= self.window_us <= MAX_WINDOW_US:
            raise ValueError("the brake's window lasts between a second and 30 days")
        if not 1 <= self.min_events <= MAX_MIN_EVENTS:
            raise ValueError(f"the brake needs min_events of at least 1 and at most {MAX_MIN_EVENTS}")
        if not 1 <= self.min_customers <= MAX_MIN_CUSTOMERS:
            raise ValueError(f"the brake needs min_customers of at least 1 and at most {MAX_MIN_CUSTOMERS}")
        for verdict in (Verdict.CHALLENGE, Verdict.REVIEW, Verdict.BLOCK):
            check_share(self.share(verdict), f"the brake's share of {verdict.label}")

    def share(self, verdict: Verdict) -> float:
        """The share that may get ``verdict`` from one rule; all of them for allow."""
        return {
            Verdict.ALLOW: 1.0,
            Verdict.CHALLENGE: self.challenge,
            Verdict.REVIEW: self.review,
            Verdict.BLOCK: self.block,
        }[verdict]


DEFAULT_LIMITS = BrakeLimits()
