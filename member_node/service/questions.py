"""What names a question, whoever asks it and however often, and what commits to its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from governance.inquiries import cohort_digest
from governance.messages.codec import Message, encode
from governance.messages.inquiry import Inquiry
from member_node.storage.questions import StatisticSeries


class _Question(Message, frozen=True):
    template: str
    dataset: str
    first_day: int
    last_day: int
    privacy: str


class _DayStatistic(Message, frozen=True):
    template: str
    dataset: str
    directory: bytes
    day: int


def statistic_question(inquiry: Inquiry) -> bytes:
    """32 bytes that name what is asked, whoever asks it."""
    question = _Question(
        template=inquiry.template,
        dataset=inquiry.dataset,
        first_day=inquiry.first_day,
        last_day=inquiry.last_day,
        privacy=inquiry.privacy,
    )
    return hashlib.sha256(b"subrosa/v1/question\0" + encode(question)).digest()


def aggregate_question(inquiry: Inquiry, cohort: Sequence[str]) -> bytes:
    """32 bytes that name what a cohort is asked."""
    return hashlib.sha256(
        b"subrosa/v1/aggregate\0" + statistic_question(inquiry) + cohort_digest(cohort)
    ).digest()


def day_statistic(series: StatisticSeries, day: int) -> bytes:
    """32 bytes that name one member's statistic of one day: what it is stored and sealed under."""
    named = _DayStatistic(
        template=series.template, dataset=series.dataset, directory=series.directory, day=day
    )
    return hashlib.sha256(b"subrosa/v1/day-statistic\0" + encode(named)).digest()


def outcome_commitment(salt: bytes, aggregate: NDArray[np.int64]) -> bytes:
    """SHA-256 over a 32-byte salt and the aggregate as little-endian int64: counts alone could be guessed."""
    values = np.ascontiguousarray(aggregate, dtype="<i8").tobytes()
    return hashlib.sha256(b"subrosa/v1/outcome\0" + salt + values).digest()
