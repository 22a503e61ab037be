"""What may happen to a transaction, in order of severity, and how evidence tiers bound it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Verdict(IntEnum):
    """Severity order: a transaction gets the most severe verdict of all rules that hit it."""

    ALLOW = 0
    CHALLENGE = 1
    REVIEW = 2
    BLOCK = 3

    @property
    def label(self) -> str:
        """The lower-case word used in files, messages and reports."""
        return self.name.lower()


def verdict_named(name: str) -> Verdict:
    """The verdict of a lower-case word; raises ValueError listing the words there are."""
    for verdict in Verdict:
        if verdict.label == name:
            return verdict
    raise ValueError(f"{name!r} is no verdict; use one of {', '.join(v.label for v in Verdict)}")


VERDICT_LABELS: tuple[str, ...] = tuple(verdict.label for verdict in Verdict)


@dataclass(frozen=True)
class EvidenceTier:
    """With at least ``min_victims`` distinct victims, a hit has this name and may give at most ``verdict``."""

    name: str
    min_victims: int
    verdict: Verdict


class TierTable:
    """The policy's evidence tiers, ready for vectors.

    Position 0 stands for "no tier" (not enough victims): it is named ``none`` and permits no more than allow.
    """

    def __init__(self, tiers: Sequence[EvidenceTier]) -> None:
        ordered = sorted(tiers, key=lambda tier: tier.min_victims)
        minima = [tier.min_victims for tier in ordered]
        if len(set(minima)) != len(minima) or any(minimum < 1 for minimum in minima):
            raise ValueError(f"evidence tiers need distinct min_victims of at least 1, not {minima}")
        self.names: tuple[str, ...] = ("none", *(tier.name for tier in ordered))
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"evidence tiers need distinct names other than 'none', not {self.names[1:]}")
        self._minima = np.array(minima, dtype=np.float64)
        self._verdicts = np.array([Verdict.ALLOW, *(tier.verdict for tier in ordered)], dtype=np.uint8)

    def rank(self, victims: NDArray[np.float64]) -> NDArray[np.int64]:
        """Position of each count's tier, 0 for none; shape of ``victims``."""
        return np.searchsorted(self._minima, victims, side="right")

    def verdict(self, rank: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The strongest verdict each rank permits."""
        return self._verdicts[rank]
