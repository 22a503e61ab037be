"""What a node counts and measures of its stream, for Prometheus: own registry, one increment a batch, gauges read when
they are asked for.

Names are stable; labels are few and known (sources, dispositions, codes, rules), never values of events.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

LOGGER = logging.getLogger(__name__)
# Seconds, from the scalar rule path to an overloaded queue.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Stages: appending events; forcing the journal to disk; features; lists, model and rules; the model alone; handing
# scored rows to the history.
ACCEPT_TO_VERDICT, JOURNAL, SYNC, FEATURES, RULES, MODEL, HISTORY = (
    "accept-to-verdict",
    "journal",
    "sync",
    "features",
    "rules",
    "model",
    "history",
)
# A number, or a number for each value of one label.
Reading: TypeAlias = Callable[[], float | Mapping[str, float]]


class BatchHistogram(Collector):
    """A histogram by stage that takes a whole batch at once. Thread safe."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._edges = np.array(BUCKETS)
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def observe_one(self, stage: str, seconds: float) -> None:
        """Add the seconds of one observation: a tenth of the time of :meth:`observe`, for the scoring path."""
        place = bisect.bisect_left(BUCKETS, seconds)
        with self._lock:
            counts = self._counts.get(stage)
            if counts is None:
                counts = self._counts[stage] = np.zeros(len(self._edges) + 1, np.int64)
                self._sums[stage] = 0.0
            counts[place] += 1
            self._sums[stage] += seconds

    def observe(self, stage: str, seconds: ArrayLike) -> None:
        """Add the seconds of one or many observations."""
        values = np.atleast_1d(np.asarray(seconds, dtype=np.float64))
        # A bucket holds what is at most its edge.
        added = np.bincount(np.searchsorted(self._edges, values, side="left"), minlength=len(self._edges) + 1)
        with self._lock:
            if stage not in self._counts:
                self._counts[stage] = np.zeros(len(self._edges) + 1, np.int64)
                self._sums[stage] = 0.0
            self._counts[stage] += added
            self._sums[stage] += float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """The family, buckets cumulative."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["stage"])
        with self._lock:
            for stage, counts in self._counts.items():
                cumulative = np.cumsum(counts).tolist()
                edges = [*(f"{edge:g}" for edge in BUCKETS), "+Inf"]
                buckets = [(edge, float(count)) for edge, count in zip(edges, cumulative, strict=True)]
                family.add_metric([stage], buckets=buckets, sum_value=self._sums[stage])
        yield family


class _Watched(Collector):
    """Gauges that are read when they are collected; one that cannot be read is left out, counted and logged."""

    def __init__(self, failed: Callable[[], None]) -> None:
        self._readings: dict[str, tuple[str, str, Reading]] = {}
        self._failed = failed

    def add(self, name: str, documentation: str, label: str, read: Reading) -> None:
        self._readings[name] = (documentation, label, read)

    def collect(self) -> Iterable[Metric]:
        for name, (documentation, label, read) in list(self._readings.items()):
            try:
                value = read()
            except Exception:
                LOGGER.warning("the gauge %s cannot be read", name, exc_info=True)
                self._failed()
                continue
            family = GaugeMetricFamily(name, documentation, labels=[label] if label else [])
            for key, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                family.add_metric([key] if label else [], float(number))
            yield family


class NodeMetrics:
    """The counters of one node. Thread safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` gives the wall clock's seconds since 1970."""
        self.registry = CollectorRegistry()
        self._clock = clock
        self._children: dict[tuple[object, ...], Any] = {}
        self._events = self._counter(
            "events", "Events by source and what became of them.", "source", "disposition"
        )
        self._refusals = self._counter("refusals", "Rows refused before scoring.", "source", "code")
        self._deliveries = self._counter(
            "deliveries_refused", "Whole deliveries that were refused.", "source", "reason"
        )
        self._verdicts = self._counter("verdicts", "Verdicts given.", "verdict")
        self._rule_hits = self._counter("rule_hits", "Events a rule spoke against.", "rule")
        self._rule_errors = self._counter("rule_errors", "Events a rule could not be computed for.", "rule")
        self._scrape_errors = self._counter("scrape_errors", "Gauges that could not be read.")
        self._lag = Gauge(
            "subrosa_event_lag_seconds",
            "The clock minus the newest event's time, at the newest batch.",
            ["source"],
            registry=self.registry,
        )
        self._pending = Gauge(
            "subrosa_source_pending",
            "Messages that wait at a source.",
            ["source"],
            registry=self.registry,
        )
        self.latency = BatchHistogram("subrosa_latency_seconds", "Seconds a stage took.")
        self.registry.register(self.latency)
        self._watched = _Watched(self._scrape_errors.inc)
        self.registry.register(self._watched)

    def _add(self, counter: Counter, count: int, *labels: str) -> None:
        self._child(counter, *labels).inc(count)

    def _child(self, metric: Counter | Gauge, *labels: str) -> Any:
        """A child that is looked up once: the library reads the environment at each look-up."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"subrosa_{name}", documentation, labels, registry=self.registry)

    def count_events(self, source: str, dispositions: Mapping[str, int]) -> None:
        """Events of a batch by disposition."""
        for disposition, count in dispositions.items():
            self._add(self._events, count, source, disposition)

    def count_refusals(self, source: str, codes: Mapping[str, int]) -> None:
        """Rows of a batch that were refused, by code."""
        for code, count in codes.items():
            self._add(self._refusals, count, source, code)

    def count_delivery_refused(self, source: str, reason: str) -> None:
        """One delivery that was refused as a whole; ``reason`` is the name of its problem."""
        self._add(self._deliveries, 1, source, reason)

    def count_verdicts(self, verdicts: Mapping[str, int]) -> None:
        """Verdicts of a batch by label."""
        for verdict, count in verdicts.items():
            if count:
                self._add(self._verdicts, count, verdict)

    def count_rules(self, hits: Mapping[str, int], errors: Mapping[str, int]) -> None:
        """Hits and errors of a batch by rule; rules without any may be left out."""
        for rule, count in hits.items():
            if count:
                self._add(self._rule_hits, count, rule)
        for rule, count in errors.items():
            if count:
                self._add(self._rule_errors, count, rule)

    def set_lag(self, source: str, newest_us: int) -> None:
        """The newest event time of a batch, UTC microseconds."""
        self._child(self._lag, source).set(self._clock() - newest_us / 1e6)

    def set_pending(self, source: str, messages: int) -> None:
        """Messages that wait at a broker, as it last said."""
        self._child(self._pending, source).set(messages)

    def watch(self, name: str, documentation: str, read: Reading, label: str = "") -> None:
        """Add (or replace) a gauge ``subrosa_NAME`` that ``read`` gives when it is asked for.

        With ``label``, ``read`` gives a number for each of its values.
        """
        self._watched.add(f"subrosa_{name}", documentation, label, read)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
