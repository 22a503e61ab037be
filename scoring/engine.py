"""The scoring core: a batch of transactions in, verdicts with their features, scores and reasons out.

Pure: no input or output, no clock, no threads. Two steps, so that the features of one batch can be computed while
another is judged, with the same result:

- :meth:`ScoringCore.advance` changes the state of features and devices, and sees every accepted batch in order;
- :meth:`ScoringCore.judge` reads what is in force (rules, lists, models) and changes the brake.

Precedence: a block list blocks; else an allow list allows; else the rules decide, without those the customer is exempt
from and with braked rules silent. A model that fails leaves ``model_score`` missing and ``model_degraded`` true: the
rules decide alone, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scoring.brake import Brake, BrakeCount
from scoring.devices.linker import NUMBERS as DEVICE_NUMBERS
from scoring.devices.linker import DeviceLinker
from scoring.explaining import explain
from scoring.features.admission import Disposition
from scoring.features.engine import FeatureMatrix
from scoring.lists import EVERY_RULE, ListKind
from scoring.models.words import DEVICE_WORDS
from scoring.rules.columns import Layout, MatrixColumns, TextColumn
from scoring.rules.deployment import Deployment, DeploymentJudgement, Exemptions, rollout_buckets
from scoring.rules.evaluation import Judgement, decide
from scoring.schema import OutcomeBatch, TransactionBatch
from scoring.scored import (
    MODEL_DEGRADED,
    MODEL_SCORE,
    NOBODY,
    Advanced,
    InForce,
    ScoredRows,
    Sight,
    Silenced,
    Words,
)

_NO_BUCKETS = np.empty(0, np.uint64)


class Engine(Protocol):
    """A feature engine: one in this process, or several behind shards."""

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the matrix."""

    def update(self, batch: TransactionBatch, outcomes: OutcomeBatch | None = None) -> FeatureMatrix:
        """Apply a batch in arrival order and give its features."""

    def foresee(self, batch: TransactionBatch) -> NDArray[np.uint8]:
        """The dispositions :meth:`update` would give a batch now; nothing changes."""

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All state, for a snapshot; without ``copy`` perhaps views, good until the next change."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over a state; ValueError for that of another spec."""


class ScoringCore:
    """One stream's state. Each of the two steps is for one thread at a time, in the same order."""

    def __init__(
        self,
        engine: Engine,
        *,
        features: Sequence[str],
        linker: DeviceLinker | None = None,
        brake: Brake | None = None,
        words: Mapping[str, str] | None = None,
    ) -> None:
        """``features``: those of the engine that rules and models may read and the history keeps; ``words``: what
        features are called in a model's reasons (see ``models.words``)."""
        self._engine = engine
        self._names = tuple(features)
        self._places = np.array([engine.names.index(name) for name in features], np.int64)
        self._linker = linker
        self._brake = brake or Brake()
        self._words = {**DEVICE_WORDS, **(words or {})}
        self._told = self._names if linker is None else (*self._names, *DEVICE_NUMBERS)
        self._layout = Layout((), ())

    def advance(
        self,
        batch: TransactionBatch,
        outcomes: OutcomeBatch | None = None,
        bundles: Sequence[Mapping[str, Any] | str | bytes | None] | None = None,
    ) -> Advanced:
        """Take in a batch, after the outcomes known before it. ``bundles``: fingerprint components by row, decoded
        or as JSON."""
        ids: NDArray[np.object_] | None = None
        signs: NDArray[np.object_] | None = None
        if self._linker is not None:
            batch, ids, signs = self._linked(self._linker, batch, bundles)
        matrix = self._engine.update(batch, outcomes)
        rows = matrix.applied.nonzero()[0]
        if len(rows) == len(batch):
            values = matrix.values.T[self._places]
        else:
            values = np.ascontiguousarray(matrix.values[np.ix_(rows, self._places)].T)
            batch = batch.take(rows)
            ids = None if ids is None else ids[rows]
            signs = None if signs is None else signs[rows]
        if self._linker is not None:
            values = np.concatenate([values, [batch.numbers[name] for name in DEVICE_NUMBERS]])
        return Advanced(matrix.disposition, matrix.refusal, rows, batch, self._told, values, ids, signs)

    def judge(
        self,
        advanced: Advanced,
        live: Sight,
        alone: Sight,
        differing: NDArray[np.int64],
        force: InForce,
    ) -> ScoredRows:
        """Judge the rows of ``advanced``. ``live``: what the bank knows of them beside features; ``alone``: what it
        would know without the consortium, which differs in the rows ``differing`` only."""
        batch = advanced.batch
        rows = len(batch)
        hits = force.lists.probe(batch.entities, batch.time_us)
        others: dict[str, Any] = {**live.columns, **hits}
        columns = MatrixColumns(self._laid_out(advanced.names, others), _own(advanced.values), others)
        models = force.models.columns(columns, rows)
        others[MODEL_SCORE], others[MODEL_DEGRADED] = models.score, models.degraded

        every = force.exemptible
        spared = force.lists.exempt(batch.entities, batch.time_us, tuple(every)) if every else None

        def exempt(rule_ids: Sequence[str]) -> NDArray[np.bool_] | None:
            return None if spared is None else spared[:, [every[each] for each in rule_ids]]

        deployment = force.deployment
        bucket = _NO_BUCKETS if deployment.rollout is None else rollout_buckets(batch)
        judged = deployment.evaluate(columns, rows, live.limits, bucket, exempt)
        stands, alarms = self._brake.apply(deployment, judged, batch.time_us, _customers(batch))
        forced, which = force.lists.effects(hits, rows)
        words = _forced(stands.live, forced, which)
        return ScoredRows(
            live=words,
            alone=self._alone(words, columns, alone, exempt, bucket, differing, force, forced, which),
            deciders=force.deciders,
            deployment=deployment.number,
            version=judged.version,
            reasons=explain(force, stands.live, words, columns, self._words, advanced.device_signs),
            score=models.score,
            model_degraded=models.degraded,
            model_version=0 if force.models.active is None else force.models.active.version,
            model_failure=force.models.failure,
            shadow_verdicts={version: each.verdict for version, each in judged.shadows.items()},
            shadow_scores=models.shadows,
            rule_hits=_by_rule(judged.live.hits),
            rule_errors=judged.live.errors,
            alarms=tuple(alarms),
            spoke=_spoke(deployment, judged.live),
            listed=hits,
            exempt=NOBODY if spared is None else _exempt(force, spared, hits),
            braked=NOBODY if stands is judged else _braked(deployment, judged.live, stands.live),
            device_ids=advanced.device_ids,
        )

    def recall(
        self,
        advanced: Advanced,
        version: NDArray[np.int16],
        spoke: NDArray[np.int32],
        deployment: Deployment,
    ) -> None:
        """Have the brake count a batch judged before a restart: ``version``, ``spoke`` and ``deployment`` of then."""
        rows, count = len(advanced.batch), len(deployment.rules)
        effective = np.zeros((count, rows), np.uint8)
        first = dict(zip((each.version for each in deployment.live), _first_rules(deployment), strict=True))
        for row, place, verdict in spoke.tolist():
            effective[first[int(version[row])] + place, row] = verdict
        nothing = np.zeros(count, np.int64)
        judgement = Judgement(
            effective.max(axis=0, initial=0),
            np.full(rows, -1, np.int16),
            effective.T > 0,
            effective.T,
            nothing,
            nothing,
        )
        batch = advanced.batch
        again = DeploymentJudgement(judgement, version, {})
        self._brake.apply(deployment, again, batch.time_us, _customers(batch))

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All state as plain arrays; :meth:`restore` goes on from them to the bit.

        Without ``copy`` the large ones are views, good until the next change.
        """
        brake = self._brake.state()
        # Keys are the one text in all the state: as bytes it is numbers like the rest.
        brake["tripped"] = np.frombuffer("\n".join(brake["tripped"].tolist()).encode(), np.uint8)
        parts = {"engine": self._engine.state(copy), "brake": brake}
        if self._linker is not None:
            parts["devices"] = self._linker.state(copy)
        return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], deployment: Deployment) -> None:
        """Take over a state saved while ``deployment`` judged. Raises ValueError for that of another feature spec or
        deployment."""
        parts: dict[str, dict[str, NDArray[Any]]] = {"engine": {}, "brake": {}, "devices": {}}
        for name, array in arrays.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = array
        self._engine.restore(parts["engine"])
        if self._linker is not None:
            self._linker.restore(parts["devices"])
        held = parts["brake"]
        stopped = held["tripped"].tobytes().decode().split("\n")
        held["tripped"] = np.array(stopped[: len(held["tripped_releases"])], dtype=np.str_)
        self._brake.restore(held, deployment)

    def brake_counts(self) -> list[BrakeCount]:
        """What the brake's windows hold for each live rule."""
        return self._brake.counts()

    def _laid_out(self, names: tuple[str, ...], others: Mapping[str, Any]) -> Layout:
        """The layout of a batch: that of the one before, as long as the stream and what is in force are."""
        beside = (*others, MODEL_SCORE, MODEL_DEGRADED)
        held = self._layout
        if held.others != beside or held.matrix != names:
            held = self._layout = Layout(names, beside)
        return held

    def _linked(
        self,
        linker: DeviceLinker,
        batch: TransactionBatch,
        bundles: Sequence[Mapping[str, Any] | str | bytes | None] | None,
    ) -> tuple[TransactionBatch, NDArray[np.object_], NDArray[np.object_]]:
        """The batch with the linked device as its ``device`` where components were given, and device numbers; device
        ids and signs object [n].

        Devices see just the rows that will be applied: what is sent again or refused must not change them.
        """
        count = len(batch)
        given = [] if bundles is None else [row for row, each in enumerate(bundles) if each is not None]
        rows = np.array(given, np.int64)
        again = np.zeros(0, np.bool_)
        if len(rows):
            disposition = self._engine.foresee(batch)[rows]
            rows = rows[disposition <= Disposition.CORRECTED]
            again = disposition[disposition <= Disposition.CORRECTED] == Disposition.CORRECTED
        nobody = np.zeros(count, np.uint64)
        customer = batch.entities.get("customer", nobody)
        shown = [] if bundles is None else [bundles[row] for row in rows.tolist()]
        found = linker.observe(shown, customer[rows], batch.time_us[rows], again)
        device = batch.entities.get("device", nobody).copy()
        device[rows] = np.where(found.device != 0, found.device, device[rows])
        ids, signs = np.full(count, None, object), np.full(count, None, object)
        ids[rows], signs[rows] = found.device_id, found.signs
        numbers = {name: np.full(count, np.nan) for name in DEVICE_NUMBERS}
        for name, values in found.numbers.items():
            numbers[name][rows] = values
        linked = replace(
            batch, entities={**batch.entities, "device": device}, numbers={**batch.numbers, **numbers}
        )
        return linked, ids, signs

    def _alone(
        self,
        words: Words,
        columns: Mapping[str, Any],
        alone: Sight,
        exempt: Exemptions,
        bucket: NDArray[np.uint64],
        differing: NDArray[np.int64],
        force: InForce,
        forced: NDArray[np.int8],
        which: NDArray[np.int16],
    ) -> Words:
        """The words without the consortium: judged again only where something differs."""
        if not len(differing):
            return words
        deployment = force.deployment
        seen = {name: columns[name] for name in deployment.columns if name in columns} | {**alone.columns}
        part = {name: _taken(seen[name], differing) for name in deployment.columns if name in seen}
        limits = {kind: limit[differing] for kind, limit in alone.limits.items()}

        def spared(ids: Sequence[str]) -> NDArray[np.bool_] | None:
            found = exempt(ids)
            return None if found is None else found[differing]

        chosen = bucket if deployment.rollout is None else bucket[differing]
        judged = deployment.evaluate(part, len(differing), limits, chosen, spared)
        judgement = judged.live
        stopped = self._brake.stopped
        if stopped:
            silent = [place for place, rule in enumerate(deployment.rules) if rule.key in stopped]
            effective = judgement.effective.copy()
            effective[:, silent] = 0
            verdict, rule = decide(effective)
            judgement = replace(judgement, verdict=verdict, rule=rule)
        found = _forced(judgement, forced[differing], which[differing])
        verdict, decider = words.verdict.copy(), words.decider.copy()
        verdict[differing], decider[differing] = found.verdict, found.decider
        return Words(verdict, decider)


def _customers(batch: TransactionBatch) -> NDArray[np.uint64] | None:
    """Whose declines the brake counts together: the customer's, or where a stream has none the account's or card's."""
    for name in ("customer", "account", "card"):
        if name in batch.entities:
            return batch.entities[name]
    return None


def _forced(judgement: Judgement, forced: NDArray[np.int8], which: NDArray[np.int16]) -> Words:
    """The rules' words, and the lists' where one decides."""
    rows = (forced >= 0).nonzero()[0]
    if not len(rows):
        return Words(judgement.verdict, judgement.rule)
    verdict, decider = judgement.verdict.copy(), judgement.rule.copy()
    verdict[rows] = forced[rows]
    decider[rows] = judgement.hits.shape[1] + which[rows]
    return Words(verdict, decider)


def _exempt(force: InForce, spared: NDArray[np.bool_], hits: Mapping[str, NDArray[np.bool_]]) -> Silenced:
    """The rules of ``spared`` bool [n, force.exemptible], those who are exempt from every rule just as that."""
    whole = np.zeros(len(spared), np.bool_)
    for table in force.lists.tables:
        if table.kind is ListKind.EXEMPTION:
            whole |= hits[table.column]
    rows, places = np.nonzero(np.column_stack([spared & ~whole[:, None], whole]))
    return Silenced(rows, places, (*force.exemptible, EVERY_RULE))


def _braked(deployment: Deployment, judged: Judgement, stands: Judgement) -> Silenced:
    rows, places = np.nonzero(judged.effective != stands.effective)
    return Silenced(rows, places, tuple(rule.id for rule in deployment.rules))


def _spoke(deployment: Deployment, judgement: Judgement) -> NDArray[np.int32]:
    rows = judgement.verdict.nonzero()[0]
    if not len(rows):
        return np.empty((0, 3), np.int32)
    effective = judgement.effective[rows]
    place, rule = np.nonzero(effective)
    own = rule - np.array(_first_rules(deployment), np.int64)[deployment.lanes[rule]]
    return np.stack([rows[place], own, effective[place, rule]], axis=1).astype(np.int32)


def _first_rules(deployment: Deployment) -> list[int]:
    """The place of each live version's first rule among ``deployment.rules``."""
    first: list[int] = np.cumsum([0, *(len(each.rules) for each in deployment.live)])[:-1].tolist()
    return first


def _by_rule(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Hits int64 [r] of each rule. A rule's lie together, so that counting them one by one is the fastest."""
    if len(hits) == 1:
        return np.array(hits[0], np.int64)
    return np.array([np.count_nonzero(own) for own in hits.T], np.int64)


def _own(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """As compiled loops expect it: arrays of another layout or that are read-only are another type to Numba."""
    flags = values.flags
    return values if flags.c_contiguous and flags.writeable else np.array(values, order="C")


def _taken(values: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(values, TextColumn):
        return TextColumn(values.codes[rows], values.vocabulary)
    return values[rows]
