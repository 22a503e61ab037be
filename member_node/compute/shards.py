"""A feature engine spread over Ray actors: each keeps the windows of the entities it owns, the parts are joined.

Every shard sees every batch whole, so all decide alike about late events and duplicates; features are the same to the
bit as those of one engine. Calls are per batch, never per event.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from member_node.compute.ray_cluster import RayCluster, RayClusterError
from scoring.features.engine import FeatureEngine, FeatureMatrix, join_shards
from scoring.features.spec import FeatureSpec
from scoring.schema import OutcomeBatch, TransactionBatch


class _Shard:
    """Runs inside an actor."""

    def __init__(self, spec: FeatureSpec, shard: int, shards: int) -> None:
        self._engine = FeatureEngine(spec, shard=shard, shards=shards)

    def update(self, batch: TransactionBatch, outcomes: OutcomeBatch | None) -> FeatureMatrix:
        # Ray hands over read-only arrays, for which every kernel would be compiled a second time.
        return self._engine.update(batch.take(np.arange(len(batch))), outcomes)

    def watermark_us(self) -> int | None:
        return self._engine.watermark_us


class ShardedEngine:
    """Looks like one ``FeatureEngine``; ``shards`` actors on the bank's own Ray."""

    def __init__(self, cluster: RayCluster, spec: FeatureSpec, shards: int) -> None:
        """Start the actors (and Ray, if need be). Raises ``SpecError``, ``ValueError`` or :class:`RayClusterError`."""
        if shards < 1:
            raise ValueError(f"an engine has at least one shard, not {shards}")
        FeatureEngine(spec)  # a spec that cannot be used is refused here rather than in an actor
        self._ray: Any = cluster.ray()
        self._spec = spec
        # An actor that dies has lost its windows: it must not come back empty and answer as if nothing had happened.
        actor = self._ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(_Shard)
        self._shards = [actor.remote(spec, shard, shards) for shard in range(shards)]

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of the matrix."""
        return self._spec.names

    def update(self, batch: TransactionBatch, outcomes: OutcomeBatch | None = None) -> FeatureMatrix:
        """Features of a batch; raises :class:`RayClusterError` when a shard is lost."""
        try:
            shared = self._ray.put(batch)
            parts = self._ray.get([shard.update.remote(shared, outcomes) for shard in self._shards])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except self._ray.exceptions.RayError as error:
            raise RayClusterError(
                f"a scoring shard is lost ({type(error).__name__}); restart the member node, the journal rebuilds it"
            ) from error
        return join_shards(parts, self._spec, batch)

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
