"""From the bank's scored history and its outcomes to a model, and from a window of history to its drift.

Both read Parquet files through DuckDB, so that memory holds the chosen columns of the chosen window and no more. What
is read are the features *as they were when the event was scored*: nothing is computed again, and nothing known later
can slip in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from member_node.service.decisions import CORRECTED, FRAME
from member_node.service.history_files import MANIFEST, Manifest
from scoring.drift import DriftReport, drift_report
from scoring.models.artefact import ModelArtefact, column_baselines, encode_artefact
from scoring.models.dataset import NEVER, DatasetError, DataWindow, LabelledRows
from scoring.models.served import ModelError, ServedModel
from scoring.models.training import TrainingOptions, train

if TYPE_CHECKING:
    import duckdb

ATTEMPTS = 20
PAUSE_SECONDS = 0.1
DRIFT_ROWS = 200_000
T = TypeVar("T")
# Numbers in the history that say what became of an event, not what it was.
_VERDICTS = ("model_", "score_model_")
_BASE = ("event_id", "time_us", "amount")


@dataclass(frozen=True)
class RowChoice:
    """Which rows of a window to read. Rows that were refused are not in the history at all.

    ``only_labelled``: leave out events without an outcome (otherwise they count as genuine, as for card payments that
    nobody disputed). ``only_informed``: leave out events scored while the consortium could not be asked.
    ``one_in``: about one of so many events, chosen by a hash of its id.
    """

    only_labelled: bool = False
    only_informed: bool = False
    one_in: int = 1


class ScoredHistory:
    """The files of a ``HistoryStore`` that count, read from any process while the node goes on writing."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        """``threads``: how many a question may take (default: as many as the machine has)."""
        self._directory = directory
        self._settings: dict[str, Any] = {} if threads is None else {"threads": threads}

    def columns(self) -> dict[str, str]:
        """All columns there are, with their DuckDB types. Raises :class:`DatasetError` without any history."""
        found = self._run(lambda session: session.execute("DESCRIBE history").fetchall())
        return {str(row[0]): str(row[1]) for row in found}

    def features(self) -> tuple[str, ...]:
        """Columns that a model may learn from: the amount and all floating-point numbers that are no verdict."""
        return tuple(
            name
            for name, kind in self.columns().items()
            if kind == "DOUBLE" and not name.startswith(_VERDICTS)
        )

    def span_us(self) -> tuple[int, int]:
        """The first and the last event's time in microseconds. Raises :class:`DatasetError` without any history."""
        query = "SELECT min(time_us), max(time_us) FROM history"
        row = self._run(lambda session: session.execute(query).fetchone())
        if row is None or row[0] is None:
            raise DatasetError("the history holds no event")
        return int(row[0]), int(row[1])

    def count(self, first_us: int, until_us: int) -> int:
        """Rows of events in [first, until), those of corrections too. Raises :class:`DatasetError`."""
        query = "SELECT count(*) FROM history WHERE time_us >= ? AND time_us < ?"
        row = self._run(lambda session: session.execute(query, [first_us, until_us]).fetchone())
        return 0 if row is None else int(row[0])

    def read(
        self,
        names: Sequence[str],
        first_us: int,
        until_us: int,
        *,
        outcomes: pa.Table | None = None,
        choice: RowChoice = RowChoice(),
    ) -> pa.Table:
        """Columns ``names`` and event_id, time_us, amount, customer (text or null) of events in [first, until), in
        time order. Of an event that was corrected, the row that was scored last counts, and only where it lies.

        ``outcomes``: event_id (text), fraud, known_at_us; with it comes ``fraud_known_us`` (``NEVER`` where no fraud is
        known). Raises :class:`DatasetError` naming a column that the history does not hold.
        """
        held = self.columns()
        for name in (*_BASE, *names):
            if name not in held:
                raise DatasetError(f"the history has no column {name!r}")
        chosen = [f"h.{_quoted(name)}::DOUBLE AS {_quoted(name)}" for name in names if name not in _BASE]
        chosen.append(
            "h.customer::VARCHAR AS customer" if "customer" in held else "NULL::VARCHAR AS customer"
        )
        conditions = ["h.time_us >= ?", "h.time_us < ?"]
        if choice.only_informed and "degraded" in held:
            conditions.append("NOT coalesce(h.degraded, false)")
        if choice.one_in > 1:
            conditions.append(f"hash(h.event_id::VARCHAR) % {int(choice.one_in)} = 0")
        join = ""
        if outcomes is not None:
            join = "LEFT JOIN outcomes o ON o.event_id = h.event_id::VARCHAR"
            chosen.append(f"CASE WHEN o.fraud THEN o.known_at_us ELSE {NEVER} END AS fraud_known_us")
            if choice.only_labelled:
                conditions.append("o.event_id IS NOT NULL")
        newest: tuple[str, ...] = (
            "regexp_extract(h.filename, '-([0-9]+)[.]parquet$', 1)",
            "h.file_row_number",
        )
        parameters = [first_us, until_us]
        if FRAME in held:
            # The last judgement may lie outside the window: then the event is of no other time than that.
            conditions.append(
                f"(f.frame IS NULL OR f.frame < h.{FRAME} OR (f.frame = h.{FRAME} AND h.{CORRECTED}))"
            )
            join += f"""
                LEFT JOIN (
                    SELECT event_id, max({FRAME}) AS frame FROM history
                    WHERE {CORRECTED} AND NOT (time_us >= ? AND time_us < ?) GROUP BY event_id
                ) f ON f.event_id = h.event_id"""  # noqa: S608 - names of our own
            parameters *= 2
            newest = (f"coalesce(h.{FRAME}, -1)", f"coalesce(h.{CORRECTED}, false)", *newest)
        last = ", ".join(f"{key} DESC" for key in newest)
        # Names are quoted, values are parameters.
        query = f"""
            SELECT h.event_id::VARCHAR AS event_id, h.time_us, h.amount::DOUBLE AS amount, {", ".join(chosen)}
            FROM history h {join}
            WHERE {" AND ".join(conditions)}
            QUALIFY row_number() OVER (PARTITION BY h.event_id ORDER BY {last}) = 1
            ORDER BY h.time_us, h.filename, h.file_row_number
        """  # noqa: S608

        def run(session: duckdb.DuckDBPyConnection) -> pa.Table:
            if outcomes is not None:
                session.register("outcomes", outcomes)
            return session.sql(query, params=parameters).to_arrow_table()

        return self._run(run)

    def _run(self, query: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """The answer of ``query`` on a view ``history``; asked again when files were merged while it was reading."""
        # Half a second to load, which no node waits for at its start.
        import duckdb

        for attempt in range(1, ATTEMPTS + 1):
            try:
                files = [str(self._directory / file.name) for file in self._manifest().files]
                if not files:
                    raise DatasetError("the history holds no event: score events first")
                with duckdb.connect(config=self._settings) as session:
                    history = session.read_parquet(
                        files, union_by_name=True, filename=True, file_row_number=True
                    )
                    history.create_view("history")
                    return query(session)
            except (FileNotFoundError, duckdb.IOException) as error:
                # The node put files together in between: the new manifest names those that are there.
                if attempt == ATTEMPTS:
                    raise DatasetError(f"the history cannot be read: {error}") from error
                time.sleep(PAUSE_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    def _manifest(self) -> Manifest:
        if not (self._directory / MANIFEST).exists():
            return Manifest()
        try:
            return msgspec.json.decode((self._directory / MANIFEST).read_bytes(), type=Manifest)
        except msgspec.DecodeError as error:
            raise DatasetError(f"the history's manifest is damaged: {error}") from error


def labelled_rows(
    history: ScoredHistory,
    outcomes: pa.Table,
    names: Sequence[str],
    first_us: int,
    until_us: int,
    choice: RowChoice = RowChoice(),
) -> LabelledRows:
    """Scored events in [first, until) with their labels, every row of weight 1."""
    table = history.read(names, first_us, until_us, outcomes=outcomes, choice=choice)
    customer = pc.dictionary_encode(table.column("customer").combine_chunks())
    return LabelledRows(
        names=tuple(names),
        features=_matrix(table, names),
        fraud_known_us=_numbers(table, "fraud_known_us", np.int64),
        time_us=_numbers(table, "time_us", np.int64),
        amount=_numbers(table, "amount", np.float64),
        customer=np.asarray(pc.fill_null(customer.indices, -1).to_numpy(), dtype=np.int64),
        weight=np.ones(table.num_rows),
    )


def train_from_history(
    name: str,
    history: ScoredHistory,
    outcomes: pa.Table,
    features: Sequence[str],
    window: DataWindow,
    *,
    choice: RowChoice = RowChoice(),
    options: TrainingOptions = TrainingOptions(),  # noqa: B008 - frozen
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[ModelArtefact, bytes]:
    """Train on a window of the history; the model, and the file to register.

    Raises :class:`DatasetError` and :class:`~scoring.models.artefact.ArtefactError`. Imports lightgbm.
    """
    window.check()
    rows = labelled_rows(history, outcomes, features, window.train_first_us, window.valid_until_us, choice)
    artefact = train(name, rows, window, options, advance=advance)
    return artefact, encode_artefact(artefact)


def history_drift(history: ScoredHistory, model: ServedModel, first_us: int, until_us: int) -> DriftReport:
    """How far the events in [first, until) have moved from what ``model`` was trained on.

    They are scored again by this model, so that a shadow or a retired one can be looked at as well. Of more than
    :data:`DRIFT_ROWS` about so many are drawn, which bounds the memory. Raises :class:`DatasetError` when there are
    none.
    """
    choice = RowChoice(one_in=max(1, round(history.count(first_us, until_us) / DRIFT_ROWS)))
    table = history.read(model.features, first_us, until_us, choice=choice)
    if not table.num_rows:
        raise DatasetError("the history holds no event in that time")
    columns: Mapping[str, NDArray[np.float64]] = {
        name: _numbers(table, name, np.float64) for name in model.features
    }
    try:
        score = model.score(columns, table.num_rows)
    except Exception as error:
        raise ModelError(f"model {model.name} does not score the history: {error}") from error
    return drift_report(column_baselines(model.artefact), model.artefact.score_baseline, columns, score)


def _matrix(table: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    matrix = np.empty((table.num_rows, len(names)))
    for place, name in enumerate(names):
        matrix[:, place] = _numbers(table, name, np.float64)
    return matrix


def _numbers(table: pa.Table, name: str, kind: Any) -> NDArray[Any]:
    """A column as numbers; null becomes NaN."""
    return np.asarray(table.column(name).to_numpy(), dtype=kind)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
