"""The upper bound's features: the same spec, computed by the same engine, over every bank's rows in one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from sandbox.evaluation.results import ExactnessCheck
from sandbox.evaluation.stream import ScoredStream
from sandbox.evaluation.windows import SharedWindow, shared_window
from scoring.features.engine import FeatureEngine
from scoring.features.spec import Aggregation, FeatureSpec, FieldFeature, WindowFeature
from scoring.schema import ENTITIES, OutcomeBatch, TransactionBatch, transaction_batch

OWN_ENTITIES = ("customer", "account", "card")  # of one bank only: pooling adds nothing to them
_BATCH = 65_536
Floats = npt.NDArray[np.float64]


def model_features(spec: FeatureSpec) -> list[str]:
    """Features a model may learn from: all but columns passed through (an event's id, or what is an input anyway)."""
    return [feature.name for feature in spec.features if not isinstance(feature, FieldFeature)]


def shared_features(spec: FeatureSpec) -> list[WindowFeature]:
    """Features that change when banks pool rows: windows over entities that several banks meet."""
    defined = {f.name for f in spec.filters}
    return [
        feature
        for feature in spec.features
        if isinstance(feature, WindowFeature)
        and feature.entity not in OWN_ENTITIES
        and (feature.filter is None or feature.filter in defined)
    ]


def pooled_features(stream: ScoredStream, spec: FeatureSpec, label_delay_us: int) -> dict[str, Floats]:
    """Values ``[n]`` of the shared features over all rows by time; frauds become known ``label_delay_us`` after."""
    shared = shared_features(spec)
    if not shared:
        return {}
    engine = FeatureEngine(replace(spec, features=tuple(shared)))
    batch = _batch(stream)
    frauds = np.flatnonzero(stream.fraud == 1)
    outcomes = OutcomeBatch(
        event_id=frauds.astype(np.int64),
        fraud=np.ones(len(frauds), np.bool_),
        known_at_us=stream.time_us[frauds] + label_delay_us,
    )
    values = np.empty((len(stream), len(shared)))
    for start in range(0, len(stream), _BATCH):
        rows = slice(start, start + _BATCH)
        due = (frauds >= start) & (frauds < start + _BATCH)
        told = OutcomeBatch(outcomes.event_id[due], outcomes.fraud[due], outcomes.known_at_us[due])
        values[rows] = engine.update(batch.take(rows), told).values
    return {feature.name: values[:, place] for place, feature in enumerate(shared)}


def pooled_matrix(names: Sequence[str], own: Floats, pooled: Mapping[str, Floats]) -> Floats:
    """``own`` ``[n, f]`` with the columns of ``pooled`` put in the place of the banks' own; ``names``: its columns."""
    matrix = own.copy()
    for name, values in pooled.items():
        matrix[:, list(names).index(name)] = values
    return matrix


def engine_check(
    stream: ScoredStream, spec: FeatureSpec, pooled: Mapping[str, Floats]
) -> ExactnessCheck | None:
    """The engine's counts and rates against prefix sums over the sorted rows; ``None`` where the spec has none."""
    plain = [
        SharedWindow(f.name, f.entity, f.aggregation.value, f.window_us, f.delay_us)
        for f in shared_features(spec)
        if f.aggregation in (Aggregation.COUNT, Aggregation.RATE)
        and f.filter is None
        and not f.exclude_current
        and f.empty == 0.0
    ]
    if not plain:
        return None
    different = np.zeros(len(stream), bool)
    for window in plain:
        key = stream.codes(window.entity)
        expected = shared_window(window, key, stream.time_us, stream.fraud)
        different |= (pooled[window.feature] != expected) & (key >= 0)
    return ExactnessCheck(
        f"streaming engine over all rows ({len(plain)} windows), against sorted prefix sums",
        len(stream),
        int(different.sum()),
    )


def _batch(stream: ScoredStream) -> TransactionBatch:
    frame = stream.frame
    entities: dict[str, object] = {
        name: _raw(frame[name]) for name in ENTITIES if name in frame.columns and name != "customer"
    }
    entities["customer"] = stream.customer  # codes that differ between banks, as the raw values need not
    return transaction_batch(
        event_id=np.arange(len(stream), dtype=np.int64),
        time_us=stream.time_us,
        amount=stream.amount,
        channel=frame["channel"].to_numpy(),
        entities=entities,
    )


def _raw(column: pl.Series) -> npt.NDArray[np.generic]:
    values: npt.NDArray[np.generic] = column.to_numpy()
    return values
