"""How verdicts of scored batches are told: an answer for each row, or sums by verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from member_node.service.scoring import ScoredBatch
from member_node.streams.events import EventBatch
from scoring.features.admission import Disposition
from scoring.verdicts import VERDICT_LABELS, Verdict


def tally(verdicts: Sequence[NDArray[np.uint8]]) -> dict[str, int]:
    """How many there are of each verdict, by its label."""
    counts = (
        np.bincount(np.concatenate(verdicts), minlength=len(VERDICT_LABELS)) if verdicts else np.zeros(4, int)
    )
    return {label: int(count) for label, count in zip(VERDICT_LABELS, counts, strict=True)}


def answers_of(
    batch: ScoredBatch,
    events: EventBatch,
    find: Callable[[Sequence[str], Sequence[str]], pa.Table],
) -> list[dict[str, Any]]:
    """One answer for each of ``events`` as they were given, judged or not; a duplicate's is that of the first time.

    ``find`` gives columns of the history by event id (as text).
    """
    answers: list[dict[str, Any]] = []
    judged = 0
    for event_id, code in zip(events.column("event_id").to_pylist(), batch.disposition.tolist(), strict=True):
        answer: dict[str, Any] = {"event_id": event_id, "disposition": Disposition(code).text}
        if code <= Disposition.CORRECTED:
            answer["verdict"] = Verdict(int(batch.live.verdict[judged])).label
            answer["verdict_alone"] = Verdict(int(batch.alone.verdict[judged])).label
            answer["degraded"] = batch.degraded
            answer["reasons"] = [
                {"rule": each.rule, "verdict": each.verdict.label, "text": each.text}
                for each in batch.reasons.get(judged, ())
            ]
            judged += 1
        answers.append(answer)
    repeated = [
        str(each["event_id"]) for each in answers if each["disposition"] == Disposition.DUPLICATE.text
    ]
    if repeated:
        told = find(repeated, ["verdict", "verdict_alone", "degraded", "reasons"]).to_pylist()
        first = {str(row["event_id"]): row for row in told}
        for answer in answers:
            row = first.get(str(answer["event_id"]))
            if answer["disposition"] == Disposition.DUPLICATE.text and row is not None:
                answer |= {name: row[name] for name in ("verdict", "verdict_alone", "degraded")}
                answer["reasons"] = json.loads(row["reasons"] or "[]")
    return answers
