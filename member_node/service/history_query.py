"""Questions to a bank's scored history: SQL by DuckDB, and batches in stream order for backtests.

SQL sees one table, ``history``: the Parquet files and what waits in memory, as one Arrow data set from which DuckDB
reads only the columns and rows it needs. Its connections touch no file and no network, cannot be set otherwise, and
are bounded in memory, threads and time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from member_node.service.decisions import CORRECTED, FRAME
from member_node.service.history import HistoryError, HistoryStore

MEMORY = "512MB"
THREADS = 2
SECONDS = 60.0
BATCH_ROWS = 65_536
_DAY_US = 86_400_000_000
# Only the few corrections are put in order.
_LAST_JUDGED = f"""(
    WITH last AS (
        SELECT * FROM history WHERE {CORRECTED}
        QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY {FRAME} DESC, time_us DESC) = 1
    )
    SELECT time_us, verdict, rule, amount FROM last
    UNION ALL SELECT time_us, verdict, rule, amount FROM history ANTI JOIN last USING (event_id)
)"""  # noqa: S608 - names of our own


def query(
    store: HistoryStore,
    sql: str,
    parameters: Sequence[object] = (),
    *,
    first_day: int | None = None,
    last_day: int | None = None,
    seconds: float = SECONDS,
) -> pa.Table:
    """The answer to one SELECT over ``history``; ``first_day`` and ``last_day`` (since 1970-01-01) bound what is read.

    Raises :class:`HistoryError` with what the database says of it, or when it takes longer than ``seconds``.
    """
    data = dataset(store, first_day, last_day)
    if data is None:
        raise HistoryError("the history is empty: nothing was scored in these days")
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_external_access = false")
        connection.execute("SET max_temp_directory_size = '0B'")
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET threads = {THREADS}")
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET lock_configuration = true")
        connection.register("history", data)
        timer = threading.Timer(seconds, connection.interrupt)
        timer.start()
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise HistoryError("the history answers one SELECT at a time")
            return connection.sql(sql, params=list(parameters) or None).to_arrow_table()
        except duckdb.InterruptException as error:
            raise HistoryError(
                f"the question took longer than {seconds:g} seconds: ask for fewer days"
            ) from error
        except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
            raise HistoryError(f"the history cannot answer that: {error}") from error
        finally:
            timer.cancel()


def batches(
    store: HistoryStore,
    columns: Sequence[str],
    *,
    first_us: int | None = None,
    end_us: int | None = None,
    rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """``columns`` of the events with first_us <= time_us < end_us, by day and in scored order within it.

    A column that some files lack is null there. Raises :class:`HistoryError` for one that all lack.
    """
    first_day = None if first_us is None else first_us // _DAY_US
    last_day = None if end_us is None else (end_us - 1) // _DAY_US
    data = dataset(store, first_day, last_day)
    if data is None:
        return
    missing = sorted(set(columns) - set(data.schema.names))
    if missing:
        raise HistoryError(f"the history has no column {missing[0]!r}")
    condition = None
    for bound in ([] if first_us is None else [ds.field("time_us") >= first_us]) + (
        [] if end_us is None else [ds.field("time_us") < end_us]
    ):
        condition = bound if condition is None else condition & bound
    for batch in data.to_batches(columns=list(columns), filter=condition, batch_size=rows):
        if batch.num_rows:
            yield batch


def verdicts_by_day(
    store: HistoryStore, first_day: int | None = None, last_day: int | None = None
) -> pa.Table:
    """Events and money by UTC day, verdict and deciding rule: day, verdict, rule, events, amount; in that order.

    Of an event that was corrected its last judgement counts.
    """
    whole = dataset(store)
    told = "history"
    if whole is not None and CORRECTED in whole.schema.names:
        told = _LAST_JUDGED
    first_us = -(2**63) if first_day is None else first_day * _DAY_US
    end_us = 2**63 - 1 if last_day is None else (last_day + 1) * _DAY_US
    return query(
        store,
        "SELECT (DATE '1970-01-01' + (time_us // 86400000000)::INTEGER) AS day, verdict, rule, count(*) AS events,"  # noqa: S608
        f" sum(amount) AS amount FROM {told} WHERE time_us >= ? AND time_us < ? GROUP BY ALL ORDER BY ALL",
        (first_us, end_us),
    )


def dataset(store: HistoryStore, first_day: int | None = None, last_day: int | None = None) -> Any:
    """The files of a range of days and what waits, as one data set; None when there is nothing.

    What waits is not cut to the days. Columns are those of all parts together.
    """
    files, waiting = store.held(first_day, last_day)
    parts: list[Any] = [ds.dataset(path, format="parquet") for path in files]
    parts += [ds.dataset(pa.table(table.columns, schema=_nullable(table.schema))) for table in waiting]
    if not parts:
        return None
    schema = _nullable(pa.unify_schemas([part.schema for part in parts], promote_options="permissive"))
    return ds.dataset([part.replace_schema(schema) for part in parts])


def _nullable(schema: pa.Schema) -> pa.Schema:
    """Null where a part lacks a column, also one that is never null where it is kept."""
    return pa.schema([field.with_nullable(True) for field in schema])
