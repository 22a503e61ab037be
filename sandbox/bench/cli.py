"""``subrosa bench NAME``: measure one part on this machine, as a table for people or JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sandbox.bench.result import BenchResult

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Measure each part as a ratio to its primitive operations, in the same run.",
)

Size = Annotated[int, typer.Option(min=1, help="Items: values, cells, entries or events.")]
Times = Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of the whole operation.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def _show(measure: Callable[[int, int], BenchResult], size: int, times: int, as_json: bool) -> None:
    console = Console(stderr=True)
    with console.status("measuring ..."):
        result = measure(size, times)
    if as_json:
        typer.echo(json.dumps(result.as_json()))
        return
    table = Table("what", "value", "bar or limit", "", title=f"{result.name}, size {result.size:,}")
    table.add_row("per second", f"{result.timing.per_second:,.0f}", "", "")
    table.add_row("median, us an item", f"{result.timing.micros(50):,.2f}", "", "")
    for name, rate in result.limits.items():
        table.add_row(f"share of: {name}", f"{result.timing.per_second / rate:.2f}", f"{rate:,.0f}/s", "")
    for name, rate in result.peers.items():
        table.add_row(f"times {name}", f"{result.timing.per_second / rate:.2f}", f"{rate:,.0f}/s", "")
    for bar in result.bars:
        sign = "<=" if bar.at_most else ">="
        answer = "holds" if bar.holds else "[red]missed[/red]"
        table.add_row(bar.what, f"{bar.value:,.2f}", f"{sign} {bar.bar:,}", answer)
    Console().print(table)
    for name, note in result.notes.items():
        Console().print(f"{name}: {note}", style="dim")


@app.command()
def lookup(size: Size = 512, times: Times = 5, as_json: AsJson = False) -> None:
    """Cold private lookups: one caller and 3 of 4 key holders in one process, network excluded."""
    from sandbox.bench.lookup import bench_lookup

    _show(bench_lookup, size, times, as_json)


@app.command()
def aggregate(size: Size = 10_000, times: Times = 10, as_json: AsJson = False) -> None:
    """A joint statistic of 4 members: masks, encryption, addition, decryption, against bare TenSEAL."""
    from sandbox.bench.aggregate import bench_aggregate

    _show(bench_aggregate, size, times, as_json)


@app.command()
def log(size: Size = 20_000, times: Times = 5, as_json: AsJson = False) -> None:
    """The governance log: encode, salt, hash, append and sign."""
    from sandbox.bench.log import bench_log

    _show(bench_log, size, times, as_json)


@app.command()
def features(
    size: Size = 200_000,
    times: Times = 3,
    events: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The handbook's Parquet file. Default: seeded rows."),
    ] = None,
    peers_env: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Make a virtual environment for each of river and PyFlink here (pip, the first time) and measure them"
            " in it, in the same run.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Nine windowed features a customer against DuckDB's window query; hot keys; bytes of entities and events.

    river and PyFlink are measured too where they are installed, or in environments of their own (--peers-env).
    """
    from sandbox.bench.features import bench_features

    _show(lambda size, times: bench_features(size, times, events, peers_env), size, times, as_json)


@app.command()
def scoring(size: Size = 400_000, times: Times = 3, as_json: AsJson = False) -> None:
    """The whole scoring pipeline: features, lists, model, rules, journal and history, batches and single events."""
    from sandbox.bench.scoring import bench_scoring

    _show(bench_scoring, size, times, as_json)


@app.command()
def plot(
    files: Annotated[
        list[Path], typer.Argument(help="Results that --json printed.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(dir_okay=False, help="SVG file to write.")],
    kind: Annotated[
        str, typer.Option(help="throughput, latency, parts or stalls (of one result).")
    ] = "throughput",
) -> None:
    """Draw results as a picture for the documentation."""
    from sandbox.bench.plots import ResultError, draw

    try:
        out.write_text(draw(kind, [each.read_text(encoding="utf-8") for each in files]), encoding="utf-8")
    except (OSError, ResultError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error)) from error
