"""Journal frames of a stream: events as accepted, outcomes as learnt, decisions as given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.streams.events import DEVICE_COMPONENTS, EventBatch
from scoring.schema import OutcomeBatch, event_ids

EVENTS, OUTCOMES, VERDICTS = "events", "outcomes", "verdicts"
REMAINING = "remaining"


def outcome_rows(outcomes: OutcomeBatch) -> pa.RecordBatch:
    """Outcomes as a journal frame's rows."""
    ids = outcomes.event_id
    kind = pa.string() if ids.dtype == object else pa.int64()
    return pa.record_batch(
        {
            "event_id": pa.array(ids, type=kind),
            "fraud": pa.array(outcomes.fraud),
            "known_at_us": pa.array(outcomes.known_at_us),
        }
    )


def outcomes_of(rows: pa.RecordBatch) -> OutcomeBatch:
    """The outcomes of a journal frame."""
    return OutcomeBatch(
        event_id=np.asarray(rows.column("event_id").to_numpy(zero_copy_only=False)),
        fraud=np.asarray(rows.column("fraud").to_numpy(zero_copy_only=False), dtype=np.bool_),
        known_at_us=np.asarray(rows.column("known_at_us").to_numpy(zero_copy_only=False), dtype=np.int64),
    )


def components_of(events: EventBatch) -> list[str | None] | None:
    """The fingerprint components of each row as JSON (None: not given), None where the stream has none."""
    if events.schema.get_field_index(DEVICE_COMPONENTS) < 0:
        return None
    texts: list[str | None] = events.column(DEVICE_COMPONENTS).to_pylist()
    return texts


def joined(waiting: Sequence[OutcomeBatch]) -> OutcomeBatch | None:
    """All of them as one, in their order; None of none."""
    if len(waiting) <= 1:
        return waiting[0] if waiting else None
    return OutcomeBatch(
        event_id=np.concatenate([each.event_id for each in waiting]),
        fraud=np.concatenate([each.fraud for each in waiting]),
        known_at_us=np.concatenate([each.known_at_us for each in waiting]),
    )


class _Remaining(msgspec.Struct, frozen=True):
    facts: dict[str, str]
    deployment: int
    waiting: list[tuple[list[int | str], list[bool], list[int]]]


@dataclass(frozen=True, eq=False)
class HeldState:
    """A snapshot taken apart: the core's arrays, outcomes that wait for the next events, facts, and the number of the
    deployment that judged last."""

    core: Mapping[str, NDArray[Any]]
    waiting: list[OutcomeBatch]
    facts: dict[str, str]
    deployment: int


def remaining_state(
    waiting: Sequence[OutcomeBatch], facts: Mapping[str, str], deployment: int
) -> dict[str, NDArray[Any]]:
    """What a snapshot holds beside the core's state (see :class:`HeldState`)."""
    held = [(each.event_id.tolist(), each.fraud.tolist(), each.known_at_us.tolist()) for each in waiting]
    content = msgspec.json.encode(_Remaining(dict(facts), deployment, held))
    return {REMAINING: np.frombuffer(content, np.uint8)}


def split_state(arrays: Mapping[str, NDArray[Any]]) -> HeldState:
    """What :func:`remaining_state` and the core's state were made of."""
    held = msgspec.json.decode(arrays[REMAINING].tobytes(), type=_Remaining)
    waiting = [
        OutcomeBatch(event_ids(ids), np.array(fraud, np.bool_), np.array(known, np.int64))
        for ids, fraud, known in held.waiting
    ]
    core = {name: array for name, array in arrays.items() if name != REMAINING}
    return HeldState(core, waiting, held.facts, held.deployment)
