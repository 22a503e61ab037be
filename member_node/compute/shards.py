"""A feature engine spread over Ray actors: each keeps the windows of the entities it owns, the parts are joined.

Every shard sees every batch whole, so all decide alike about late events and duplicates; features are the same to the
bit as those of one engine. Calls are per batch, never per event, and a shard sends back only what it owns.

An actor that dies is replaced before the next answer: the new one loads the shard's last checkpoint and applies the
batches since, which are kept in memory up to a bound; at the bound every shard writes a checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from member_node.compute.ray_cluster import RayCluster, RayClusterError
from member_node.streams.snapshots import SnapshotError, SnapshotStore
from scoring.features.columns import entity_column
from scoring.features.engine import STATE_LAYOUT, FeatureEngine, FeatureMatrix, join_shards, shard_of
from scoring.features.spec import FeatureSpec, FieldFeature, WindowFeature
from scoring.schema import OutcomeBatch, TransactionBatch, entity_keys

LOGGER = logging.getLogger(__name__)
TAIL_ROWS = 1_000_000
ATTEMPTS = 3
CATCH_UP_BATCHES = 8
REVIVE_SECONDS = 120.0
_Given: TypeAlias = tuple[TransactionBatch, OutcomeBatch | None]


@dataclass(frozen=True, eq=False)
class _Part:
    """One shard's share of a matrix: its rows' values by entity; shard 0 adds the columns that belong to no entity."""

    owned: dict[str, NDArray[np.float64]]
    rest: NDArray[np.float64] | None
    disposition: NDArray[np.uint8] | None
    refusal: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Places:
    """Which columns of the matrix are windows of which entity, and which are no windows."""

    entities: Mapping[str, NDArray[np.intp]]
    rest: NDArray[np.intp]

    @classmethod
    def of(cls, spec: FeatureSpec) -> _Places:
        entities: dict[str, list[int]] = {}
        rest: list[int] = []
        for place, feature in enumerate(spec.features):
            where = entities.setdefault(feature.entity, []) if isinstance(feature, WindowFeature) else rest
            where.append(place)
        return cls({name: np.array(at, np.intp) for name, at in entities.items()}, np.array(rest, np.intp))


class _Shard:
    """Runs inside an actor."""

    def __init__(self, spec: FeatureSpec, shard: int, shards: int, directory: str) -> None:
        self._engine = FeatureEngine(spec, shard=shard, shards=shards)
        self._places = _Places.of(spec)
        self._shard, self._shards = shard, shards
        self._store = _store(Path(directory), spec, shard, shards)

    def update(self, given: _Given) -> _Part:
        batch, matrix = self._apply(given)
        owned = {}
        for entity, places in self._places.entities.items():
            rows = np.flatnonzero(shard_of(entity_column(batch, entity), self._shards) == self._shard)
            owned[entity] = matrix.values[np.ix_(rows, places)]
        if self._shard:
            return _Part(owned, None, None, None)
        return _Part(owned, matrix.values[:, self._places.rest], matrix.disposition, matrix.refusal)

    def foresee(self, given: _Given) -> NDArray[np.uint8]:
        return self._engine.foresee(given[0].take(np.arange(len(given[0]))))

    def apply(self, given: _Given) -> None:
        self._apply(given)

    def save(self, number: int) -> None:
        self._store.save(number, self._engine.state(copy=False))

    def load(self, number: int) -> None:
        self._engine.restore(_checkpoint(self._store, number))

    def _apply(self, given: _Given) -> tuple[TransactionBatch, FeatureMatrix]:
        # Ray hands over read-only arrays, for which every kernel would be compiled a second time.
        batch = given[0].take(np.arange(len(given[0])))
        return batch, self._engine.update(batch, given[1])


class ShardedEngine:
    """Looks like one ``FeatureEngine``; ``shards`` actors on the bank's own Ray. Used by one thread at a time."""

    def __init__(
        self,
        cluster: RayCluster,
        spec: FeatureSpec,
        shards: int,
        *,
        directory: Path | None = None,
        tail_rows: int = TAIL_ROWS,
    ) -> None:
        """Start the actors (and Ray, if need be). Raises ``SpecError``, ``ValueError`` or :class:`RayClusterError`.

        ``directory``: where shards write checkpoints (default: the cluster's own folder, gone with it);
        ``tail_rows``: events kept in memory (about 100 bytes each) before they do.
        """
        if shards < 1:
            raise ValueError(f"an engine has at least one shard, not {shards}")
        FeatureEngine(spec)  # a spec that cannot be used is refused here rather than in an actor
        self._ray: Any = cluster.ray()
        folder = directory if directory is not None else cluster.folder
        assert folder is not None
        self._spec, self._count = spec, shards
        self._directory = folder / "shards"
        if self._directory.exists():  # of an engine before this one, whose batches nobody has any more
            shutil.rmtree(self._directory)
        self._places = _Places.of(spec)
        self._passes_ids = any(isinstance(f, FieldFeature) and f.field == "event_id" for f in spec.features)
        # Ray must not restart an actor: it would come back empty and answer as if nothing had happened.
        self._actor = self._ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(_Shard)
        self._tail: deque[tuple[int, _Given]] = deque()
        self._tail_rows, self._held_rows = tail_rows, 0
        self._number = 0
        self._saved = [0] * shards
        self._shards = [self._start(shard) for shard in range(shards)]

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the matrix."""
        return self._spec.names

    def update(self, batch: TransactionBatch, outcomes: OutcomeBatch | None = None) -> FeatureMatrix:
        """Features of a batch. A shard that was lost is restored first.

        Raises :class:`RayClusterError` when that fails too, and what ``FeatureEngine.update`` raises.
        """
        given = self._slim(batch, outcomes)
        shared = self._ray.put(given)
        answers = [shard.update.remote(shared) for shard in self._shards]
        parts: list[_Part] = [
            self._answer(shard, answer, lambda actor: actor.update.remote(shared))
            for shard, answer in enumerate(answers)
        ]
        self._number += 1
        self._tail.append((self._number, given))
        self._held_rows += len(batch)
        if self._held_rows > self._tail_rows:
            self._save()
        return self._join(parts, batch)

    def foresee(self, batch: TransactionBatch) -> NDArray[np.uint8]:
        """The dispositions uint8 [n] that :meth:`update` would give a batch now (all shards decide alike)."""
        bare = replace(batch, entities={}, numbers={})
        shared = self._ray.put(self._slim(bare, None))
        answer = self._shards[0].foresee.remote(shared)
        found: NDArray[np.uint8] = self._answer(0, answer, lambda actor: actor.foresee.remote(shared))
        return found

    def state(self, copy: bool = True) -> dict[str, NDArray[Any]]:
        """All state, read-only, for a snapshot: every shard writes a checkpoint, which is mapped here (and never
        changes, with or without ``copy``).

        Raises :class:`RayClusterError` when one cannot.
        """
        self._save()
        arrays: dict[str, NDArray[Any]] = {}
        for shard in range(self._count):
            try:
                found = _checkpoint(_store(self._directory, self._spec, shard, self._count), self._number)
            except (SnapshotError, ValueError) as error:
                raise RayClusterError(f"shard {shard} has no state to give: {error}") from error
            arrays |= {f"shard-{shard}-of-{self._count}/{name}": array for name, array in found.items()}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over a :meth:`state`. Raises ValueError for that of another spec or number of shards."""
        parts: list[dict[str, NDArray[Any]]] = []
        for shard in range(self._count):
            prefix = f"shard-{shard}-of-{self._count}/"
            part = {
                name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
            }
            if not part:
                raise ValueError(f"the state is not that of {self._count} shards: replay the journal instead")
            parts.append(part)
        self._number += 1
        for shard, part in enumerate(parts):
            _store(self._directory, self._spec, shard, self._count).save(self._number, part)
        self._get([actor.load.remote(self._number) for actor in self._shards])
        self._saved = [self._number] * self._count
        self._forget_tail()

    def close(self) -> None:
        """End the actors; the cluster stays."""
        for shard in self._shards:
            self._ray.kill(shard)
        self._shards = []

    def __enter__(self) -> ShardedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _slim(self, batch: TransactionBatch, outcomes: OutcomeBatch | None) -> _Given:
        """What shards need: no texts, and event ids as numbers, which are quick to send and hashed once for all."""
        batch = replace(batch, texts={})
        if not self._passes_ids:
            batch = replace(batch, event_id=_numbered(batch.event_id))
            if outcomes is not None:
                outcomes = replace(outcomes, event_id=_numbered(outcomes.event_id))
        return batch, outcomes

    def _start(self, shard: int) -> Any:
        return self._actor.remote(self._spec, shard, self._count, str(self._directory))

    def _answer(self, shard: int, answer: Any, ask: Callable[[Any], Any]) -> Any:
        """What a shard answers; one that is lost is restored and asked again."""
        lost: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    self._revive(shard)
                    answer = ask(self._shards[shard])
                return self._get([answer])[0]
            except self._ray.exceptions.RayActorError as error:
                LOGGER.warning("scoring shard %d is lost: %s", shard, type(error).__name__)
                lost = error
        raise RayClusterError(
            f"scoring shard {shard} was lost {ATTEMPTS} times in a row; check this machine's memory and restart the "
            "member node, the journal rebuilds it"
        ) from lost

    def _revive(self, shard: int) -> None:
        """Replace a lost shard by one that knows everything up to the batch before this one."""
        with suppress(self._ray.exceptions.RayError):  # it may be gone altogether, or only out of reach
            self._ray.kill(self._shards[shard])
        actor = self._shards[shard] = self._start(shard)
        saved = self._saved[shard]
        if saved:
            self._get([actor.load.remote(saved)])
        missed = [given for number, given in self._tail if number > saved]
        for first in range(0, len(missed), CATCH_UP_BATCHES):
            chunk = missed[first : first + CATCH_UP_BATCHES]
            self._get([actor.apply.remote(self._ray.put(given)) for given in chunk])
        rows = sum(len(batch) for batch, _ in missed)
        LOGGER.warning("scoring shard %d is back: checkpoint %d and %d events since", shard, saved, rows)

    def _save(self) -> None:
        """Have every shard write a checkpoint, and forget the batches that all of them cover."""
        waiting = [shard for shard in range(self._count) if not 0 < self._saved[shard] == self._number]
        answers = {shard: self._shards[shard].save.remote(self._number) for shard in waiting}
        for shard, answer in answers.items():
            self._answer(shard, answer, lambda actor: actor.save.remote(self._number))
            self._saved[shard] = self._number
        self._forget_tail()

    def _forget_tail(self) -> None:
        oldest = min(self._saved)
        while self._tail and self._tail[0][0] <= oldest:
            self._held_rows -= len(self._tail.popleft()[1][0])

    def _get(self, answers: list[Any]) -> list[Any]:
        """Results; what a shard raised is raised, a lost actor is left to the caller."""
        try:
            return list(self._ray.get(answers, timeout=REVIVE_SECONDS))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except self._ray.exceptions.RayActorError:
            raise
        except self._ray.exceptions.RayError as error:
            raise RayClusterError(
                f"this bank's Ray failed ({type(error).__name__}); restart the member node, the journal rebuilds it"
            ) from error

    def _join(self, parts: list[_Part], batch: TransactionBatch) -> FeatureMatrix:
        first = parts[0]
        assert first.rest is not None
        assert first.disposition is not None
        assert first.refusal is not None
        values = np.empty((len(batch), len(self._spec.features)))
        values[:, self._places.rest] = first.rest
        for entity, places in self._places.entities.items():
            owner = shard_of(entity_column(batch, entity), self._count)
            for shard, part in enumerate(parts):
                values[np.ix_(np.flatnonzero(owner == shard), places)] = part.owned[entity]
        whole = FeatureMatrix(self.names, values, first.disposition.copy(), first.refusal.copy())
        return join_shards([whole], self._spec, batch)


def _numbered(ids: NDArray[Any]) -> NDArray[Any]:
    """Integers whose entity keys are those of the ids: the reverse of how integers become keys."""
    if ids.dtype != object:
        return ids
    keys = entity_keys(ids, column="event_id").view(np.int64)
    return np.where(keys > 0, keys - 1, np.where(keys == 0, np.iinfo(np.int64).min, keys))


def _store(directory: Path, spec: FeatureSpec, shard: int, shards: int) -> SnapshotStore:
    return SnapshotStore(directory / f"{shard}-of-{shards}", f"{spec.digest}/{shard}/{shards}/{STATE_LAYOUT}")


def _checkpoint(store: SnapshotStore, number: int) -> dict[str, NDArray[Any]]:
    """The arrays of checkpoint ``number``. Raises ValueError when it is not the newest whole one."""
    found = store.latest()
    if found is None or found[0] != number:
        raise ValueError(
            f"checkpoint {number} is damaged or gone: restart the member node, the journal rebuilds it"
        )
    return found[1]
