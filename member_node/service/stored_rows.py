"""Rows of the scored history as rules saw them: from Arrow columns back to the columns of the rule language.

A rule column stands in the history under its own name (numbers null where missing, texts, booleans); ``hour`` and
``weekday`` follow from the time; ``{kind}_limit`` is the strongest verdict the policy's tier permitted on the row
(where that was not kept, limit and ``{kind}_tier`` follow from ``{kind}_victims_all`` and the tiers given). ``exempt``
and ``braked`` list the ids of rules the row was exempt from (``""``: every rule) and of rules that hit it while they
were stopped. A row that a list decided has ``list:NAME`` for its ``rule``, and keeps its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from member_node.service.last_judged import LastJudged
from scoring.rules.columns import ColumnSchema, ColumnType, ColumnValues, TextColumn
from scoring.rules.evaluation import RuleSet
from scoring.schema import channel_codes
from scoring.verdicts import VERDICT_LABELS, TierTable

BATCH_ROWS = 65_536
ALWAYS = ("event_id", "time_us", "channel", "amount", "verdict")
WHERE_KNOWN = ("rule", "rule_version", "exempt", "braked")
LISTED = "listed_"
# What these hold where the history has no such column: no model was in force.
WITHOUT: Mapping[str, object] = {"model_score": float("nan"), "model_degraded": False}
# (amount float64 [n], channel codes uint8 [n], time int64 [n]) -> columns that follow from them.
Derive = Callable[[NDArray[np.float64], NDArray[np.uint8], NDArray[np.int64]], Mapping[str, ColumnValues]]


class StoredRowsError(ValueError):
    """The history does not hold what a rule set reads; the text names the columns."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """``n`` rows of the history.

    ``columns`` and ``limits`` as :meth:`RuleSet.evaluate` takes them; ``verdict`` uint8 [n] as given; ``forced`` bool
    [n]: a list decided; ``version`` int16 [n] of the rule set (0: not told); ``exempt`` and ``braked``: rows by
    rule id.
    """

    event_id: pa.ChunkedArray
    time_us: NDArray[np.int64]
    amount: NDArray[np.float64]
    verdict: NDArray[np.uint8]
    forced: NDArray[np.bool_]
    version: NDArray[np.int16]
    columns: Mapping[str, ColumnValues]
    limits: Mapping[str, NDArray[np.uint8]]
    exempt: Mapping[str, NDArray[np.bool_]]
    braked: Mapping[str, NDArray[np.bool_]]

    def __len__(self) -> int:
        return len(self.time_us)


def wanted_columns(rulesets: Sequence[RuleSet]) -> list[str]:
    """The history's columns that judging by ``rulesets`` takes."""
    read = sorted(frozenset().union(*(rule.expression.columns for each in rulesets for rule in each.rules)))
    kinds = sorted(frozenset().union(*(each.evidence_kinds for each in rulesets)))
    kept = [f"{kind}_{what}" for kind in kinds for what in ("limit", "victims_all")]
    return list(dict.fromkeys([*ALWAYS, *WHERE_KNOWN, *read, *kept]))


def read_history(
    files: Sequence[pq.ParquetFile],
    columns: Sequence[str],
    first_us: int,
    until_us: int,
    counted: LastJudged | None = None,
) -> Iterator[pa.Table]:
    """Rows of Parquet files with first_us <= time < until_us, in their order, some ten thousand at a time.

    A file gives those of ``columns`` it holds. ``counted``: only the last judgement of each event (None: all of them).
    """
    for parquet in files:
        held = [name for name in columns if name in parquet.schema_arrow.names]
        first = 0
        for batch in parquet.iter_batches(BATCH_ROWS, columns=held):
            times = batch.column("time_us")
            chosen = pc.and_(pc.greater_equal(times, first_us), pc.less(times, until_us))
            if counted is not None:
                chosen = pc.and_(chosen, pa.array(counted.rows(parquet, first, batch.column("event_id"))))
            first += batch.num_rows
            table = pa.Table.from_batches([batch.filter(chosen)])
            if table.num_rows:
                yield table


def rows_alike(table: pa.Table) -> Iterator[pa.Table]:
    """The table in parts that know the same lists: one that was not there then is no column of its part."""
    names = [name for name in table.column_names if name.startswith(LISTED) and table.column(name).null_count]
    if not names:
        yield table
        return
    absent = np.stack([table.column(name).is_null().to_numpy() for name in names])
    for pattern in np.unique(absent, axis=1).T:
        rows = (absent == pattern[:, None]).all(axis=0)
        gone = [name for name, is_gone in zip(names, pattern.tolist(), strict=True) if is_gone]
        yield table.filter(pa.array(rows)).drop_columns(gone)


def stored_rows(
    table: pa.Table,
    rulesets: Sequence[RuleSet],
    schema: ColumnSchema,
    derive: Derive,
    tiers: TierTable | None = None,
    gone: frozenset[str] = frozenset(),
) -> StoredRows:
    """Bring rows of the history back (see :func:`rows_alike`); raises StoredRowsError for what they lack.

    A list that they do not know is left out, and so is what they lack of ``gone``, columns that the stream no longer
    has: the rules that read it are in error, as they were in the stream.
    """
    rows = table.num_rows
    lacking = [name for name in ALWAYS if name not in table.column_names]
    if lacking:
        raise StoredRowsError(f"the history lacks {', '.join(lacking)}")
    amount, time_us = _numbers(table, "amount"), table.column("time_us").to_numpy().astype(np.int64)
    names = table.column("channel").to_pylist()
    columns: dict[str, ColumnValues] = dict(derive(amount, channel_codes(names, rows), time_us))
    for name in sorted(frozenset().union(*(each.columns for each in rulesets)) - columns.keys()):
        found = _rule_column(table, name, schema[name].type)
        if found is not None:
            columns[name] = found
    read = frozenset().union(*(rule.expression.columns for each in rulesets for rule in each.rules))
    limits: dict[str, NDArray[np.uint8]] = {}
    for kind in sorted(frozenset().union(*(each.evidence_kinds for each in rulesets))):
        if f"{kind}_limit" in table.column_names:
            limits[kind] = _numbers(table, f"{kind}_limit").astype(np.uint8)
        elif tiers is not None and f"{kind}_victims_all" in table.column_names:
            rank = tiers.rank(_numbers(table, f"{kind}_victims_all"))
            limits[kind] = tiers.verdict(rank)
            columns.setdefault(f"{kind}_tier", TextColumn(rank.astype(np.int32), tiers.names))
    lacking = sorted(name for name in read - columns.keys() - gone if not name.startswith(LISTED))
    lacking += sorted(
        f"{kind}_limit" for each in rulesets for kind in each.evidence_kinds if kind not in limits
    )
    if lacking:
        raise StoredRowsError(
            f"the history does not hold {', '.join(dict.fromkeys(lacking))}, which the rules read: "
            "begin later, when it was recorded"
        )
    verdicts = pc.index_in(table.column("verdict"), value_set=pa.array(VERDICT_LABELS))
    return StoredRows(
        table.column("event_id"),
        time_us,
        amount,
        verdicts.to_numpy().astype(np.uint8),
        _forced(table),
        np.nan_to_num(_numbers(table, "rule_version"), nan=0.0).astype(np.int16)
        if "rule_version" in table.column_names
        else np.zeros(rows, np.int16),
        columns,
        limits,
        _rows_by_rule(table, "exempt"),
        _rows_by_rule(table, "braked"),
    )


def _rule_column(table: pa.Table, name: str, kind: ColumnType) -> ColumnValues | None:
    if name not in table.column_names:
        without = WITHOUT.get(name)
        return None if without is None else np.full(table.num_rows, without)
    if kind is ColumnType.NUMBER:
        return _numbers(table, name)
    if kind is ColumnType.BOOLEAN:
        return np.asarray(pc.fill_null(table.column(name), False).to_numpy().astype(np.bool_))
    encoded = table.column(name).combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return TextColumn(codes, tuple(encoded.dictionary.to_pylist()))


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A numeric column as float64 [n], NaN where null."""
    values = pc.cast(table.column(name), pa.float64())
    return np.ascontiguousarray(pc.fill_null(values, float("nan")).to_numpy())


def _forced(table: pa.Table) -> NDArray[np.bool_]:
    if "rule" not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    by_list = pc.starts_with(table.column("rule"), "list:")
    return np.asarray(pc.fill_null(by_list, False).to_numpy().astype(np.bool_))


def _rows_by_rule(table: pa.Table, name: str) -> dict[str, NDArray[np.bool_]]:
    """Rows whose list in column ``name`` holds each rule id."""
    found: dict[str, NDArray[np.bool_]] = {}
    if name not in table.column_names:
        return found
    lists: Any = table.column(name).combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    ids = pc.list_flatten(lists).to_pylist()
    for row, rule in zip(parents.tolist(), ids, strict=True):
        found.setdefault(rule, np.zeros(table.num_rows, np.bool_))[row] = True
    return found
