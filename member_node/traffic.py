"""What crosses this bank's boundary: counters per call and peer and, on request, every byte (for the privacy test)."""

from __future__ import annotations

import itertools
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from member_node.latencies import SAMPLES, quantile_ms
from member_node.storage.traffic import Counting, Key, Totals, TrafficStore

UNKNOWN = "unknown"
_PARTY = re.compile(r"[a-z0-9-]{1,32}")


@dataclass
class _Row:
    requests: int = 0
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    elements: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def totals(self) -> Totals:
        return Totals(self.requests, self.errors, self.bytes_in, self.bytes_out, self.elements)


class TrafficMeter:
    """Requests, bytes, elements and latencies per (direction, peer, call). ``direction``: ``asked`` or ``answered``.

    ``peer`` must be a party whose signature or address was verified, or ``unknown``: rows are kept for good.
    """

    def __init__(self, totals: Mapping[Key, Totals] | None = None) -> None:
        """``totals``: counters to go on from."""
        self._lock = threading.Lock()
        self._rows: dict[Key, _Row] = {key: _Row(**vars(row)) for key, row in (totals or {}).items()}

    def count(
        self,
        direction: str,
        peer: str,
        call: str,
        *,
        bytes_in: int,
        bytes_out: int,
        seconds: float,
        failed: bool = False,
        elements: int = 0,
    ) -> None:
        """Add one request; ``bytes_in`` and ``bytes_out`` are sizes of bodies as this bank sees them."""
        with self._lock:
            row = self._rows.setdefault((direction, peer, call), _Row())
            row.requests += 1
            row.errors += failed
            row.bytes_in += bytes_in
            row.bytes_out += bytes_out
            row.elements += elements
            row.seconds.append(seconds)

    def count_elements(self, direction: str, peer: str, call: str, elements: int) -> None:
        """Add blinded elements to a call's row."""
        with self._lock:
            self._rows.setdefault((direction, peer, call), _Row()).elements += elements

    def totals(self) -> dict[Key, Totals]:
        """The counters without the latencies."""
        with self._lock:
            return {key: row.totals() for key, row in self._rows.items()}

    def report(self) -> list[dict[str, object]]:
        """One JSON object a row; latencies in milliseconds over the last 4096 requests of this process."""
        with self._lock:
            rows = [(key, row.totals(), sorted(row.seconds)) for key, row in sorted(self._rows.items())]
        return [
            {
                "direction": direction,
                "peer": peer,
                "call": call,
                **vars(totals),
                "p50_ms": quantile_ms(seconds, 0.5),
                "p99_ms": quantile_ms(seconds, 0.99),
            }
            for (direction, peer, call), totals, seconds in rows
        ]


class TrafficKeeper:
    """A meter whose counters survive the process: :meth:`save` it now and then, and at the end."""

    def __init__(self, store: TrafficStore, now: int) -> None:
        """Note the start at ``now`` (unix seconds) and go on from the stored counters."""
        self._store = store
        self._saved = store.load()
        self._lock = threading.Lock()
        self.counting: Counting = store.start(now)
        self.meter = TrafficMeter(self._saved)

    def save(self) -> None:
        """Write the counters, if they have changed."""
        with self._lock:
            totals = self.meter.totals()
            if totals != self._saved:
                self._store.save(totals)
                self._saved = totals


class WireCapture:
    """Writes each body that crosses the boundary to a file of its own, after its path and headers."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        # Go on counting after a restart, so that nothing captured before is overwritten.
        self._numbers = itertools.count(1 + sum(1 for _ in directory.iterdir()))

    def write(self, direction: str, peer: str, head: str, headers: Mapping[str, str], body: bytes) -> None:
        """``direction``: ``sent`` or ``received``; ``head``: request line or status line."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", head.partition("?")[0])[:60].strip("-")
        lines = "".join(f"{key}: {value}\n" for key, value in headers.items())
        known = peer if _PARTY.fullmatch(peer) else UNKNOWN
        path = self._directory / f"{next(self._numbers):07d}-{direction}-{known}-{name}.http"
        path.write_bytes(f"{head}\n{lines}\n".encode() + body)
