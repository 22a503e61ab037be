"""Labelled rows for training, and the times that keep a model from learning what it could not have known.

A model put to work at time T may learn from transactions up to T - label delay, with the labels that were known at
T. So the training window is followed by a gap of the label delay, and the model is measured on what comes after it:

    train_first ... train_until   (label delay: nothing is used)   valid_first = T ... valid_until
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).max


class DatasetError(ValueError):
    """The rows or the windows do not allow a training; the text says which and why."""


class DataWindow(msgspec.Struct, frozen=True):
    """Times in microseconds since 1970; a window holds its first instant and not its last (``until``)."""

    train_first_us: int
    train_until_us: int
    label_delay_us: int
    valid_until_us: int

    @property
    def valid_first_us(self) -> int:
        """When the model could have gone to work: training labels known later do not count."""
        return self.train_until_us + self.label_delay_us

    def check(self) -> None:
        """Raise :class:`DatasetError` unless all three parts have a length."""
        if self.label_delay_us < 0:
            raise DatasetError("the label delay is negative")
        if self.train_until_us <= self.train_first_us:
            raise DatasetError("the training window is empty")
        if self.valid_until_us <= self.valid_first_us:
            raise DatasetError("nothing is left for validation after the training window and the label delay")

    @staticmethod
    def ending(until_us: int, *, train_us: int, valid_us: int, label_delay_us: int) -> DataWindow:
        """The windows that end at ``until_us``: validation last, before it the gap, before that training."""
        train_until = until_us - valid_us - label_delay_us
        return DataWindow(train_until - train_us, train_until, label_delay_us, until_us)


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """``n`` scored transactions with ``f`` features and what became of them, in time order.

    names           the features, in the order of the matrix
    features        float64 [n, f], NaN where a feature has no value
    fraud_known_us  int64 [n]: when the transaction became known as fraud, ``NEVER`` if it did not
    time_us         int64 [n]
    amount          float64 [n]: what a fraud would cost
    customer        int64 [n]: codes of customers, -1 where none is named
    weight          float64 [n]: how much a row counts in training, positive
    """

    names: tuple[str, ...]
    features: NDArray[np.float64]
    fraud_known_us: NDArray[np.int64]
    time_us: NDArray[np.int64]
    amount: NDArray[np.float64]
    customer: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.time_us)
        if self.features.shape != (n, len(self.names)) or self.features.dtype != np.float64:
            raise DatasetError(
                f"features are {self.features.dtype} {self.features.shape}, not float64 {(n, len(self.names))}"
            )
        if len(set(self.names)) != len(self.names) or not self.names:
            raise DatasetError("features need names, each its own")
        for name in ("fraud_known_us", "amount", "customer", "weight"):
            if len(getattr(self, name)) != n:
                raise DatasetError(f"{name} has {len(getattr(self, name))} rows of {n}")
        if np.any(np.diff(self.time_us) < 0):
            raise DatasetError("rows are not in time order")
        if not (np.isfinite(self.weight).all() and np.all(self.weight > 0)):
            raise DatasetError("a weight is not a positive number")

    def __len__(self) -> int:
        return len(self.time_us)

    def take(self, rows: NDArray[Any]) -> LabelledRows:
        """The rows of an index array or mask, in that order."""
        return LabelledRows(
            self.names,
            self.features[rows],
            self.fraud_known_us[rows],
            self.time_us[rows],
            self.amount[rows],
            self.customer[rows],
            self.weight[rows],
        )

    def fraud_as_of(self, time_us: int) -> NDArray[np.bool_]:
        """bool [n]: the label somebody had at ``time_us``; what was not known as fraud then counts as genuine."""
        return self.fraud_known_us <= time_us


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """The two parts of a window with the labels each may see; ``*_fraud`` bool."""

    train: LabelledRows
    train_fraud: NDArray[np.bool_]
    valid: LabelledRows
    valid_fraud: NDArray[np.bool_]


def split(rows: LabelledRows, window: DataWindow) -> TrainingRows:
    """Cut ``rows`` by ``window``: training labels as of the first instant of validation, validation's as known at all.

    Raises :class:`DatasetError` when the training part lacks frauds or genuine transactions.
    """
    window.check()
    train = rows.take((rows.time_us >= window.train_first_us) & (rows.time_us < window.train_until_us))
    valid = rows.take((rows.time_us >= window.valid_first_us) & (rows.time_us < window.valid_until_us))
    train_fraud = train.fraud_as_of(window.valid_first_us)
    frauds = int(train_fraud.sum())
    if frauds in (0, len(train)):
        what = "no transaction" if not len(train) else "no fraud" if not frauds else "nothing but fraud"
        raise DatasetError(f"the training window holds {what} known before validation begins")
    if not len(valid):
        raise DatasetError("the validation window holds no transaction")
    return TrainingRows(train, train_fraud, valid, valid.fraud_known_us != NEVER)
