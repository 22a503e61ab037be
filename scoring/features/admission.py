"""Which events enter the windows: lateness, duplicates, corrections and outcomes, decided one row at a time.

Nothing here depends on how the stream is cut into batches, or on which shard owns an entity: every shard makes the
same decisions from event ids and times alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from scoring.features import frame as batch
from scoring.features.address import ints, longs, octets
from scoring.features.frame import Frame
from scoring.features.index import KeyIndex
from scoring.features.pending import Part
from scoring.features.pool import Pool

_NEVER = -(1 << 62)
_WATERMARK, _SEQUENCE, _HEAD, _TAIL, _UNMATCHED = 0, 1, 2, 3, 4
# Addresses of what is kept of events, then settings.
_REC_TIME, _REC_SEQUENCE, _REC_FRAUD, _FOLLOWING, _META, _LATENESS, _HORIZON = range(7)
_NOTHING = np.empty(0, np.int32)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


class Disposition(IntEnum):
    """What became of a row. Only APPLIED and CORRECTED rows have changed state and carry windowed features."""

    APPLIED = 0
    CORRECTED = 1
    DUPLICATE = 2
    REFUSED_LATE = 3
    REFUSED_BEYOND_HORIZON = 4
    REFUSED_NOTHING_TO_CORRECT = 5
    REFUSED_INVALID = 6

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", "-")


class Admission:
    """Remembers events by id for as long as one may be corrected, repeated or given an outcome."""

    def __init__(self, *, lateness_us: int, correction_us: int, retention_us: int) -> None:
        """``retention_us``: how long an event's outcome may still matter to a window."""
        self._lateness_us = lateness_us
        self._correction_us = correction_us
        self._retention_us = max(retention_us, correction_us)
        self._index = KeyIndex()
        self._time = Pool((), np.int64, fill=_NEVER)
        self._sequence = Pool((), np.int64)
        self._fraud = Pool((), np.bool_)
        self._following = Pool((), np.int32)
        self._meta = np.array([_NEVER, 0, -1, -1, 0], np.int64)
        self._table = np.zeros(7, np.int64)
        self._at = int(self._table.ctypes.data)
        self._table[_LATENESS], self._table[_HORIZON] = lateness_us, correction_us
        self._point()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def bound(self) -> int:
        """Every record in use is below this."""
        return self._index.bound

    @property
    def watermark_us(self) -> int | None:
        """The latest time seen or declared; None before the first."""
        watermark = int(self._meta[_WATERMARK])
        return None if watermark == _NEVER else watermark

    @property
    def unmatched(self) -> int:
        """Outcomes so far whose event was not known when they became known."""
        return int(self._meta[_UNMATCHED])

    @property
    def nbytes(self) -> int:
        pools = (self._time, self._sequence, self._fraud, self._following)
        return self._index.nbytes + sum(pool.nbytes for pool in pools)

    def admit(self, frame: Frame, due: Part) -> int:
        """Decide every row of the frame in turn; how many outcomes have been taken.

        Outcomes ``due`` (ids, fraud, sorted by the time they became known) apply before the first row at or after
        them; the frame gets the decisions and the changes of outcome that fall before each row.
        """
        bound = self._index.fill(frame.ids_at, frame.record_at, frame.rows, skip_at=frame.refusal_at)
        if bound > self._room:
            for pool in (self._time, self._sequence, self._fraud, self._following):
                pool.grow(bound)
            self._point()
        frame.records = bound
        ids, fraud, known_us = due
        frame.place_outcomes(self._index.find(ids) if len(ids) else _NOTHING, fraud, known_us)
        if _admit(self._at, frame.at):
            record = frame.record[frame.record >= 0]
            unused = record[self._time.array[record] == _NEVER]
            if len(unused):
                self._index.remove(np.unique(unused))
        return int(frame.block[batch.CONSUMED]) if len(ids) else 0

    def foresee(
        self,
        ids: NDArray[np.uint64],
        time_us: NDArray[np.int64],
        valid: NDArray[np.bool_],
        correction: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """The dispositions uint8 [n] that :meth:`admit` would give these rows now; nothing changes."""
        distinct, place = np.unique(np.where(valid, ids, np.uint64(0)), return_inverse=True)
        record = self._index.find(distinct)
        held = np.where(record >= 0, self._time.array[np.maximum(record, 0)], _NEVER)
        disposition = np.empty(len(ids), np.uint8)
        spans = np.array([self._lateness_us, self._correction_us], np.int64)
        watermark = int(self._meta[_WATERMARK])
        _foresee(held, place, watermark, spans, time_us, valid, correction, disposition)
        return disposition

    def declare(self, now_us: int) -> None:
        """Time has come to ``now_us``: what is older than that by more than the lateness will be refused."""
        self._meta[_WATERMARK] = max(int(self._meta[_WATERMARK]), now_us)

    def forget(self, budget: int) -> int:
        """Drop at most ``budget`` records that can matter no more, oldest arrivals first; how many were dropped."""
        freed = _expire(self._time.array, self._following.array, self._meta, self._retention_us, budget)
        if len(freed):
            self._index.remove(freed)
        return len(freed)

    def state(self) -> dict[str, NDArray[Any]]:
        """All arrays, enough for ``restore``: views, good until the next change."""
        bound = self.bound
        arrays = {f"index.{name}": array for name, array in self._index.state().items()}
        arrays["time"] = self._time.array[:bound]
        arrays["sequence"] = self._sequence.array[:bound]
        arrays["fraud"] = self._fraud.array[:bound]
        arrays["following"] = self._following.array[:bound]
        arrays["meta"] = self._meta
        return arrays

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._index.restore(
            {k.removeprefix("index."): v for k, v in arrays.items() if k.startswith("index.")}
        )
        self._time = Pool.of(arrays["time"], fill=_NEVER)
        self._sequence = Pool.of(arrays["sequence"])
        self._fraud = Pool.of(arrays["fraud"])
        self._following = Pool.of(arrays["following"])
        self._meta = arrays["meta"].copy()
        self._point()

    def _point(self) -> None:
        """Renew the addresses after any of the arrays may have moved."""
        pools = (self._time, self._sequence, self._fraud, self._following)
        self._table[: len(pools)] = [pool.address for pool in pools]
        self._table[_META] = self._meta.ctypes.data
        self._room = min(len(pool) for pool in pools)


@_compiled
def _decided(t: int, correction: bool, held: int, watermark: int, lateness: int, horizon: int) -> int:
    """What becomes of a valid row at ``t``; ``held``: the time of the event known under its id."""
    if t < watermark - horizon:
        return 4
    known = held != _NEVER and held >= watermark - horizon
    if known:
        return 1 if correction else 2
    if correction:
        return 5
    return 3 if t < watermark - lateness else 0


@_compiled
def _foresee(
    held: NDArray[np.int64],
    place: NDArray[np.int64],
    watermark: int,
    spans: NDArray[np.int64],
    time_us: NDArray[np.int64],
    valid: NDArray[np.bool_],
    correction: NDArray[np.bool_],
    disposition: NDArray[np.uint8],
) -> None:
    for i in range(len(time_us)):
        if not valid[i]:
            disposition[i] = 6
            continue
        t = time_us[i]
        decided = _decided(t, correction[i], held[place[i]], watermark, spans[0], spans[1])
        disposition[i] = decided
        if decided <= 1:
            held[place[i]] = t
            watermark = max(watermark, t)


@_compiled
def _admit(at: int, frame_at: int) -> bool:
    """Decide the rows of a frame; whether any was refused that had got a record."""
    own = longs(at)
    rec_time = longs(own[_REC_TIME])
    rec_sequence = longs(own[_REC_SEQUENCE])
    rec_fraud = octets(own[_REC_FRAUD])
    following = ints(own[_FOLLOWING])
    meta = longs(own[_META])
    frame = longs(frame_at)
    time_us = longs(frame[batch.TIME])
    refusal = octets(frame[batch.REFUSAL])
    correction = octets(frame[batch.CORRECTION])
    disposition = octets(frame[batch.DISPOSITION])
    record = ints(frame[batch.RECORD])
    sequence = longs(frame[batch.SEQUENCE])
    old_time = longs(frame[batch.OLD_TIME])
    fraud = octets(frame[batch.FRAUD])
    watermark_after = longs(frame[batch.WATERMARK])
    change_row = longs(frame[batch.CHANGE_ROW])
    change_record = ints(frame[batch.CHANGE_RECORD])
    change_time = longs(frame[batch.CHANGE_TIME])
    change_sequence = longs(frame[batch.CHANGE_SEQUENCE])
    change_fraud = octets(frame[batch.CHANGE_FRAUD])
    outcomes = frame[batch.OUTCOMES]
    outcome_record = ints(frame[batch.OUTCOME_RECORD])
    outcome_fraud = octets(frame[batch.OUTCOME_FRAUD])
    outcome_known = longs(frame[batch.OUTCOME_KNOWN])
    consumed = 0
    changes = 0
    unused = False
    for i in range(frame[batch.ROWS]):
        watermark = meta[_WATERMARK]
        watermark_after[i] = watermark
        sequence[i] = 0
        old_time[i] = 0
        fraud[i] = 0
        t = time_us[i]
        r = record[i]
        if refusal[i] != 0 or r < 0:  # without a record only when the row was refused
            disposition[i] = 6
            continue
        decided = _decided(t, correction[i] != 0, rec_time[r], watermark, own[_LATENESS], own[_HORIZON])
        disposition[i] = decided
        if decided > 1:
            unused = unused or decided != 2
            continue
        reached = max(watermark, t)
        while consumed < outcomes and outcome_known[consumed] <= reached:
            target = outcome_record[consumed]
            if target < 0 or rec_time[target] == _NEVER:
                meta[_UNMATCHED] += 1
            elif rec_fraud[target] != outcome_fraud[consumed]:
                rec_fraud[target] = outcome_fraud[consumed]
                change_row[changes] = i
                change_record[changes] = target
                change_time[changes] = rec_time[target]
                change_sequence[changes] = rec_sequence[target]
                change_fraud[changes] = outcome_fraud[consumed]
                changes += 1
            consumed += 1
        if decided == 1:
            old_time[i] = rec_time[r]
            fraud[i] = rec_fraud[r]
        else:
            if rec_time[r] == _NEVER:  # an id used again after the horizon already stands in the line
                following[r] = -1
                if meta[_TAIL] >= 0:
                    following[meta[_TAIL]] = r
                else:
                    meta[_HEAD] = r
                meta[_TAIL] = r
            rec_sequence[r] = meta[_SEQUENCE]
            rec_fraud[r] = 0
            meta[_SEQUENCE] += 1
        rec_time[r] = t
        sequence[i] = rec_sequence[r]
        meta[_WATERMARK] = reached
        watermark_after[i] = reached
    frame[batch.CHANGES] = changes
    frame[batch.CONSUMED] = consumed
    return unused


@_compiled
def _expire(
    rec_time: NDArray[np.int64],
    following: NDArray[np.int32],
    meta: NDArray[np.int64],
    retention: int,
    budget: int,
) -> NDArray[np.int32]:
    freed = np.empty(budget, np.int32)
    count = 0
    while count < budget:
        r = meta[_HEAD]
        if r < 0 or rec_time[r] >= meta[_WATERMARK] - retention:
            break
        meta[_HEAD] = following[r]
        if meta[_HEAD] < 0:
            meta[_TAIL] = -1
        rec_time[r] = _NEVER
        freed[count] = r
        count += 1
    return freed[:count]
