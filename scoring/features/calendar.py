"""Local hours and weekdays of event times, in a named zone or at a fixed offset from UTC.

Named zones come from the IANA database through ``zoneinfo`` (the system's, or the ``tzdata`` package). Offsets are
looked up once per hour of UTC that occurs: where an hour begins and ends at the same offset every event in it has that
offset (no zone changes twice within an hour); in the few hours that hold a change each event is looked up by itself.
So the result is that of ``datetime.astimezone`` for every microsecond.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled
from scoring.features.spec_model import DAY_US, HOUR_US, SECOND_US, Calendar, Clock
from scoring.schema import MAX_TIME_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHANGES = int(np.iinfo(np.int64).min)  # stands for an hour whose offset is not one
_BLOCK = 64  # hours whose offsets are looked up together
_Hours = tuple[int, NDArray[np.int64]]  # the first of some hours in a row, and the offset in each
_NO_HOURS: _Hours = (0, np.empty(0, np.int64))
_latest: dict[
    str, _Hours
] = {}  # of each zone, where the batch before was: most often the next one is there too
_HOUR, _NIGHT, _WEEKEND = (
    list(Calendar).index(part) for part in (Calendar.HOUR, Calendar.NIGHT, Calendar.WEEKEND)
)


def is_zone(name: str) -> bool:
    """Whether the time zone database knows ``name``."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no relative path; a folder of the database
        return False
    return True


def local_times(clock: Clock, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Microseconds of local time since 1970 on the wall's clock, int64 [n]."""
    if not clock.zone:
        return time_us + clock.utc_offset_us
    first_hour, offsets = _latest.get(clock.zone, _NO_HOURS)
    local, changes = _shifted(time_us, first_hour, offsets)
    if changes < 0:  # not all in the hours of the batch before
        local, changes = _local_anew(clock.zone, time_us)
    if changes:
        for row in np.flatnonzero(local == _CHANGES).tolist():
            time = min(max(int(time_us[row]), 0), MAX_TIME_US)
            local[row] = time + _offset(clock.zone, time)
    return local


def _local_anew(zone: str, time_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """See :func:`_shifted`; where the hours lie close together their offsets are kept for the next batch."""
    first, last = (hour // _BLOCK for hour in _hour_range(time_us))
    if (last - first + 1) * _BLOCK <= max(len(time_us), 2 * _BLOCK):
        blocks = [_block_offsets(zone, block) for block in range(first, last + 1)]
        hours = first * _BLOCK, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        _latest[zone] = hours
        return _shifted(time_us, *hours)
    times = np.clip(time_us, 0, MAX_TIME_US)  # scattered over years
    hours_of, place = np.unique(times // HOUR_US, return_inverse=True)
    offsets = np.array([_hour_offset(zone, hour) for hour in hours_of.tolist()], np.int64)[place]
    local = np.where(offsets == _CHANGES, _CHANGES, times + offsets)
    return local, int(np.count_nonzero(offsets == _CHANGES))


@compiled
def fill_calendar(features: NDArray[np.int64], local: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Write calendar features to their columns of ``values`` float64 [n, f].

    ``features`` int64 [k, 4]: the column, the place of its part in ``Calendar``, the place of its clock in ``local``
    int64 [clocks, n] (:func:`local_times`), and the last hour of the night.
    """
    for index in range(len(features)):
        column, part, clock, last_hour = features[index]
        for row in range(len(values)):
            at = local[clock, row]
            if part in (_HOUR, _NIGHT):
                number = at % DAY_US // HOUR_US
                if part == _NIGHT:
                    number = 1 if number <= last_hour else 0
            else:
                number = (at // DAY_US + 3) % 7  # 1970-01-01 was a Thursday
                if part == _WEEKEND:
                    number = 1 if number >= 5 else 0
            values[row, column] = number


@compiled
def _hour_range(time_us: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last hour of UTC; rows outside the schema's range are refused anyway."""
    first, last = MAX_TIME_US, 0
    for row in range(len(time_us)):
        time = min(max(time_us[row], 0), MAX_TIME_US)
        first, last = min(first, time), max(last, time)
    return first // HOUR_US, last // HOUR_US


@compiled
def _shifted(
    time_us: NDArray[np.int64], first_hour: int, offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Local times by the offset of each hour from ``first_hour`` on; how many have none (``_CHANGES`` stands there).

    -1: some of the hours are not among those.
    """
    local = np.empty(len(time_us), np.int64)
    changes = 0
    for row in range(len(time_us)):
        time = min(max(time_us[row], 0), MAX_TIME_US)
        hour = time // HOUR_US - first_hour
        if not 0 <= hour < len(offsets):
            return local, -1
        offset = offsets[hour]
        if offset == _CHANGES:
            local[row] = _CHANGES
            changes += 1
        else:
            local[row] = time + offset
    return local, changes


@lru_cache(maxsize=1 << 12)
def _block_offsets(zone: str, block: int) -> NDArray[np.int64]:
    """Offsets of the ``_BLOCK`` whole hours from hour ``block * _BLOCK`` on."""
    return np.array([_hour_offset(zone, block * _BLOCK + hour) for hour in range(_BLOCK)], np.int64)


@lru_cache(maxsize=1 << 16)
def _hour_offset(zone: str, hour: int) -> int:
    """Offset in microseconds of a whole hour of UTC (counted from 1970), or ``_CHANGES``."""
    begin = _offset(zone, hour * HOUR_US)
    return begin if begin == _offset(zone, (hour + 1) * HOUR_US - 1) else _CHANGES


def _offset(zone: str, time_us: int) -> int:
    moment = (_EPOCH + timedelta(microseconds=time_us)).astimezone(ZoneInfo(zone))
    offset = moment.utcoffset()
    assert offset is not None
    return offset.days * DAY_US + offset.seconds * SECOND_US + offset.microseconds
