"""What labels say of each event at the event's own time: distinct victims, reported by whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.streams.events import encoded


class LabelLike(Protocol):
    """The parts of an opened label that evidence needs (times in unix milliseconds of business time)."""

    @property
    def contributor(self) -> str: ...
    @property
    def issued_at(self) -> int: ...
    @property
    def expires_at(self) -> int: ...
    @property
    def distinct_victims(self) -> int: ...


@dataclass(frozen=True, eq=False)
class KindEvidence:
    """Evidence of one kind, one row an event.

    ``own`` and ``all`` float64 [n]: distinct victims in labels valid at the event's time, the bank's own and all
    contributors' (a customer belongs to one bank, so victims of different banks are different people); ``reporters``
    float64 [n]: contributors; ``labels``: JSON text {contributor: victims} or None where there is no valid label.
    """

    own: NDArray[np.float64]
    all: NDArray[np.float64]
    reporters: NDArray[np.float64]
    labels: list[str | None]

    @property
    def own_reporters(self) -> NDArray[np.float64]:
        """1 where the bank's own label is valid, else 0."""
        return (self.own > 0).astype(np.float64)


def distinct_values(column: pa.Array) -> tuple[NDArray[np.int32], list[str]]:
    """Codes int32 [n] (-1 where null) and the distinct values as text."""
    return encoded(column)


def weigh_labels(
    codes: NDArray[np.int32],
    vocabulary: Sequence[str],
    labels: Mapping[str, Sequence[LabelLike]],
    time_us: NDArray[np.int64],
    party: str,
) -> KindEvidence:
    """Join events with the labels on their values: a label counts for issued_at <= T < expires_at."""
    n = len(codes)
    own, total, reporters = np.zeros(n), np.zeros(n), np.zeros(n)
    texts: list[str | None] = [None] * n
    positions = {value: index for index, value in enumerate(vocabulary)}
    for value, views in labels.items():
        code = positions.get(value)
        if code is None or not views:
            continue
        for row in np.flatnonzero(codes == code):
            moment = int(time_us[row]) // 1000
            valid = {
                view.contributor: view.distinct_victims
                for view in views
                if view.issued_at <= moment < view.expires_at
            }
            if not valid:
                continue
            own[row] = valid.get(party, 0)
            total[row] = sum(valid.values())
            reporters[row] = len(valid)
            texts[row] = json.dumps(valid, sort_keys=True, separators=(",", ":"))
    return KindEvidence(own, total, reporters, texts)


def no_evidence(rows: int) -> KindEvidence:
    """Nothing known of any event."""
    zeros = np.zeros(rows)
    return KindEvidence(zeros, zeros, zeros, [None] * rows)
