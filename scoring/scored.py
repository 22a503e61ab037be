"""What goes into the scoring core and comes out of it: what is in force, what is seen of a batch, what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scoring.brake import BrakeAlarm
from scoring.devices.linker import NUMBERS as DEVICE_NUMBERS
from scoring.lists import EVERY_RULE, ListKind, ListSet
from scoring.models.served import Serving
from scoring.reasons import Reason
from scoring.rules.columns import ColumnValues
from scoring.rules.deployment import Deployment
from scoring.schema import TransactionBatch

MODEL_SCORE, MODEL_DEGRADED = "model_score", "model_degraded"


@dataclass(frozen=True, eq=False)
class Sight:
    """Columns of a batch that rules may read; by evidence kind the strongest verdict its tier permits, uint8 [n]."""

    columns: Mapping[str, ColumnValues]
    limits: Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class InForce:
    """What judges a batch, as one value that does not change: rules, lists, models."""

    deployment: Deployment
    lists: ListSet = field(default_factory=ListSet)
    models: Serving = field(default_factory=Serving)

    @cached_property
    def model_rules(self) -> tuple[int, ...]:
        """The places of the live rules that read the model's score."""
        return tuple(p for p, rule in enumerate(self.deployment.rules) if MODEL_SCORE in rule.columns)

    @cached_property
    def device_rules(self) -> tuple[int, ...]:
        """The places of the live rules that read what was learnt of the device."""
        known = frozenset(DEVICE_NUMBERS)
        return tuple(p for p, rule in enumerate(self.deployment.rules) if not known.isdisjoint(rule.columns))

    @cached_property
    def exemptible(self) -> Mapping[str, int]:
        """Rules that customers may be exempt from, by id, numbered: those deployed and those the exemption lists name;
        none where there is no such list."""
        named = [table.rules for table in self.lists.tables if table.kind is ListKind.EXEMPTION]
        if not named:
            return {}
        deployed = (each.ids for each in (*self.deployment.live, *self.deployment.shadows))
        ids = sorted(frozenset().union(*named, *deployed) - {EVERY_RULE})
        return {rule: place for place, rule in enumerate(ids)}

    @cached_property
    def deciders(self) -> tuple[str, ...]:
        """Who may decide: the rules by their ids, then the lists as ``list:NAME``."""
        rules = tuple(rule.id for rule in self.deployment.rules)
        return (*rules, *(f"list:{table.name}" for table in self.lists.tables))


@dataclass(frozen=True, eq=False)
class Advanced:
    """A batch after its features. ``disposition`` and ``refusal`` uint8 [n] of every row that was given.

    ``rows`` int64 [m] are the positions of those to be judged, ``batch`` holds just them (with what was learnt of their
    devices); ``values`` float64 [f, m] their features under ``names``, one contiguous row a feature; ``device_ids``
    object [m] the linked device of each (str or None) and ``device_signs`` object [m] its signs of tampering (tuples of
    names of ``devices.consistency.SIGNS``), both None where devices are not linked.
    """

    disposition: NDArray[np.uint8]
    refusal: NDArray[np.uint8]
    rows: NDArray[np.int64]
    batch: TransactionBatch
    names: tuple[str, ...]
    values: NDArray[np.float64]
    device_ids: NDArray[np.object_] | None
    device_signs: NDArray[np.object_] | None


@dataclass(frozen=True, eq=False)
class Silenced:
    """Rules that were kept from speaking: ``rows`` int64 [k] ascending, ``places`` int64 [k] in ``rules``, their ids.

    The id ``""`` stands for every rule.
    """

    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    rules: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


NOBODY = Silenced(np.empty(0, np.int64), np.empty(0, np.int64), ())


@dataclass(frozen=True, eq=False)
class Words:
    """``verdict`` uint8 [m] and who decided: ``decider`` int16 [m] in ``ScoredRows.deciders``, -1 for nobody."""

    verdict: NDArray[np.uint8]
    decider: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """The m judged rows of a batch. ``version`` int16 [m]: of the rules; ``score`` float64 [m]: NaN where none is.

    ``alone``: what would have been said without the consortium; ``reasons`` by row; ``shadow_*`` by version;
    ``rule_hits`` and ``rule_errors`` int64 by rule of ``deciders``. ``spoke`` int32 [k, 3] is what the brake counted:
    row, place of a rule in its own version, and the verdict it gave, for :meth:`ScoringCore.recall`.
    ``listed`` bool [m] by column ``listed_NAME``; ``exempt``: rules that customers are exempt from; ``braked``: rules
    that hit a row and were stopped.
    """

    live: Words
    alone: Words
    deciders: tuple[str, ...]
    deployment: int
    version: NDArray[np.int16]
    reasons: Mapping[int, tuple[Reason, ...]]
    score: NDArray[np.float64]
    model_degraded: NDArray[np.bool_]
    model_version: int
    model_failure: str
    shadow_verdicts: Mapping[int, NDArray[np.uint8]]
    shadow_scores: Mapping[int, NDArray[np.float64]]
    rule_hits: NDArray[np.int64]
    rule_errors: NDArray[np.int64]
    alarms: tuple[BrakeAlarm, ...]
    spoke: NDArray[np.int32]
    listed: Mapping[str, NDArray[np.bool_]]
    exempt: Silenced
    braked: Silenced
    device_ids: NDArray[np.object_] | None

    def __len__(self) -> int:
        return len(self.live.verdict)

    @property
    def has_model(self) -> bool:
        """Whether a model was in force, working or not."""
        return self.model_version > 0 or bool(self.model_failure)
