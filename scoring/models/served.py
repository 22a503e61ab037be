"""Serving a model: probabilities from ONNX Runtime on the CPU, explanations from the same trees.

A score is computed in float32: it differs from LightGBM's by up to 1e-6. It depends on the row alone, not on the batch
it came in: a session uses one thread, and larger batches are cut among several threads that share it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.compiled import compiled, compiled_brief
from scoring.models.artefact import ArtefactError, ModelArtefact, ModelCard, artefact_digest, decode_artefact
from scoring.models.onnx_export import INPUT, OUTPUT
from scoring.models.shap import LeafPaths, ShapError
from scoring.rules.columns import Layout, MatrixColumns

LOGGER = logging.getLogger(__name__)
# Smaller parts are not worth a thread's start.
LEAST_PART = 256
# What float32 sums may differ from exact ones before a model counts as broken.
TOLERANCE = 1e-5
# Fewer rows are laid out without letting go of the interpreter's lock.
_FEW = 64


class ModelError(ValueError):
    """A model cannot be loaded or did not score; the text names it and says why."""


class ServedModel:
    """One loaded model; calls may come from several threads at once."""

    def __init__(
        self, artefact: ModelArtefact, *, version: int = 0, digest: bytes = b"", threads: int = 1
    ) -> None:
        """Start a session and try to score and explain the model's probes. Raises :class:`ModelError`.

        ``threads``: how many may score one batch. ``version`` and ``digest``: as registered.
        """
        self.card: ModelCard = artefact.card
        self._features = artefact.card.features
        self.version = version
        self.digest = digest
        self.failures = 0
        self._artefact = artefact
        try:
            self._session = open_session(artefact.onnx, len(artefact.card.features))
        except ModelError as error:
            raise ModelError(f"model {artefact.card.name}: {error}") from error
        self._own = _Own(self._session, len(self._features))
        self._found = _Found.of(Layout((), ()), self._features)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "model") if threads > 1 else None
        self._told = False
        self._try_probes()
        # Compiled here, not at the first event.
        layout = Layout(self._features, ())
        for rows in (1, _FEW + 1):
            self.inputs(MatrixColumns(layout, np.zeros((len(self._features), rows)), {}), rows)

    @classmethod
    def load(
        cls,
        content: bytes,
        *,
        version: int = 0,
        threads: int = 1,
        expected_digest: bytes | None = None,
        columns: Collection[str] | None = None,
    ) -> ServedModel:
        """The model of an artefact file's bytes. ``columns``: what will be there to read (see :meth:`check_columns`).

        Raises :class:`ModelError`.
        """
        try:
            artefact = decode_artefact(content, expected_digest=expected_digest)
        except ArtefactError as error:
            raise ModelError(str(error)) from error
        model = cls(artefact, version=version, digest=artefact_digest(content), threads=threads)
        if columns is not None:
            model.check_columns(columns)
        return model

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{self.card.name} {self.version}" if self.version else self.card.name

    @property
    def features(self) -> tuple[str, ...]:
        """The columns it reads, in the order of its rows."""
        return self._features

    @property
    def artefact(self) -> ModelArtefact:
        """What was loaded."""
        return self._artefact

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise :class:`ModelError` naming the features that ``columns`` lacks."""
        missing = [name for name in self.features if name not in columns]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise ModelError(f"model {self.name} reads columns that the stream does not have: {shown}")

    def inputs(self, columns: Mapping[str, Any], rows: NDArray[np.integer[Any]] | int) -> NDArray[np.float32]:
        """A model's rows float32 [m, f] from columns [n] (numbers or booleans).

        ``rows``: which of them as indices, or how many from the first. An int gives this thread's own buffer, which
        its next call reuses; indices give a copy.
        """
        if isinstance(rows, int) and isinstance(columns, MatrixColumns):
            return self._laid_out(columns, rows)
        chosen = [columns[name] for name in self.features]
        with np.errstate(over="ignore"):
            if not isinstance(rows, int):
                matrix = np.empty((len(rows), len(chosen)), np.float32)
                for place, column in enumerate(chosen):
                    matrix[:, place] = column[rows]
                return matrix
            matrix = self._own.rows(rows)
            if rows == 1:
                # A fifth of the time of sixty assignments to slices of one.
                matrix[0] = [column.item(0) for column in chosen]
            else:
                for place, column in enumerate(chosen):
                    matrix[:, place] = column[:rows]
            return matrix

    def _laid_out(self, columns: MatrixColumns, rows: int) -> NDArray[np.float32]:
        """:meth:`inputs` of the first rows of columns most of which stand in a matrix."""
        found = self._found
        if found.layout is not columns.layout:
            found = self._found = _Found.of(columns.layout, self._features)
        matrix = self._own.rows(rows)
        (_lay_out_brief if rows <= _FEW else _lay_out)(columns.matrix, found.places, matrix)
        if found.others:
            with np.errstate(over="ignore"):
                for place, name in found.others:
                    matrix[:, place] = columns.others[name][:rows]  # type: ignore[index]
        return matrix

    def score(self, columns: Mapping[str, Any], rows: int) -> NDArray[np.float64]:
        """Probabilities of fraud float64 [rows] from the first ``rows`` of columns; raises what the runtime raises."""
        return self.score_rows(self.inputs(columns, rows))

    def score_rows(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities float64 [n] of rows float32 [n, f] in C order."""
        if len(matrix) == 1:
            return self._own.score_one(matrix)
        parts = min(self._threads, len(matrix) // LEAST_PART)
        if self._pool is None or parts < 2:
            return self._run(matrix)
        cuts = np.array_split(matrix, parts)
        waiting = [self._pool.submit(self._run, cut) for cut in cuts[1:]]
        return np.concatenate([self._run(cuts[0]), *(each.result() for each in waiting)])

    def score_or_degrade(
        self, columns: Mapping[str, Any], rows: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores and, row by row, whether the model failed (its score is NaN then); never raises.

        Failed rows are counted in ``failures``; the first failure of a loaded model is logged.
        """
        try:
            score = self.score(columns, rows)
            degraded = np.isnan(score)
            reason: Exception | None = None
        except Exception as error:  # noqa: BLE001 - the events must get their verdicts, by rules alone
            score, degraded, reason = np.full(rows, np.nan), np.ones(rows, np.bool_), error
        count = int(np.count_nonzero(degraded))
        if count:
            self.failures += count
            if not self._told:
                self._told = True
                LOGGER.error("model %s gives no score, rules decide alone: %s", self.name, reason or "NaN")
        return score, degraded

    @cached_property
    def paths(self) -> LeafPaths:
        """The leaves as what explains them."""
        return LeafPaths.of(self._artefact.trees, len(self.features))

    def contributions(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Exact SHAP values float64 [n, f] in log odds of rows float32 [n, f]."""
        return self.paths.contributions(matrix)

    def _run(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        return run_session(self._session, matrix)

    def _try_probes(self) -> None:
        try:
            found = self._run(np.ascontiguousarray(self._artefact.probes))
        except Exception as error:
            raise ModelError(f"model {self.name} does not run: {error}") from error
        expected = self._artefact.probe_scores
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            raise ModelError(f"model {self.name} does not give the scores it gave when it was trained")
        try:
            self.contributions(self._artefact.probes[:1])
        except ShapError as error:
            raise ModelError(f"model {self.name} cannot be explained: {error}") from error


class _Own(threading.local):
    """What a thread has for itself: rows to be scored, and a row and its score at addresses the session knows.

    Values that the session finds where they were the last time cost half of a call with one row.
    """

    def __init__(self, session: Any, features: int) -> None:
        self._session = session
        self._rows = np.empty((0, features), np.float32)
        self._row, self._score = np.empty((1, features), np.float32), np.empty((1, 1), np.float32)
        self._binding = session.io_binding()
        for bind, name, array in (
            (self._binding.bind_input, INPUT, self._row),
            (self._binding.bind_output, OUTPUT, self._score),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def rows(self, count: int) -> NDArray[np.float32]:
        """``count`` rows float32 [count, f], which the next call gives again."""
        if len(self._rows) < count:
            self._rows = np.empty((max(count, 64), self._rows.shape[1]), np.float32)
        return self._rows[:count]

    def score_one(self, row: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probability float64 [1] of a row float32 [1, f]; raises what the runtime raises."""
        self._row[...] = row
        self._session.run_with_iobinding(self._binding)
        score: NDArray[np.float64] = self._score[0].astype(np.float64)
        return score


@dataclass(frozen=True, eq=False)
class _Found:
    """Where a model's features stand: ``places`` int64 [f] in the matrix, -1 for ``others`` as (place here, name)."""

    layout: Layout
    places: NDArray[np.int64]
    others: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, layout: Layout, features: Sequence[str]) -> _Found:
        places = np.array([layout.places.get(name, -1) for name in features], np.int64)
        return cls(layout, places, tuple((at, features[at]) for at in np.flatnonzero(places < 0).tolist()))


@compiled
def _lay_out(values: NDArray[np.float64], places: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
    """Rows of a matrix float64 [c, n] as columns float32 of ``rows``, as many as it has."""
    for start in range(0, len(rows), _FEW):
        end = min(start + _FEW, len(rows))
        for column in range(len(places)):
            place = places[column]
            if place >= 0:
                for row in range(start, end):
                    rows[row, column] = np.float32(values[place, row])


@compiled_brief
def _lay_out_brief(values: NDArray[np.float64], places: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
    _lay_out(values, places, rows)


@dataclass(frozen=True, eq=False)
class ModelColumns:
    """What rules read of the models, [n] each: ``score`` (NaN: none), ``degraded``, and every shadow's scores."""

    score: NDArray[np.float64]
    degraded: NDArray[np.bool_]
    shadows: Mapping[int, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Serving:
    """The models in service, as one value that does not change: take it once a batch.

    ``failure``: why the active model could not be loaded (every row is degraded then); empty with ``active`` None when
    no model was ever activated (no row is degraded: nothing was promised).
    """

    active: ServedModel | None = None
    shadows: tuple[ServedModel, ...] = ()
    failure: str = ""
    broken: Mapping[int, str] = field(default_factory=dict)

    def columns(self, values: Mapping[str, Any], rows: int) -> ModelColumns:
        """Score the first ``rows`` of the columns ``values`` by all models; never raises."""
        if self.active is None:
            score, degraded = np.full(rows, np.nan), np.full(rows, bool(self.failure))
        else:
            score, degraded = self.active.score_or_degrade(values, rows)
        shadows = {model.version: model.score_or_degrade(values, rows)[0] for model in self.shadows}
        return ModelColumns(score, degraded, shadows)


def open_session(onnx: bytes, features: int) -> Any:
    """A session of ONNX Runtime for a model of ``features`` inputs, or :class:`ModelError`."""
    # A tenth of a second that only nodes with a model pay.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Several threads would add up a row's trees in another order for each size of batch.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"the runtime refuses it: {error}") from error
    given, found = session.get_inputs(), session.get_outputs()
    if [each.name for each in given] != [INPUT] or [each.name for each in found] != [OUTPUT]:
        raise ModelError(f"it does not map {INPUT} to {OUTPUT}")
    if given[0].type != "tensor(float)" or given[0].shape[-1] != features:
        raise ModelError(f"it does not read {features} numbers a row")
    return session


def run_session(session: Any, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities float64 [n] of rows float32 [n, f] in C order; raises what the runtime raises."""
    found: NDArray[np.float32] = session.run([OUTPUT], {INPUT: matrix})[0]
    return found[:, 0].astype(np.float64)
