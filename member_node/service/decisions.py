"""What was decided of a batch, as rows: in the journal before it leaves, and in the history beside its features.

A decision holds all that cannot be computed again from the events: the verdicts as given, by which rule or list, of
which version, the model's score, the consortium's evidence of the moment, and the reasons that were told.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from member_node.storage.cases import VERDICT, Alert
from member_node.streams.events import CORRECTION, DEVICE_COMPONENTS, EventBatch
from scoring.reasons import Reason
from scoring.scored import ScoredRows, Silenced
from scoring.verdicts import VERDICT_LABELS, Verdict

# The journal frame of the events that a frame of decisions is about.
OF = "of"
# What the rules said that the brake counted, so that it can count the same after a restart.
SPOKE = "spoke"
DEPLOYMENT = "deployment"
# Up to so many rows a list of texts is built faster than a dictionary of them.
_FEW = 16
NOT_KEPT = (CORRECTION, DEVICE_COMPONENTS)
# In the history of a stream whose events may be corrected: the journal frame, and whether the row replaced another one.
FRAME, CORRECTED = "journal_frame", "corrected"
# Lists of rule ids; in a batch of decisions only where some row has one, in the history always.
EXEMPT, BRAKED = "exempt", "braked"
_IDS = pa.list_(pa.string())


def decision_rows(scored: ScoredRows, kept: Mapping[str, Any], degraded: bool) -> pa.RecordBatch:
    """One row for each judged row. ``kept``: columns of the consortium; ``degraded``: it could not be asked."""
    rows = len(scored)
    verdict, rule = labels(scored.live.verdict), names(scored.live.decider, scored.deciders)
    same = scored.alone is scored.live
    columns: dict[str, Any] = {
        "verdict": verdict,
        "rule": rule,
        "verdict_alone": verdict if same else labels(scored.alone.verdict),
        "rule_alone": rule if same else names(scored.alone.decider, scored.deciders),
        "rule_version": _versions(scored.version),
        "reasons": _reason_texts(scored.reasons, rows),
        **kept,
        "degraded": _repeated(degraded, rows),
        **{name: _flags(hits) for name, hits in scored.listed.items()},
    }
    for name, silenced in ((EXEMPT, scored.exempt), (BRAKED, scored.braked)):
        if len(silenced):
            columns[name] = _rule_ids(silenced, rows)
    if scored.has_model:
        columns["model_score"] = _scores(scored.score)
        columns["model_degraded"] = _flags(scored.model_degraded)
        columns["model_version"] = _repeated_int(scored.model_version, rows, np.int32)
    if scored.device_ids is not None:
        columns["device_linked"] = pa.array(scored.device_ids, type=pa.string())
    for version, verdict in scored.shadow_verdicts.items():
        columns[f"verdict_rules_{version}"] = labels(verdict)
    for version, score in scored.shadow_scores.items():
        columns[f"score_model_{version}"] = _scores(score)
    return _batch(columns)


# Of a stream the columns are the same for days; other names come with lists and shadows that come and go.
_schemas: dict[tuple[tuple[str, ...], tuple[int, ...]], pa.Schema] = {}


def _batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """A record batch under a schema that is one object for all batches alike: to compare two costs the journal more
    than to write a row."""
    arrays = list(columns.values())
    # No two types with one number are in use here; the types themselves take long to hash.
    key = tuple(columns), tuple([each.type.id for each in arrays])
    schema = _schemas.get(key)
    if schema is None:
        if len(_schemas) >= 64:
            _schemas.clear()
        schema = _schemas[key] = pa.schema([(name, each.type) for name, each in columns.items()])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def decision_facts(sequence: int, scored: ScoredRows) -> dict[str, str]:
    """Facts of the frame of decisions about the events of frame ``sequence``."""
    facts = {OF: str(sequence), DEPLOYMENT: str(scored.deployment)}
    if len(scored.spoke):
        facts[SPOKE] = base64.b85encode(scored.spoke.astype("<i4").tobytes()).decode()
    return facts


def recalled(rows: pa.RecordBatch, facts: Mapping[str, str]) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Rule versions int16 [m] and what the rules said, int32 [k, 3], of a frame of decisions."""
    version = np.asarray(rows.column("rule_version").to_numpy(zero_copy_only=False), dtype=np.int16)
    spoke = np.frombuffer(base64.b85decode(facts.get(SPOKE, "")), "<i4").reshape(-1, 3)
    return version, spoke.astype(np.int32)


def history_table(
    events: EventBatch,
    decisions: pa.RecordBatch,
    names: tuple[str, ...],
    features: NDArray[np.float64],
    frame: NDArray[np.int64],
) -> pa.Table:
    """Events as they came (without fingerprint components), what was decided, and ``features`` [f, n] by ``names``.

    ``frame`` int64 [n]: the journal frame of each event, kept where events may be corrected. Features are never null
    (a missing one is NaN), and their columns say so: Parquet then keeps no list of which values are there.
    """
    columns = {name: events.column(name) for name in events.schema.names if name not in NOT_KEPT}
    fields = [field for field in events.schema if field.name not in NOT_KEPT]
    if CORRECTION in events.schema.names:
        columns[FRAME], columns[CORRECTED] = pa.array(frame), events.column(CORRECTION)
        fields += [pa.field(FRAME, pa.int64()), pa.field(CORRECTED, pa.bool_())]
    columns |= {name: decisions.column(name) for name in decisions.schema.names}
    fields += decisions.schema
    for name in (EXEMPT, BRAKED):
        if name not in columns:
            columns[name] = pa.nulls(len(frame), _IDS)
            fields.append(pa.field(name, _IDS))
    # One Arrow array over the whole matrix, cut into its rows: an array of each row costs three times as much.
    values, rows = pa.array(np.ascontiguousarray(features).reshape(-1)), len(frame)
    for index, field in enumerate(_feature_fields(names)):
        if field.name not in columns:
            columns[field.name] = values.slice(index * rows, rows)
            fields.append(field)
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


@lru_cache(maxsize=16)
def _feature_fields(names: tuple[str, ...]) -> tuple[pa.Field, ...]:
    return tuple(pa.field(name, pa.float64(), nullable=False) for name in names)


def alerts_of(
    sequence: NDArray[np.int64], events: EventBatch, decisions: pa.RecordBatch, least: Verdict
) -> list[Alert]:
    """The alerts of successive frames: one for each row whose verdict is at least ``least``.

    ``sequence`` int64 [n]: each row's frame, ascending.
    """
    wanted = pa.array(VERDICT_LABELS[max(int(least), 1) :])
    verdicts = decisions.column("verdict")
    rows = np.flatnonzero(pc.is_in(verdicts, value_set=wanted).to_numpy(zero_copy_only=False))
    if not len(rows):
        return []
    chosen = pa.array(rows)
    frames = sequence[rows]
    found = zip(
        frames.tolist(),
        (rows - np.searchsorted(sequence, frames)).tolist(),
        _texts(events, "event_id", chosen),
        events.column("time_us").take(chosen).to_pylist(),
        events.column("amount").take(chosen).to_pylist(),
        _texts(events, "customer", chosen),
        verdicts.take(chosen).to_pylist(),
        _texts(decisions, "rule", chosen),
        _texts(decisions, "reasons", chosen),
        _column(decisions, "model_score", chosen),
        strict=True,
    )
    return [
        Alert(
            source=f"{frame}:{row}",
            kind=VERDICT,
            customer=who,
            event_id=event_id,
            time_us=time_us,
            verdict=VERDICT_LABELS.index(verdict),
            rule=rule,
            amount=amount,
            score=value,
            reasons=told,
        )
        for frame, row, event_id, time_us, amount, who, verdict, rule, told, value in found
    ]


def labels(verdict: NDArray[np.uint8]) -> pa.Array:
    """Verdicts by their labels, text [n]."""
    if not np.count_nonzero(verdict):
        return _repeated_text(VERDICT_LABELS[0], len(verdict))
    return _named(verdict, VERDICT_LABELS, None)


def names(index: NDArray[np.integer[Any]], known: Sequence[str]) -> pa.Array:
    """``known`` names by position, text [n]; null where the position is negative."""
    none = index < 0
    if np.count_nonzero(none) == len(index):
        return _no_texts(len(index))
    return _named(index, known, none)


# Columns that say the same of every row, as most do of most batches: Arrow's arrays never change.
@lru_cache(maxsize=64)
def _repeated_text(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


@lru_cache(maxsize=64)
def _no_texts(rows: int) -> pa.Array:
    return pa.nulls(rows, pa.string())


@lru_cache(maxsize=64)
def _repeated(value: bool, rows: int) -> pa.Array:
    return pa.array(np.full(rows, value))


@lru_cache(maxsize=64)
def _repeated_int(value: int, rows: int, dtype: type[np.signedinteger[Any]]) -> pa.Array:
    return pa.array(np.full(rows, value, dtype))


def _flags(values: NDArray[np.bool_]) -> pa.Array:
    return _repeated(values.item(), 1) if len(values) == 1 else pa.array(values)


def _versions(version: NDArray[np.int16]) -> pa.Array:
    return _repeated_int(version.item(), 1, np.int16) if len(version) == 1 else pa.array(version)


def _scores(score: NDArray[np.float64]) -> pa.Array:
    """Scores, null where there is none."""
    none = np.isnan(score)
    return pa.array(score, mask=none) if np.count_nonzero(none) else pa.array(score)


def _named(index: NDArray[Any], known: Sequence[str], mask: NDArray[np.bool_] | None) -> pa.Array:
    if len(index) <= _FEW:
        return pa.array([known[each] if each >= 0 else None for each in index.tolist()], pa.string())
    indices = pa.array(index.astype(np.int16), mask=mask)
    return pa.DictionaryArray.from_arrays(indices, pa.array(known, type=pa.string())).cast(pa.string())


def _rule_ids(silenced: Silenced, rows: int) -> pa.Array:
    """The ids of each row as a list, null where there is none."""
    counts = np.bincount(silenced.rows, minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = names(silenced.places.astype(np.int16), silenced.rules)
    return pa.ListArray.from_arrays(pa.array(offsets), ids, mask=pa.array(counts == 0))


def _reason_texts(reasons: Mapping[int, Sequence[Reason]], rows: int) -> pa.Array:
    if not reasons:
        return _no_texts(rows)
    texts: list[str | None] = [None] * rows
    for row, given in reasons.items():
        told = [{"rule": each.rule, "verdict": each.verdict.label, "text": each.text} for each in given]
        texts[row] = msgspec.json.encode(told).decode()
    return pa.array(texts, type=pa.string())


def _column(rows: pa.RecordBatch, name: str, chosen: pa.Array) -> list[Any]:
    if name not in rows.schema.names:
        return [None] * len(chosen)
    values: list[Any] = rows.column(name).take(chosen).to_pylist()
    return values


def _texts(rows: pa.RecordBatch, name: str, chosen: pa.Array) -> list[str]:
    return ["" if value is None else str(value) for value in _column(rows, name, chosen)]
