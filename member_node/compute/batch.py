"""Where batch cryptography runs: in this thread, on a few threads, or, when there is much of it, on the bank's Ray."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from member_node.compute.ray_cluster import RayClusterError

LOGGER = logging.getLogger(__name__)
# About 2,000 group elements: some 100 ms of scalar multiplications, against a task's half millisecond.
RAY_BYTES = 64 * 1024
THREADS = 2


class Spreader(Protocol):
    """Somewhere else to run chunks (see ``RayCluster``)."""

    def map(self, function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """Results in the order of the chunks."""

    def stop(self) -> None:
        """End it."""


class BatchCrypto:
    """``map`` is a ``MapChunks``. Functions are top level and chunks picklable, so that a batch may go anywhere.

    Scalar multiplications release the interpreter lock, so threads help a little (measured 1.3x on two); Ray's
    processes scale, but take seconds to start, so they are used from ``ray_bytes`` of pickled chunks a call on. When
    Ray cannot be had the work is done here: the bank must score on.
    """

    def __init__(
        self, cluster: Spreader | None = None, *, ray_bytes: int = RAY_BYTES, threads: int = THREADS
    ) -> None:
        """``cluster``: the bank's Ray, not yet started; without one everything stays in this process."""
        if ray_bytes < 1 or threads < 1:
            raise ValueError(f"ray_bytes and threads must be at least 1, not {ray_bytes} and {threads}")
        self._cluster = cluster
        self._lost = False
        self._ray_bytes = ray_bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batch-crypto")

    def map(self, function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """The results in the order of the chunks; what the function raises is raised here."""
        if self._cluster is not None and not self._lost and len(pickle.dumps(chunks, 5)) >= self._ray_bytes:
            try:
                return self._cluster.map(function, chunks)
            except RayClusterError as error:
                self._lost = True
                LOGGER.warning("batch cryptography stays in this process from now on: %s", error)
        if len(chunks) <= 1:
            return [function(chunk) for chunk in chunks]
        return list(self._threads.map(function, chunks))

    def close(self) -> None:
        """Stop the threads and, if it was started, Ray."""
        self._threads.shutdown()
        if self._cluster is not None:
            self._cluster.stop()
