"""Where batch cryptography runs: in this thread, on a few threads, or, when there is much of it, on the bank's Ray."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from member_node.compute.ray_cluster import RayClusterError

LOGGER = logging.getLogger(__name__)
# Bytes of work that make starting Ray worth its seconds and its memory: the largest batches there are (some 3,000
# elements with their evaluations), as when a bank enrols its existing book. Once it runs, about 500 elements suffice.
START_BYTES = 512 * 1024
USE_BYTES = 64 * 1024
THREADS = 2


class Spreader(Protocol):
    """Somewhere else to run chunks (see ``RayCluster``)."""

    @property
    def running(self) -> bool:
        """Whether it was started."""

    def map(self, function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """Results in the order of the chunks; starts it if need be."""

    def stop(self) -> None:
        """End it."""


class BatchCrypto:
    """``map`` is a ``MapChunks``. Functions are top level and chunks picklable, so that a batch may go anywhere.

    Scalar multiplications release the interpreter lock, so threads help a little (measured 1.3x on two); Ray's
    processes scale, but take seconds to start. So Ray is started by the first call whose pickled chunks reach
    ``start_bytes``, and used from ``use_bytes`` on while it runs. When it cannot be had the work is done here: the
    bank must score on.
    """

    def __init__(
        self,
        cluster: Spreader | None = None,
        *,
        start_bytes: int = START_BYTES,
        use_bytes: int = USE_BYTES,
        threads: int = THREADS,
    ) -> None:
        """``cluster``: the bank's Ray, not yet started; without one everything stays in this process."""
        if not 1 <= use_bytes <= start_bytes or threads < 1:
            raise ValueError(
                f"needs 1 <= use_bytes <= start_bytes and threads >= 1, not {use_bytes}, {start_bytes}, {threads}"
            )
        self._cluster = cluster
        self._lost = False
        self._start_bytes = start_bytes
        self._use_bytes = use_bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batch-crypto")

    def map(self, function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """The results in the order of the chunks; what the function raises is raised here."""
        cluster = self._cluster
        if cluster is not None and not self._lost:
            least = self._use_bytes if cluster.running else self._start_bytes
            try:
                if len(pickle.dumps(chunks, 5)) >= least:
                    return cluster.map(function, chunks)
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
