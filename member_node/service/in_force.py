"""What judges the next batch: the deployment of rules, the lists and the models of this moment, as one value."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from member_node.metrics import MODEL
from scoring.lists import ListSet
from scoring.models.served import ModelColumns, Serving
from scoring.rules.columns import ColumnSchema
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import load_ruleset
from scoring.scored import InForce

_NO_LISTS, _NO_MODELS = ListSet(), Serving()


class ForceSource:
    """Asked once a batch; gives the same value until one of its parts changes."""

    def __init__(
        self,
        deployment: Callable[[], Deployment],
        lists: Callable[[], ListSet],
        models: Callable[[], Serving],
    ) -> None:
        self._deployment = deployment
        self._lists = lists
        self._models = models
        self._held = InForce(deployment(), lists(), models())

    def __call__(self) -> InForce:
        """What is in force now."""
        deployment, lists, models = self._deployment(), self._lists(), self._models()
        held = self._held
        if held.deployment is not deployment or held.lists is not lists or held.models is not models:
            held = self._held = InForce(deployment, lists, models)
        return held


@dataclass(frozen=True, eq=False)
class _TimedServing(Serving):
    """The same models; tells how long each batch took them."""

    on_stage: Callable[[str, float], None] = lambda stage, seconds: None

    def columns(self, values: Mapping[str, Any], rows: int) -> ModelColumns:
        began = time.perf_counter()
        found = super().columns(values, rows)
        self.on_stage(MODEL, time.perf_counter() - began)
        return found


def timed_models(
    models: Callable[[], Serving], on_stage: Callable[[str, float], None]
) -> Callable[[], Serving]:
    """What ``models`` gives, as values that tell ``on_stage`` the seconds of every batch they score."""
    plain = models()
    timed = plain

    def serving() -> Serving:
        nonlocal plain, timed
        found = models()
        if found is not plain or timed is plain:
            plain = timed = found
            if found.active is not None or found.shadows:
                timed = _TimedServing(found.active, found.shadows, found.failure, found.broken, on_stage)
        return timed

    return serving


def no_lists() -> ListSet:
    """No list at all."""
    return _NO_LISTS


def no_models() -> Serving:
    """No model, and none promised."""
    return _NO_MODELS


class FileRules:
    """The rules of a file alone, of which nothing changes while a stream is open."""

    def __init__(self, text: str, columns: ColumnSchema) -> None:
        """Raises ``RuleSetError``."""
        self._deployment = Deployment(number=1, active=load_ruleset(text, columns))

    def deployment(self) -> Deployment:
        """The one there is."""
        return self._deployment

    def deployment_at(self, number: int) -> Deployment:
        """The one there is, which had ``number`` 1 always."""
        if number != 1:
            raise ValueError(f"deployment {number} was of a rulebook, and the stream is opened without it")
        return self._deployment
