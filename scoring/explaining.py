"""Why each event that was not simply allowed was not: lists, rules, what the model saw, what was wrong with the device.

Model and device are told of where a rule spoke that reads them: nobody else was decided about by them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.models.explanation import top_reasons
from scoring.models.served import ServedModel
from scoring.reasons import Reason, reasons
from scoring.rules.evaluation import Judgement
from scoring.scored import MODEL_SCORE, InForce, Words
from scoring.verdicts import Verdict

LOGGER = logging.getLogger(__name__)
DEVICE = "device"
UNEXPLAINED = "what raised its score cannot be told"


def explain(
    force: InForce,
    judgement: Judgement,
    words: Words,
    columns: Mapping[str, Any],
    names: Mapping[str, str],
    signs: NDArray[np.object_] | None,
) -> dict[int, tuple[Reason, ...]]:
    """The reasons by row: the list that decided, the rules that spoke, the model's, the device's.

    ``judgement``: what stands of the rules; ``words``: what was decided; ``names``: what features are called; ``signs``
    object [n]: signs of tampering of each row's device, None where devices are not linked.
    """
    deployment, model = force.deployment, force.models.active
    if not np.count_nonzero(words.verdict):
        return {}
    found = reasons(deployment, replace(judgement, verdict=words.verdict), columns)
    rules = len(deployment.rules)
    for row in np.flatnonzero((words.decider >= rules) & (words.verdict > 0)).tolist():
        table = force.lists.tables[int(words.decider[row]) - rules]
        verdict = Verdict(int(words.verdict[row]))
        text = f"its {table.entity} is on the {table.kind} list {table.name}"
        found[row] = (Reason(f"list:{table.name}", verdict, text), *found[row])
    if model is not None:
        rows = _spoken_for(judgement, words, force.model_rules)
        for row, text in _of_model(model, columns, rows, names):
            found[row] = (*found[row], _added(words, row, f"model:{model.name}", text))
    if signs is not None:
        for row in _spoken_for(judgement, words, force.device_rules).tolist():
            if signs[row]:
                text = "signs of tampering: " + ", ".join(each.replace("-", " ") for each in signs[row])
                found[row] = (*found[row], _added(words, row, DEVICE, text))
    return found


def _of_model(
    model: ServedModel, columns: Mapping[str, Any], rows: NDArray[np.int64], names: Mapping[str, str]
) -> list[tuple[int, str]]:
    """What raised the score of those of ``rows`` that have one; nothing that fails here may cost a verdict."""
    rows = rows[~np.isnan(columns[MODEL_SCORE][rows])] if len(rows) else rows
    if not len(rows):
        return []
    try:
        told = top_reasons(model, model.inputs(columns, rows), words=names)
    except Exception:
        LOGGER.exception("model %s cannot explain %d scores", model.name, len(rows))
        return [(row, UNEXPLAINED) for row in rows.tolist()]
    return [
        (row, "; ".join(each.text for each in given))
        for row, given in zip(rows.tolist(), told, strict=True)
        if given
    ]


def _spoken_for(judgement: Judgement, words: Words, rules: Sequence[int]) -> NDArray[np.int64]:
    """Rows that are not allowed and against which one of ``rules`` spoke."""
    if not rules:
        return np.empty(0, np.int64)
    return np.flatnonzero(judgement.effective[:, rules].any(axis=1) & (words.verdict > 0))


def _added(words: Words, row: int, rule: str, text: str) -> Reason:
    return Reason(rule, Verdict(int(words.verdict[row])), text)
