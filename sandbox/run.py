"""One sandbox run from a source of events to a report: deal, start, play, verify, evaluate, draw."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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
from sandbox.accounts import bank_accounts, failures
from sandbox.cluster import Cluster
from sandbox.coordinator_view import read_view
from sandbox.dealer import NOTICE
from sandbox.evaluation import ScoredStream, Weeks, evaluate, load_stream, truth_of
from sandbox.evaluation.results import CONSORTIUM, FOREST
from sandbox.options import SandboxOptions, clear, companion, configuration, deal_out, read_or_make
from sandbox.parties import bank_id
from sandbox.probe import ask_too_much
from sandbox.report import RunRecord, build_report, write_headline_picture
from sandbox.scenario import Played, Scenario, require_members
from sandbox.streams import DealtStream, Source, report_rejects, require_parts
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec, parse_spec
from scoring.schema import ENTITIES, Channel, OutcomeBatch, transaction_batch


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
    policy = default_bundle()
    mapping = load_mapping(options.mapping_file)
    require_parts(mapping)
    weeks = Weeks.from_table(mapping.evaluation)
    banks = [bank_id(position) for position in range(options.members)]
    require_members((kill.party for kill in options.kills), banks)
    clear(options.out, keep=options.events)
    spec_path, rules_path = companion("features", mapping), companion("rules", mapping)
    with watch("events"), console.status("preparing the events ..."):
        source = read_or_make(options, mapping)
        rejects = report_rejects(source, options.out)
        dealt = deal_out(options, mapping, source)
    for line in rejects:
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
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
            opened = open_streams(cluster, dealt, options.mapping_file, spec_path, rules_path)
            played = play(cluster, dealt, mapping, options, console)
        probe = ask_too_much(
            cluster.members[0].directory, policy, capture=None if capture is None else capture / "probe"
        )
        statuses = close_books(cluster)
        with watch("export and audit"), console.status("exporting the log and verifying it offline ..."):
            audit = as_json(export_log(cluster.coordinator.directory, options.out / "log"))
            view = read_view(cluster.coordinator.directory)
    rule = next(rule for rule in policy.inquiries if rule.dataset == mapping.directory_dataset)
    least_cohort = rule.colluders + 2
    with (
        watch("evaluation"),
        console.status("training each bank's models and the pooled bound ...") as status,
    ):
        stream = scored_stream(options, mapping, source, dealt, cluster)
        evaluation = evaluate(
            stream,
            weeks=weeks,
            spec=spec,
            tiers={tier.name: tier.min_victims for tier in policy.tiers},
            count_delay_days=mapping.label_delay_days,
            least_cohort=least_cohort,
            announce=status.update,
        )
    accounts = bank_accounts(
        played, opened=opened, statuses=statuses, audit=audit, evaluation=evaluation, probe=probe
    )
    record = RunRecord(
        title=f"{options.members} banks, {dealt.events:,} events ({mapping.name})",
        finished_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        configuration=configuration(options, mapping, dealt),
        command=options.command,
        evaluation=evaluation,
        statuses=statuses,
        audit=audit,
        audit_command=f"subrosa audit verify {options.out / 'log'}",
        timings=watch.seconds | part_seconds(played),
        incidents=[incident.sentence() for incident in played.incidents],
        accounts=accounts,
        failures=failures(
            accounts,
            evaluation=evaluation,
            audit=audit,
            least_cohort=least_cohort,
            matured_frauds=matured_frauds(stream, mapping.label_delay_days),
            probe=probe,
        ),
        probe=probe,
        coordinator=view,
        rejects=rejects,
        unit=mapping.currency,
    )
    build_report(record, options.out)
    if evaluation.model(FOREST, CONSORTIUM) is not None and evaluation.test_frauds:
        write_headline_picture(evaluation, options.out / "headline.svg")
    return record


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


def open_streams(
    cluster: Cluster, dealt: DealtStream, mapping: Path, spec: Path, rules: Path
) -> dict[str, dict[str, Any]]:
    """Tell each member node which file is its stream; what each found in it."""
    opened = {}
    for bank, file in zip(cluster.members, dealt.files, strict=True):
        desk = BankDesk(bank.party, bank.url, bank.directory)
        opened[bank.party] = desk.post(
            "replay/open",
            events=str(file.resolve()),
            mapping=str(mapping.resolve()),
            features=str(spec.resolve()),
            rules=str(rules.resolve()),
        )
        desk.close()
    return opened


def play(
    cluster: Cluster, dealt: DealtStream, mapping: StreamMapping, options: SandboxOptions, console: Console
) -> Played:
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
        return scenario.play(dealt.first_day, dealt.last_day, mapping, on_day=on_day)


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


def scored_stream(
    options: SandboxOptions, mapping: StreamMapping, source: Source, dealt: DealtStream, cluster: Cluster
) -> ScoredStream:
    """The banks' histories joined with the truth, which only the sandbox has."""
    directory = dealt.directory.read_text(encoding="utf-8").splitlines()
    truth = truth_of(
        source.frame,
        columns=mapping.columns,
        bank=source.owner(options.members),
        label=mapping.label_column,
        directory=directory,
        directory_entity=mapping.directory_entity,
    )
    histories = {bank.party: bank.directory / "history" for bank in cluster.members}
    return load_stream(histories, truth, cells=len(directory), day_of=mapping.day_of)


def matured_frauds(stream: ScoredStream, delay_days: int) -> int:
    """Frauds at entries of the public directory on days that had matured when the last day began."""
    last = int(stream.day.max()) - delay_days - 1
    return int(((stream.fraud == 1) & (stream.cell >= 0) & (stream.day <= last)).sum())


def part_seconds(played: Played) -> dict[str, float | None]:
    """Total seconds of each part of the days."""
    return {f"play: {part}": sum(seconds) for part, seconds in played.seconds.items()}


def as_json(value: Any) -> dict[str, Any]:
    """An audit report as plain JSON."""
    import msgspec

    plain: dict[str, Any] = json.loads(msgspec.json.encode(value))
    return plain
