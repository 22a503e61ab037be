"""Trains each model under each view and measures it on the same test rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sandbox.evaluation.calendar import Weeks
from sandbox.evaluation.metrics import quality
from sandbox.evaluation.models import train_and_score
from sandbox.evaluation.results import POOLED, ModelRow, Quality
from sandbox.evaluation.stream import ScoredStream

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The rows of one stream that train and test, and who owns them."""

    stream: ScoredStream
    train: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]
    n_jobs: int
    announce: Callable[[str], None]

    @staticmethod
    def of(stream: ScoredStream, weeks: Weeks, n_jobs: int, announce: Callable[[str], None]) -> Comparison:
        """Select rows by ``weeks``."""
        train = weeks.train_rows(stream.day)
        test = weeks.test_rows(stream.day, stream.customer, stream.fraud)
        return Comparison(stream, train, test, n_jobs, announce)

    def row(self, model: str, view: str, x: Floats) -> ModelRow:
        """One model a bank on its own rows of ``x`` ``[n, features]``; one on all rows if ``view`` is pooled."""
        began = time.perf_counter()
        stream, score = self.stream, np.zeros(len(self.stream))
        groups: list[tuple[str, npt.NDArray[np.bool_]]]
        if view == POOLED:
            groups = [("all banks' rows", np.ones(len(stream), bool))]
        else:
            groups = [(party, stream.bank == number) for number, party in enumerate(stream.banks)]
        untrained = []
        for name, mine in groups:
            answer = train_and_score(model, x, stream.fraud, self.train & mine, self.test & mine, self.n_jobs)
            if answer is None:
                untrained.append(name)
            else:
                score[self.test & mine] = answer
        row = ModelRow(
            model=model,
            view=view,
            joint=self._quality(score, self.test),
            banks={
                party: self._quality(score, self.test & (stream.bank == number))
                for number, party in enumerate(stream.banks)
            },
            train_rows=int(self.train.sum()),
            train_frauds=int(stream.fraud[self.train].sum()),
            seconds=time.perf_counter() - began,
            untrained=tuple(untrained),
        )
        self.announce(f"{model}, {view}: {_spoken(row.joint)} in {row.seconds:.0f} s")
        return row

    def _quality(self, score: Floats, rows: npt.NDArray[np.bool_]) -> Quality:
        s = self.stream
        return quality(score[rows], s.fraud[rows], s.customer[rows], s.day[rows])


def _spoken(found: Quality) -> str:
    if found.roc_auc is None or found.average_precision is None:
        return found.why or "not measured"
    return f"ROC AUC {found.roc_auc:.3f}, average precision {found.average_precision:.3f}"
