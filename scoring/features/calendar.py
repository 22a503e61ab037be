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

from scoring.features.spec_model import DAY_US, HOUR_US, SECOND_US, Calendar, CalendarFeature, Clock
from scoring.schema import MAX_TIME_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHANGES = np.iinfo(np.int64).min  # stands for an hour whose offset is not one


def is_zone(name: str) -> bool:
    """Whether the time zone database knows ``name``."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no relative path; a folder of the database
        return False
    return True


def local_hour(clock: Clock, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hour 0 to 23, int64 [n]."""
    return (_local(clock, time_us) % DAY_US) // HOUR_US


def local_weekday(clock: Clock, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weekday 0 (Monday) to 6, int64 [n]."""
    return (_local(clock, time_us) // DAY_US + 3) % 7  # 1970-01-01 was a Thursday


def calendar_column(feature: CalendarFeature, time_us: NDArray[np.int64]) -> NDArray[np.float64]:
    """The feature of events at ``time_us``, float64 [n]."""
    if feature.part is Calendar.HOUR:
        column: NDArray[np.generic] = local_hour(feature.clock, time_us)
    elif feature.part is Calendar.NIGHT:
        column = local_hour(feature.clock, time_us) <= feature.last_hour
    elif feature.part is Calendar.WEEKDAY:
        column = local_weekday(feature.clock, time_us)
    else:
        column = local_weekday(feature.clock, time_us) >= 5
    return column.astype(np.float64)


def _local(clock: Clock, time_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Microseconds of local time since 1970 on the wall's clock, int64 [n]."""
    if not clock.zone:
        return time_us + clock.utc_offset_us
    times = np.clip(time_us, 0, MAX_TIME_US)  # rows outside are refused anyway
    hours, place = np.unique(times // HOUR_US, return_inverse=True)
    offsets = np.array([_hour_offset(clock.zone, hour) for hour in hours.tolist()], np.int64)[place]
    for row in np.nonzero(offsets == _CHANGES)[0].tolist():
        offsets[row] = _offset(clock.zone, int(times[row]))
    return times + offsets


@lru_cache(maxsize=1 << 16)
def _hour_offset(zone: str, hour: int) -> int:
    """Offset in microseconds of a whole hour of UTC (counted from 1970), or ``_CHANGES``."""
    begin = _offset(zone, hour * HOUR_US)
    return begin if begin == _offset(zone, (hour + 1) * HOUR_US - 1) else int(_CHANGES)


def _offset(zone: str, time_us: int) -> int:
    moment = (_EPOCH + timedelta(microseconds=time_us)).astimezone(ZoneInfo(zone))
    offset = moment.utcoffset()
    assert offset is not None
    return offset.days * DAY_US + offset.seconds * SECOND_US + offset.microseconds
