"""What crosses this bank's boundary: counters per call and peer and, on request, every byte (for the privacy test)."""

from __future__ import annotations

import itertools
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SAMPLES = 4096


@dataclass
class _Row:
    requests: int = 0
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    elements: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class TrafficMeter:
    """Requests, bytes, elements and latencies per (direction, peer, call). ``direction``: ``asked`` or ``answered``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, str], _Row] = {}

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
    ) -> None:
        """Add one request; ``bytes_in`` and ``bytes_out`` are sizes of bodies as this bank sees them."""
        with self._lock:
            row = self._rows.setdefault((direction, peer, call), _Row())
            row.requests += 1
            row.errors += failed
            row.bytes_in += bytes_in
            row.bytes_out += bytes_out
            row.seconds.append(seconds)

    def count_elements(self, direction: str, peer: str, call: str, elements: int) -> None:
        """Add blinded elements to a call's row."""
        with self._lock:
            self._rows.setdefault((direction, peer, call), _Row()).elements += elements

    def report(self) -> list[dict[str, object]]:
        """One JSON object a row; latencies in milliseconds over the last 4096 requests."""
        with self._lock:
            rows = [(key, row, sorted(row.seconds)) for key, row in sorted(self._rows.items())]
            return [
                {
                    "direction": direction,
                    "peer": peer,
                    "call": call,
                    "requests": row.requests,
                    "errors": row.errors,
                    "bytes_in": row.bytes_in,
                    "bytes_out": row.bytes_out,
                    "elements": row.elements,
                    "p50_ms": _quantile_ms(seconds, 0.5),
                    "p99_ms": _quantile_ms(seconds, 0.99),
                }
                for (direction, peer, call), row, seconds in rows
            ]


def _quantile_ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


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
        path = self._directory / f"{next(self._numbers):07d}-{direction}-{peer or 'unknown'}-{name}.http"
        path.write_bytes(f"{head}\n{lines}\n".encode() + body)
