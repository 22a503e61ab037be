"""The whole scoring pipeline: Arrow batches in, journaled verdicts out, and where the time goes.

Features of the reference spec, fifty rules of five predicates, three lists, LightGBM with 200 trees of 31 leaves, every
verdict in the journal and on disk before it is counted, the history written beside it. Parts are timed one by one on
the same batches; they overlap in the pipeline, so their shares of the whole add up to more than one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from member_node.service.decisions import decision_facts, decision_rows
from member_node.service.frames import EVENTS, VERDICTS
from member_node.service.history import HistoryStore
from member_node.service.history_feed import ScoredFrame, frames_table
from member_node.service.scoring import Batch, ScoringService
from member_node.streams.events import transactions_of
from member_node.streams.journal import Draft, Journal
from sandbox.bench.load import SINGLES, SPEC, Bench
from sandbox.bench.result import Bar, BenchResult, Timing
from sandbox.bench.scoring_http import BATCH as HTTP_BATCH
from sandbox.bench.scoring_http import FEW, MANY, measure_http

PARTS = ("features", "lists", "model", "rules and reasons", "decisions", "journal", "history")


def bench_scoring(size: int, times: int, *, spec_file: Path = SPEC) -> BenchResult:
    """``size`` events ``times`` times through a fresh pipeline, then single events, then the parts by themselves."""
    bench = Bench(size, spec_file)
    seconds = []
    singles: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(prefix="subrosa-bench-") as folder:
        for run in range(times + 1):
            with bench.service(Path(folder) / str(run)) as service:
                began = time.perf_counter()
                verdicts = sum(
                    len(each) for each in service.score_each(Batch(events) for events in bench.batches())
                )
                took = time.perf_counter() - began
                if verdicts != size:
                    raise RuntimeError(f"{verdicts} verdicts of {size} events")
                if run:  # the first warms up
                    seconds.append(took)
                if run == times:
                    singles = _singles(bench, service)
        parts = _parts(bench, Path(folder) / "parts")
    http = measure_http(bench)
    timing = Timing(size, tuple(seconds))
    whole = size / timing.per_second
    shares = {name: took / whole for name, took in parts.items()}
    before, after = ((np.percentile(each, [50, 99]) * 1e6).tolist() for each in singles)
    features = len(bench.spec.features)
    kinds = len({name for each in bench.spec.entities for name in each.split("+")})
    return BenchResult(
        name="scoring",
        size=size,
        timing=timing,
        limits={name: size / took for name, took in parts.items()},
        bars=(
            Bar("events a second, batches to journaled verdicts", timing.per_second, 100_000),
            Bar("single event p99 before the disk, ms", before[1] / 1000, 1.0, at_most=True),
            Bar("HTTP in batches of 50, events a second", http.batches.per_second * HTTP_BATCH, 20_000),
            Bar(
                f"HTTP one event a request / empty handler, {MANY} connections",
                http.singles.per_second / http.plain.per_second,
                0.5,
            ),
            Bar("HTTP one event a request at 1,000/s, p99 ms", http.paced.p99_ms, 15.0, at_most=True),
        ),
        notes={
            "load": f"{features} features over {kinds} entity kinds, {len(bench.force.deployment.rules)} rules, "
            f"{len(bench.force.lists)} lists, model of 200 trees with 31 leaves",
            "shares of the whole": ", ".join(f"{name} {share:.2f}" for name, share in shares.items()),
            "single event before the disk": f"p50 {before[0]:.0f} us, p99 {before[1]:.0f} us",
            "single event with fsync": f"p50 {after[0]:.0f} us, p99 {after[1]:.0f} us",
            "HTTP": f"{MANY} connections: empty handler {http.plain.per_second:,.0f}/s, one event a request "
            f"{http.singles.per_second:,.0f}/s (p99 {http.singles.p99_ms:.1f} ms); {FEW} connections: "
            f"{http.plain_few.per_second:,.0f}/s, {http.singles_few.per_second:,.0f}/s "
            f"(p99 {http.singles_few.p99_ms:.1f} ms), ratio "
            f"{http.singles_few.per_second / http.plain_few.per_second:.2f}",
            "peers": "no peer has all of it; the limits are its own parts, each by itself",
        },
    )


def _singles(bench: Bench, service: ScoringService) -> tuple[list[float], list[float]]:
    """Seconds of single events without and with the wait for the disk."""
    rows = [bench.events.slice(bench.size + row, 1) for row in range(SINGLES)]
    half = SINGLES // 2
    before, after = [], []
    for row in rows[:half]:
        began = time.perf_counter()
        service.score_unsettled(row)
        before.append(time.perf_counter() - began)
    for row in rows[half:]:
        began = time.perf_counter()
        service.score(row)
        after.append(time.perf_counter() - began)
    return before, after


class _Stopwatch:
    """Seconds spent inside ``with watch(part)``, by part."""

    def __init__(self) -> None:
        self.took = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took[part] += time.perf_counter() - began


def _parts(bench: Bench, folder: Path) -> dict[str, float]:
    """Seconds each part takes by itself on all batches, one after the other on one thread."""
    watch = _Stopwatch()
    core, surveyor, force = bench.core(), bench.surveyor(), bench.force
    history = HistoryStore(folder / "history")
    nothing = np.empty(0, np.int64)
    with Journal(folder / "journal") as journal:
        for events in bench.batches():
            with watch("features"):
                batch = transactions_of(events)
                advanced = core.advance(batch)
            sight = surveyor.survey(events, batch).live
            columns = {**dict(zip(advanced.names, advanced.values, strict=True)), **sight.columns}
            with watch("lists"):
                force.lists.probe(batch.entities, batch.time_us)
            with watch("model"):
                force.models.columns(columns, len(batch))
            with watch("rules and reasons"):
                scored = core.judge(advanced, sight, sight, nothing, force)
            with watch("decisions"):
                decisions = decision_rows(scored, {}, False)
            with watch("journal"):
                first = journal.append([Draft(EVENTS, events)], sync=False)
                facts = decision_facts(first, scored)
                journal.append([Draft(VERDICTS, decisions, facts)], sync=False, finishing=True)
                journal.sync()
            with watch("history"):
                frame = ScoredFrame(first, events, decisions, advanced.names, advanced.values)
                history.write(first, frames_table([frame]))
        with watch("history"):
            history.close()
    # Judging includes the model and the lists.
    watch.took["rules and reasons"] -= watch.took["model"] + watch.took["lists"]
    return watch.took
