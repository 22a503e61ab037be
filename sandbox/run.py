"""One sandbox run from a source of events to a report: deal, start, play, verify, evaluate, draw."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from coordinator.export import export_log
from governance.policy.default import default_bundle
from member_node.client.desk import BankDesk
from member_node.streams.mapping import StreamMapping, load_mapping
from sandbox.cluster import Cluster
from sandbox.dealer import NOTICE
from sandbox.evaluation import Evaluation, Weeks, evaluate, load_stream, truth_of
from sandbox.evaluation.results import CONSORTIUM, FOREST
from sandbox.faults import Kill
from sandbox.population import save, simulate
from sandbox.report import RunRecord, build_report, write_headline_picture
from sandbox.scenario import Played, Scenario
from sandbox.streams import DealtStream, deal
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec, parse_spec
from scoring.schema import ENTITIES, Channel, OutcomeBatch, transaction_batch

HERE = Path(__file__).parent
DEFAULT_MAPPING = HERE / "mappings" / "default.toml"
OWN_FOLDERS = ("parties", "logs", "streams", "capture", "log")


@dataclass(frozen=True)
class SandboxOptions:
    """What the command line asks for. ``events`` and ``mapping`` None: the seeded population."""

    out: Path
    members: int = 4
    seed: int = 1
    days: int | None = None
    customers: int | None = None
    events: Path | None = None
    mapping: Path | None = None
    capture: bool = False
    kills: tuple[Kill, ...] = ()
    command: str = "subrosa sandbox"


@dataclass
class Stopwatch:
    """Wall-clock seconds by part, in the order in which parts began."""

    seconds: dict[str, float | None] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = time.perf_counter() - began


def run_sandbox(options: SandboxOptions, console: Console) -> RunRecord:
    """Run everything and write ``report.html`` and ``report.json`` into ``options.out``."""
    watch = Stopwatch()
    clear(options.out)
    mapping = load_mapping(options.mapping or DEFAULT_MAPPING)
    spec_path, rules_path = companion("features", mapping), companion("rules", mapping)
    with watch("events"), console.status("preparing the events ..."):
        events, dealt = prepare(options, mapping)
    console.print(
        f"[bold]{dealt.events:,}[/bold] events of {options.members} banks,"
        f" {dealt.first_day} to {dealt.last_day}, dealt by [italic]{mapping.split_column}[/italic]"
    )
    spec = parse_spec(spec_path.read_text(encoding="utf-8"))
    with watch("compile"), console.status("compiling the feature kernels (kept for later runs) ..."):
        compile_kernels(spec)
    cluster = Cluster(options.out, options.members)
    with watch("set-up"):
        capture = options.out / "capture" if options.capture else None
        cluster.set_up(dealt.directory, mapping.directory_dataset, capture=capture)
    console.print(f"[yellow]note[/yellow] {NOTICE}")
    with contextlib.ExitStack() as running:
        with watch("start"), console.status("starting the coordinator and the member nodes ..."):
            running.enter_context(cluster.running())
        with watch("play"):
            open_streams(cluster, dealt, options.mapping or DEFAULT_MAPPING, spec_path, rules_path)
            played = play(cluster, dealt, options, console)
        statuses = close_books(cluster)
        with watch("export and audit"), console.status("exporting the log and verifying it offline ..."):
            audit = export_log(cluster.coordinator.directory, options.out / "log")
    spec = parse_spec(spec_path.read_text(encoding="utf-8"))
    with (
        watch("evaluation"),
        console.status("training each bank's models and the pooled bound ...") as status,
    ):
        evaluation = measure(options, mapping, spec, events, dealt, cluster, status.update)
    record = RunRecord(
        title=f"{options.members} banks, {dealt.events:,} events ({mapping.name})",
        finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        configuration=configuration(options, mapping, dealt),
        command=options.command,
        evaluation=evaluation,
        statuses=statuses,
        audit=as_json(audit),
        audit_command=f"subrosa audit verify {options.out / 'log'}",
        timings=watch.seconds | part_seconds(played),
        incidents=[
            f"{i.party} was killed on {i.day} before it could {i.part}; it was back after {i.recovered_seconds:.1f} s"
            " and caught up"
            for i in played.incidents
        ],
        unit=mapping.currency,
    )
    build_report(record, options.out)
    if evaluation.model(FOREST, CONSORTIUM) is not None and evaluation.test_frauds:
        write_headline_picture(evaluation, options.out / "headline.svg")
    return record


def clear(out: Path) -> None:
    """Remove what an earlier run left in ``out``, and nothing else; refuse a folder that is not a sandbox's."""
    if out.exists() and any(out.iterdir()) and not (out / "parties").exists():
        raise ValueError(f"{out} holds other files: give an empty folder, or one of an earlier run")
    for name in OWN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def companion(folder: str, mapping: StreamMapping) -> Path:
    """The feature spec or rule set that goes with a mapping: the one of its name, else the default."""
    named = HERE / folder / f"{mapping.name}.toml"
    return named if named.exists() else HERE / folder / "default.toml"


def compile_kernels(spec: FeatureSpec) -> None:
    """Fill Numba's cache once, so that the member nodes do not each compile the same kernels at their first batch."""
    entities = {name: ["1"] for name in ENTITIES}
    batch = transaction_batch(
        event_id=[1], time_us=[1], amount=[1.0], channel=Channel.CARD, entities=entities
    )
    outcomes = OutcomeBatch(np.array([1]), np.array([True]), np.array([1]))
    engine = FeatureEngine(spec)
    engine.update(batch)
    engine.update(batch, outcomes)


def prepare(options: SandboxOptions, mapping: StreamMapping) -> tuple[pl.DataFrame, DealtStream]:
    """Read or generate the events and deal them to the banks."""
    folder = options.out / "streams"
    if options.events is None:
        sizes = {"days": options.days, "customers_per_bank": options.customers}
        given = {name: value for name, value in sizes.items() if value is not None}
        population = simulate(options.seed, options.members, **given)
        path, directory = save(population, options.out / "streams" / "all")
        events = pl.read_parquet(path)
        return events, deal(events, mapping, options.members, folder, directory=directory)
    events = pl.read_parquet(options.events)
    if options.days is not None:
        first = events.get_column(mapping.columns["time"]).min()
        events = events.filter(pl.col(mapping.columns["time"]) < first + pl.duration(days=options.days))
    return events, deal(events, mapping, options.members, folder)


def open_streams(cluster: Cluster, dealt: DealtStream, mapping: Path, spec: Path, rules: Path) -> None:
    """Tell each member node which file is its stream."""
    for bank, file in zip(cluster.members, dealt.files, strict=True):
        desk = BankDesk(bank.party, bank.url, bank.directory)
        desk.post(
            "replay/open",
            events=str(file.resolve()),
            mapping=str(mapping.resolve()),
            features=str(spec.resolve()),
            rules=str(rules.resolve()),
        )
        desk.close()


def play(cluster: Cluster, dealt: DealtStream, options: SandboxOptions, console: Console) -> Played:
    """Play all days with a progress bar."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("playing", total=(dealt.last_day - dealt.first_day).days + 1)

        def on_day(day: dt.date) -> None:
            progress.update(task, advance=1, description=f"played {day}")

        scenario = Scenario(cluster, kills=options.kills, announce=progress.console.print)
        return scenario.play(dealt.first_day, dealt.last_day, on_day=on_day)


def close_books(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Have every member send its evaluation totals, then take its status."""
    statuses = {}
    desks = {bank.party: BankDesk(bank.party, bank.url, bank.directory) for bank in cluster.members}
    for desk in desks.values():
        desk.post("totals")
    for party, desk in desks.items():
        statuses[party] = desk.get("status")
        desk.close()
    return statuses


def measure(
    options: SandboxOptions,
    mapping: StreamMapping,
    spec: FeatureSpec,
    events: pl.DataFrame,
    dealt: DealtStream,
    cluster: Cluster,
    announce: Callable[[str], None],
) -> Evaluation:
    """Evaluate the banks' histories against the truth, which only the sandbox has."""
    directory = dealt.directory.read_text(encoding="utf-8").splitlines()
    truth = truth_of(
        events,
        columns=mapping.columns,
        split=mapping.split_column,
        label=mapping.label_column,
        members=options.members,
        directory=directory,
        directory_entity=mapping.directory_entity,
    )
    histories = {bank.party: bank.directory / "history" for bank in cluster.members}
    return evaluate(
        load_stream(histories, truth, cells=len(directory)),
        weeks=Weeks.from_table(mapping.evaluation),
        spec=spec,
        tiers={tier.name: tier.min_victims for tier in default_bundle().tiers},
        count_delay_days=mapping.label_delay_days,
        announce=announce,
    )


def configuration(
    options: SandboxOptions, mapping: StreamMapping, dealt: DealtStream
) -> dict[str, str | int | float | bool | None]:
    """What a reader needs to know to judge the figures."""
    return {
        "members": options.members,
        "events": dealt.events,
        "source": "seeded population" if options.events is None else options.events.name,
        "seed": options.seed if options.events is None else None,
        "first day": str(dealt.first_day),
        "last day": str(dealt.last_day),
        "label delay, days": mapping.label_delay_days,
        "threshold": options.members // 2 + 1,
        "key shares": "dealt by the sandbox",
        "privacy noise on counts": "off (confirmed frauds over a public directory)",
        "bodies captured": options.capture,
    }


def part_seconds(played: Played) -> dict[str, float | None]:
    """Total seconds of each part of the days."""
    return {f"play: {part}": sum(seconds) for part, seconds in played.seconds.items()}


def as_json(value: Any) -> dict[str, Any]:
    """An audit report as plain JSON."""
    import msgspec

    plain: dict[str, Any] = json.loads(msgspec.json.encode(value))
    return plain
