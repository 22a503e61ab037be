"""What names a question, whoever asks it and however often, and what commits to its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from governance.inquiries import cohort_digest
from governance.messages.codec import Message, encode
from governance.messages.inquiry import Inquiry


class _Question(Message, frozen=True):
    template: str
    dataset: str
    first_day: int
    last_day: int
    privacy: str


def statistic_question(inquiry: Inquiry) -> bytes:
    """32 bytes that name what one member is asked. The cohort is left out on purpose: the same question by another
    cohort gets the same answer, so that two cohorts do not reveal the difference of two draws."""
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


def outcome_commitment(salt: bytes, aggregate: NDArray[np.int64]) -> bytes:
    """SHA-256 over a 32-byte salt and the aggregate as little-endian int64: counts alone could be guessed."""
    values = np.ascontiguousarray(aggregate, dtype="<i8").tobytes()
    return hashlib.sha256(b"subrosa/v1/outcome\0" + salt + values).digest()
