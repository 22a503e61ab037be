"""All banks' scored histories beside the truth, in one time-ordered table that only the sandbox ever sees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

VERDICTS = ("allow", "challenge", "review", "block")
_COUNTS = re.compile(r"consortium_(?P<dataset>.+)_fraud_(?P<days>\d+)d_(?P<whose>others|all)")
_DAY_US = 86_400_000_000


class HistoryError(ValueError):
    """A bank's history does not fit the truth; the text names the bank and the reason."""


@dataclass(frozen=True)
class ConsortiumColumn:
    """``consortium_{dataset}_fraud_{days}d_{whose}`` taken apart; ``whose``: ``others`` or ``all``."""

    name: str
    days: int
    whose: str


@dataclass(frozen=True)
class ScoredStream:
    """``frame``: one row an event, by time; the arrays are its columns as numbers, shape ``[n]``.

    ``bank``: position in ``banks``. ``day``: days since 1970-01-01 in the data set's zone. ``customer``: codes distinct
    between banks. ``cell``: position in the public directory, -1 without one. ``verdict*``: positions in ``VERDICTS``.
    ``unscored``: rows of the truth that a bank's history lacks (refused, or lost), by bank. ``degraded``: rows scored
    while the consortium's tags or counts were missing or not up to date.
    """

    banks: tuple[str, ...]
    frame: pl.DataFrame
    bank: npt.NDArray[np.int64]
    time_us: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]
    customer: npt.NDArray[np.int64]
    amount: npt.NDArray[np.float64]
    cell: npt.NDArray[np.int64]
    cells: int
    fraud: npt.NDArray[np.int8]
    verdict: npt.NDArray[np.int64]
    verdict_alone: npt.NDArray[np.int64]
    consortium: tuple[ConsortiumColumn, ...]
    kinds: tuple[str, ...]
    unscored: Mapping[str, int]
    degraded: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return self.frame.height

    def matrix(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """Columns ``names`` as float64, shape ``[n, len(names)]``; null becomes NaN."""
        return np.stack([self.frame[name].cast(pl.Float64).to_numpy() for name in names], axis=1)

    def codes(self, entity: str) -> npt.NDArray[np.int64]:
        """The values of one entity as numbers, equal between banks; -1 where there is none."""
        ranks = self.frame[entity].rank("dense").cast(pl.Int64).fill_null(-1)
        codes: npt.NDArray[np.int64] = ranks.to_numpy()
        return codes

    def victims(self, kind: str, whose: str) -> npt.NDArray[np.int64]:
        """Distinct victims counted for the event's indicator of ``kind``; ``whose``: ``own`` or ``all``."""
        column = self.frame[f"{kind}_victims_{whose}"]
        counts: npt.NDArray[np.int64] = column.cast(pl.Int64).fill_null(0).to_numpy()
        return counts

    def victims_by_bank(self, kind: str) -> npt.NDArray[np.int64]:
        """Distinct victims by contributor, shape ``[n, banks]``: others from the label texts, own from its column."""
        texts = self.frame[f"{kind}_labels"]
        table = pl.DataFrame({"text": texts}).with_columns(pl.col("text").rank("dense").alias("code"))
        codes = table["code"].cast(pl.Int64).fill_null(0).to_numpy()
        distinct = table.drop_nulls().unique("code").sort("code")
        counts = np.zeros((distinct.height + 1, len(self.banks)), np.int64)
        position = {party: number for number, party in enumerate(self.banks)}
        for row, text in enumerate(distinct["text"], start=1):
            for contributor, victims in json.loads(text or "{}").items():
                if contributor not in position:
                    raise HistoryError(f"{kind}_labels names {contributor!r}, which is no bank of this run")
                counts[row, position[contributor]] = int(victims)
        answer: npt.NDArray[np.int64] = counts[codes]
        answer[np.arange(len(self)), self.bank] = self.victims(kind, "own")
        return answer


def truth_of(
    events: pl.DataFrame,
    *,
    columns: Mapping[str, str],
    bank: npt.NDArray[np.int64],
    label: str,
    directory: Sequence[str],
    directory_entity: str,
) -> pl.DataFrame:
    """The original file as the evaluation needs it: event_id, bank (position), customer, cell, fraud; in file order.

    ``columns``: schema name to file column. ``bank``: the bank of each row, ``[n]``. ``directory``: the public ids in
    their order; ids outside it get no cell. An unknown label counts as genuine.
    """
    place = pl.DataFrame(
        {"id": list(directory), "cell": np.arange(len(directory))}, schema={"id": pl.String, "cell": pl.Int64}
    )
    return (
        events.select(
            pl.col(columns["event_id"]).alias("event_id"),
            pl.Series("bank", bank, dtype=pl.Int64),
            pl.col(columns["customer"]).cast(pl.String).alias("truth_customer"),
            pl.col(label).cast(pl.Int8).fill_null(0).alias("fraud"),
            pl.col(columns[directory_entity]).cast(pl.String).alias("id"),
        )
        .join(place, on="id", how="left", maintain_order="left")
        .with_columns(pl.col("cell").fill_null(-1))
        .drop("id")
        .with_row_index("arrival")
    )


def utc_days(time_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Days since 1970-01-01 of instants in UTC."""
    return time_us // _DAY_US


def load_stream(
    histories: Mapping[str, Path],
    truth: pl.DataFrame,
    *,
    cells: int,
    day_of: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] = utc_days,
) -> ScoredStream:
    """Join every bank's history folder (Parquet files) with ``truth``; banks in the order of ``histories``.

    ``day_of``: the day (since 1970-01-01, in the data set's zone) of instants in microseconds.
    Raises :class:`HistoryError` for a history with an event twice or with events that are not in the truth.
    """
    parts, unscored = [], {}
    for number, (party, folder) in enumerate(histories.items()):
        mine = truth.filter(pl.col("bank") == number)
        rows = _read(party, folder)
        if rows.schema["event_id"] != mine.schema["event_id"]:
            rows, mine = (f.with_columns(pl.col("event_id").cast(pl.String)) for f in (rows, mine))
        joined = rows.join(mine, on="event_id", how="inner")
        if joined.height != rows.height:
            raise HistoryError(
                f"{party}: {rows.height - joined.height} scored events are not in its own stream"
            )
        if joined["event_id"].n_unique() != joined.height:
            raise HistoryError(f"{party}: its history holds an event twice")
        unscored[party] = mine.height - joined.height
        parts.append(joined)
    frame = pl.concat(parts, how="diagonal_relaxed").sort("time_us", "arrival")
    time_us = frame["time_us"].cast(pl.Int64).to_numpy()
    return ScoredStream(
        banks=tuple(histories),
        frame=frame,
        bank=frame["bank"].to_numpy(),
        time_us=time_us,
        day=day_of(time_us),
        customer=frame.select(pl.struct("bank", "truth_customer").rank("dense").cast(pl.Int64))
        .to_series()
        .to_numpy(),
        amount=frame["amount"].cast(pl.Float64).to_numpy(),
        cell=frame["cell"].to_numpy(),
        cells=cells,
        fraud=frame["fraud"].to_numpy(),
        verdict=_verdicts(frame["verdict"]),
        verdict_alone=_verdicts(frame["verdict_alone"]),
        consortium=_consortium_columns(frame.columns),
        kinds=tuple(c.removesuffix("_victims_all") for c in frame.columns if c.endswith("_victims_all")),
        unscored=unscored,
        degraded=frame["degraded"].fill_null(False).to_numpy()
        if "degraded" in frame.columns
        else np.zeros(frame.height, np.bool_),
    )


def _read(party: str, folder: Path) -> pl.DataFrame:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise HistoryError(f"{party} has no history in its folder: did its replay run?")
    return pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed")


def _consortium_columns(names: Sequence[str]) -> tuple[ConsortiumColumn, ...]:
    """By window, others before all: the order of the reference experiment."""
    found = [
        ConsortiumColumn(name, int(match["days"]), match["whose"])
        for name in names
        if (match := _COUNTS.fullmatch(name))
    ]
    return tuple(sorted(found, key=lambda c: (c.days, c.whose != "others")))


def _verdicts(column: pl.Series) -> npt.NDArray[np.int64]:
    if not column.dtype.is_integer():
        column = column.cast(pl.String).cast(pl.Enum(VERDICTS)).to_physical()
    positions: npt.NDArray[np.int64] = column.cast(pl.Int64).to_numpy()
    return positions
