"""Checking the cells of a file column by column: what is refused, why, and what the others mean."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from member_node.streams.components import component_fault
from member_node.streams.mapping import UNITS, StreamMapping, channel_words
from member_node.streams.rejects import EventFileError, Reject
from scoring.row_codes import RowCode
from scoring.schema import CHANNELS, MAX_TEXT_LENGTH, MAX_TIME_US

UNKNOWN = -1
_ISO = "%Y-%m-%dT%H:%M:%S%.f"


class CellChecker:
    """Collects rejects column by column; a row is good while no cell of it was refused.

    Every reader takes the name of a file column and gives a series of the frame's height, null where a cell is refused
    or missing.
    """

    def __init__(self, frame: pl.DataFrame, numbers: NDArray[np.int64]) -> None:
        """``frame``: file columns as they are (text for CSV); ``numbers`` int64 [n]: what each row is called."""
        self.frame = frame
        self.numbers = numbers
        self.good = np.ones(frame.height, dtype=np.bool_)
        self.rejects: list[Reject] = []

    def refuse(self, bad: NDArray[np.bool_], column: str, reason: str, code: RowCode) -> None:
        """Report the rows of a mask, and count them as bad."""
        for row in np.flatnonzero(bad):
            self.rejects.append(Reject(int(self.numbers[row]), column, reason, code=code.text))
        self.good &= ~bad

    def parsed(
        self,
        column: str,
        values: pl.Series,
        what: str,
        *,
        required: bool,
        code: RowCode = RowCode.WRONG_TYPE,
    ) -> pl.Series:
        """Refuse cells that were given but became null in ``values``, and missing ones where required."""
        empty = self.frame.get_column(column).is_null().to_numpy()
        self.refuse(values.is_null().to_numpy() & ~empty, column, f"is not {what}", code)
        if required:
            self.refuse(empty, column, "is missing", RowCode.FIELD_MISSING)
        return values

    def integers(self, column: str, *, required: bool) -> pl.Series:
        """Whole numbers of 64 bits."""
        source = self.frame.get_column(column)
        if source.dtype.is_float():
            whole = source.is_finite() & (source == source.floor()) & (source.abs() < 2**53)
            values = pl.select(pl.when(whole).then(source)).to_series().cast(pl.Int64, strict=False)
        else:
            values = (
                _text(source).str.strip_chars().cast(pl.Int64, strict=False)
                if _is_text(source)
                else source.cast(pl.Int64, strict=False)
            )
        # int64's minimum stands for "missing" in the engine.
        values = pl.select(pl.when(values != -(2**63)).then(values)).to_series()
        return self.parsed(column, values, "an integer", required=required)

    def texts(self, column: str, *, required: bool) -> pl.Series:
        """Texts without the white space around them, at most ``MAX_TEXT_LENGTH`` characters."""
        source = _text(self.frame.get_column(column)).str.strip_chars()
        values = pl.select(pl.when(source != "").then(source)).to_series()
        self.refuse(
            (values.str.len_chars() > MAX_TEXT_LENGTH).fill_null(False).to_numpy(),
            column,
            f"is longer than {MAX_TEXT_LENGTH} characters",
            RowCode.TEXT_TOO_LONG,
        )
        if required:
            self.refuse(values.is_null().to_numpy(), column, "is missing", RowCode.FIELD_MISSING)
        return values

    def amounts(self, column: str) -> pl.Series:
        """Finite numbers that are not negative."""
        values = self.parsed(column, self._floats(column), "a number", required=True)
        unknown = values.is_nan().fill_null(False).to_numpy()
        self.refuse(unknown, column, "is not finite", RowCode.AMOUNT_NOT_A_NUMBER)
        self.refuse(~_finite(values) & ~unknown, column, "is not finite", RowCode.AMOUNT_INFINITE)
        negative = (values < 0).fill_null(False).to_numpy() & _finite(values)
        self.refuse(negative, column, "is negative", RowCode.AMOUNT_NEGATIVE)
        return values

    def attributes(self, column: str) -> pl.Series:
        """Finite numbers where they are given."""
        values = self.parsed(column, self._floats(column), "a number", required=False)
        self.refuse(~_finite(values), column, "is not finite", RowCode.NUMBER_NOT_FINITE)
        return values

    def _floats(self, column: str) -> pl.Series:
        source = self.frame.get_column(column)
        return (_text(source).str.strip_chars() if _is_text(source) else source).cast(
            pl.Float64, strict=False
        )

    def bundles(self, column: str) -> pl.Series:
        """Device components: JSON objects as texts."""
        source = _text(self.frame.get_column(column))
        faults = np.array(
            [0 if text is None else component_fault(text) for text in source.to_list()], dtype=np.uint8
        )
        for code, reason in (
            (RowCode.TEXT_TOO_LONG, "is too long for device components"),
            (RowCode.WRONG_TYPE, "is no object of device components"),
            (RowCode.MALFORMED, "is no JSON"),
        ):
            self.refuse(faults == code, column, reason, code)
        return source

    def corrections(self, column: str) -> pl.Series:
        """Whether each row replaces the event of its id; not where it is not said."""
        return self._zero_or_one(column).fill_null(0) == 1

    def times(self, column: str, mapping: StreamMapping, latest_us: int | None = None) -> pl.Series:
        """UTC microseconds, at most ``latest_us``."""
        source = self.frame.get_column(column)
        if source.dtype.is_integer():
            if not mapping.time_unit:
                raise EventFileError(
                    f"column {column!r} holds integers; the mapping's [time] must give their unit"
                )
            values = source.cast(pl.Int64) * UNITS[mapping.time_unit]
        elif isinstance(source.dtype, pl.Datetime):
            values = _to_utc(source, mapping.zone)
        else:
            text = _text(source).str.strip_chars().str.replace(" ", "T", literal=True)
            # A time with Z or an offset says where it is; the others are in the mapping's zone.
            aware = text.str.to_datetime(f"{_ISO}%#z", time_unit="us", time_zone="UTC", strict=False)
            naive = text.str.to_datetime(_ISO, time_unit="us", strict=False)
            values = _to_utc(aware, "UTC").fill_null(_to_utc(naive, mapping.zone))
            if mapping.time_unit:
                values = values.fill_null(text.cast(pl.Int64, strict=False) * UNITS[mapping.time_unit])
        return self._in_range(column, self.parsed(column, values, "a time", required=True), latest_us)

    def _in_range(self, column: str, values: pl.Series, latest_us: int | None) -> pl.Series:
        outside = ((values < 0) | (values > MAX_TIME_US)).fill_null(False).to_numpy()
        self.refuse(outside, column, "lies outside 1970 to 2200", RowCode.TIME_OUT_OF_RANGE)
        if latest_us is not None:
            ahead = (values > latest_us).fill_null(False).to_numpy() & ~outside
            self.refuse(ahead, column, "is ahead of the clock", RowCode.TIME_IN_FUTURE)
        return values

    def channels(self, mapping: StreamMapping) -> pl.Series:
        """Codes of ``Channel``."""
        if mapping.channel:
            return pl.Series("channel", np.full(self.frame.height, CHANNELS[mapping.channel], dtype=np.uint8))
        column = mapping.columns["channel"]
        words = _text(self.frame.get_column(column)).str.strip_chars().str.to_lowercase()
        values = words.replace_strict(channel_words(mapping), default=None, return_dtype=pl.UInt8)
        what = f"a channel ({', '.join(CHANNELS)})"
        return self.parsed(column, values, what, required=True, code=RowCode.UNKNOWN_CHANNEL)

    def labels(self, mapping: StreamMapping) -> NDArray[np.int8]:
        """The fraud labels int8 [n]: 1, 0 or UNKNOWN."""
        if not mapping.label_column:
            return np.full(self.frame.height, UNKNOWN, dtype=np.int8)
        labels = self._zero_or_one(mapping.label_column).fill_null(UNKNOWN).to_numpy()
        return np.where((labels == 0) | (labels == 1), labels, UNKNOWN).astype(np.int8)

    def _zero_or_one(self, column: str) -> pl.Series:
        source = self.frame.get_column(column)
        values = (
            source.cast(pl.Int8)
            if source.dtype == pl.Boolean
            else _text(source).str.strip_chars().cast(pl.Int64, strict=False)
        )
        values = self.parsed(column, values, "0 or 1", required=False)
        self.refuse(
            (~values.is_in([0, 1])).fill_null(False).to_numpy(), column, "is not 0 or 1", RowCode.WRONG_TYPE
        )
        return values


def _finite(values: pl.Series) -> NDArray[np.bool_]:
    """Not infinite and not NaN; True where there is no value."""
    return np.asarray(values.is_finite().fill_null(True).to_numpy(), dtype=np.bool_)


def _is_text(source: pl.Series) -> bool:
    return source.dtype == pl.String or source.dtype == pl.Categorical


def _text(source: pl.Series) -> pl.Series:
    return source if source.dtype == pl.String else source.cast(pl.String, strict=False)


def _to_utc(moments: pl.Series, zone: str) -> pl.Series:
    """UTC microseconds of datetimes; those without a zone are in ``zone``."""
    if moments.dtype == pl.Datetime and moments.dtype.time_zone is None:  # type: ignore[attr-defined]
        # An hour that exists twice is taken as the earlier one; an hour that does not exist becomes null.
        moments = moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return moments.dt.convert_time_zone("UTC").dt.epoch("us")
