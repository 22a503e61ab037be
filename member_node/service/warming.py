"""Compiling the kernels of a stream before its first event, and saying so: only a version's first start compiles."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba.core.event
import numpy as np
import pyarrow as pa

from member_node.service.layout import hours_and_weekdays
from member_node.streams.events import event_schema, is_number_name, transactions_of
from member_node.streams.sources.json_rows import JsonRows
from member_node.streams.sources.rows import RowForm
from scoring.brake import Brake
from scoring.devices.linker import KEEP_US, DeviceLinker
from scoring.engine import Engine
from scoring.features.spec import FeatureSpec, FieldFeature
from scoring.features.windows import FRAUD
from scoring.lists import ListKind, ListSet, empty_list
from scoring.rules.deployment import Deployment, DeploymentJudgement
from scoring.rules.evaluation import Judgement
from scoring.rules.screen import Screen
from scoring.schema import CHANNELS, Channel, OutcomeBatch, TransactionBatch

LOGGER = logging.getLogger(__name__)
_COMPILE = "numba:compile"
_ROWS = 2
# Beyond some rows the screen lets go of the interpreter's lock.
_MANY = 100


class _Teller(numba.core.event.Listener):
    """Tells of each kernel that is compiled rather than loaded from the cache on disk."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._began: list[float] = []
        self.count = 0

    def on_start(self, event: Any) -> None:
        self._began.append(time.perf_counter())
        if len(self._began) == 1:
            self._told(str(event.data["dispatcher"].__name__))

    def on_end(self, event: Any) -> None:
        seconds = time.perf_counter() - self._began.pop()
        if not self._began:
            self.count += 1
            LOGGER.info("compiled %s in %.1f s", event.data["dispatcher"].__name__, seconds)


@contextmanager
def compiling(told: Callable[[str], None]) -> Iterator[_Teller]:
    """Inside, ``told`` is called with the name of each kernel that has to be compiled."""
    teller = _Teller(told)
    numba.core.event.register(_COMPILE, teller)  # type: ignore[no-untyped-call]
    try:
        yield teller
    finally:
        numba.core.event.unregister(_COMPILE, teller)  # type: ignore[no-untyped-call]


def warm(engine: Engine, spec: FeatureSpec, *, linked: bool = False) -> None:
    """Have every kernel of a spec ready, by two transactions of nobody; ``engine`` is of no use afterwards.

    ``linked``: events may carry device components, for which the engine is asked beforehand.
    """
    ones = np.ones(_ROWS, np.uint64)
    times = np.array([1_000_000, 2_000_000], np.int64)
    entities = {name: ones.copy() for each in spec.entities for name in each.split("+")}
    batch = TransactionBatch(
        event_id=np.arange(_ROWS, dtype=np.int64),
        time_us=times,
        channel=np.full(_ROWS, Channel.CARD, np.uint8),
        amount=np.ones(_ROWS),
        entities=entities,
        numbers={name: np.ones(_ROWS) for name in read_numbers(spec)},
    )
    if linked:
        engine.foresee(batch)
    engine.update(batch, OutcomeBatch(np.zeros(1, np.int64), np.ones(1, np.bool_), times[:1]))


def warm_devices() -> None:
    """Have the kernels of devices ready: nobody's device, forgotten by the time the next one comes."""
    bundles = [{"os": "none", "model": "none", "installId": text} for text in ("nobody", "nothing")]
    times = np.array([1_000_000, 2_000_000 + KEEP_US], np.int64)
    DeviceLinker().observe(bundles, np.ones(2, np.uint64), times)


def warm_judging(deployment: Deployment) -> None:
    """Have the kernels of lists, rules, brake and clock ready: a row of nobody, of whom no rule of ``deployment`` says
    anything."""
    time_us = np.ones(1, np.int64)
    transactions_of(pa.RecordBatch.from_pylist([], schema=event_schema({}, integer_ids=True)))
    hours_and_weekdays(time_us)
    for rows in (1, _MANY):
        Screen([]).possible({}, rows)
    nobody, keys = empty_list("nobody", ListKind.WATCH, "customer"), np.ones(1, np.uint64)
    ListSet([nobody]).probe({"customer": keys}, time_us)
    nobody.hits(keys, time_us)  # exemptions are looked up by themselves
    rules = len(deployment.rules)
    silent = Judgement(
        verdict=np.zeros(1, np.uint8),
        rule=np.full(1, -1, np.int16),
        hits=np.zeros((rules, 1), np.bool_).T,
        effective=np.zeros((rules, 1), np.uint8).T,
        errors=np.zeros(rules, np.int64),
        exempted=np.zeros(rules, np.int64),
    )
    Brake().apply(deployment, DeploymentJudgement(silent, np.zeros(1, np.int16), {}), time_us)


def warm_reading(schema: pa.Schema) -> None:
    """Have the kernels ready that check rows of a stream whose events have ``schema``: no row at all is checked."""
    JsonRows(RowForm(schema, CHANNELS)).rows((), 0)


def read_numbers(spec: FeatureSpec) -> tuple[str, ...]:
    """The numeric attributes that a spec reads beside the amount."""
    read = [value for each in spec.windows for value in (each.value, each.value2) if value]
    read += [each.field for each in spec.features if isinstance(each, FieldFeature)]
    read += [span.number for each in spec.filters for span in each.spans]
    return tuple(name for name in dict.fromkeys(read) if is_number_name(name) and name != FRAUD)
