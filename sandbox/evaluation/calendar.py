"""Which days train a model, which test it, and which rows a fair test leaves out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

EPOCH = dt.date(1970, 1, 1)


@dataclass(frozen=True)
class Weeks:
    """Train on ``train_days`` from ``train_first``; then ``delay_days`` of unknown labels; then ``test_days``."""

    train_first: dt.date
    train_days: int
    delay_days: int
    test_days: int

    @staticmethod
    def from_table(table: Mapping[str, Any]) -> Weeks:
        """From a mapping file's ``[evaluation]``; raises ``ValueError`` naming the key that is wrong."""
        try:
            first = table["train_first"]
            weeks = Weeks(
                train_first=first if isinstance(first, dt.date) else dt.date.fromisoformat(first),
                train_days=int(table["train_days"]),
                delay_days=int(table["delay_days"]),
                test_days=int(table["test_days"]),
            )
        except KeyError as error:
            raise ValueError(f"[evaluation] lacks {error.args[0]}") from error
        if weeks.train_days < 1 or weeks.test_days < 1 or weeks.delay_days < 0:
            raise ValueError(
                "[evaluation] needs train_days and test_days of at least 1, delay_days of at least 0"
            )
        return weeks

    @property
    def first_train_day(self) -> int:
        """Days since 1970-01-01."""
        return (self.train_first - EPOCH).days

    @property
    def first_test_day(self) -> int:
        """Days since 1970-01-01."""
        return self.first_train_day + self.train_days + self.delay_days

    def train_rows(self, day: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Rows of the training days; ``day``: days since 1970-01-01, any shape."""
        return (day >= self.first_train_day) & (day < self.first_train_day + self.train_days)

    def test_rows(
        self,
        day: npt.NDArray[np.int64],
        customer: npt.NDArray[np.int64],
        fraud: npt.NDArray[np.int8],
    ) -> npt.NDArray[np.bool_]:
        """Rows of the test days, without customers already known as compromised.

        Known on a test day are the customers with a fraud in the training days or up to ``delay_days + 1`` days before
        that day: the handbook's rule (Fraud Detection Handbook, chapter 3, ``get_train_test_set``).
        """
        rows = np.zeros(len(day), bool)
        is_fraud = fraud == 1
        known = set(customer[self.train_rows(day) & is_fraud].tolist())
        for number in range(self.test_days):
            confirmed = self.first_train_day + self.train_days + number - 1
            known |= set(customer[(day == confirmed) & is_fraud].tolist())
            today = np.flatnonzero(day == self.first_test_day + number)
            rows[today] = ~np.isin(customer[today], np.fromiter(known, np.int64, len(known)))
        return rows
