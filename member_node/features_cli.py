"""``subrosa features compute``: the features of a file, through the same streaming engine that scores live events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from member_node.service.feature_names import check_feature_names
from member_node.streams.events import transactions_of
from member_node.streams.files import EventFile, EventFileError, read_events, write_rejects
from member_node.streams.mapping import MappingError, StreamMapping, load_mapping
from scoring.engine import Engine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import FeatureSpec, FieldFeature, SpecError, parse_spec
from scoring.schema import OutcomeBatch, SchemaError

BATCH_ROWS = 32_768
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Compute features through the streaming engine."
)


@app.callback()
def features() -> None:
    """Keeps ``compute`` a subcommand of its own."""


@app.command()
def compute(
    spec: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Feature spec (TOML).")],
    mapping: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Mapping of the file's columns (TOML).")
    ],
    events: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Events, .parquet or .csv.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="Parquet file to write, one row an event.")],
    shards: Annotated[
        int, typer.Option(min=1, max=16, help="Engine shards; above 1 on this bank's own Ray.")
    ] = 1,
) -> None:
    """One row an event, by time: the mapped columns under the file's names, then the spec's features.

    Outcomes become visible the mapping's label delay after their event. Rows that cannot be read are named in
    OUT.rejects.csv and left out.
    """
    console = Console(stderr=True)
    try:
        loaded = load_mapping(mapping)
        text = spec.read_text(encoding="utf-8")
        parsed = parse_spec(text)
        check_feature_names(parsed, text, loaded)
        file = read_events(events, loaded)
        _report_rejects(file, out, events, console)
        with ExitStack() as stack:
            engine = _engine(parsed, shards, stack)
            bar = stack.enter_context(_progress(console))
            task = bar.add_task("features", total=file.events.num_rows)
            write_features(file, loaded, parsed, engine, out, lambda rows: bar.advance(task, rows))
    except (MappingError, SpecError, EventFileError, SchemaError) as error:
        console.print(f"[red]{error}[/red]", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def write_features(
    file: EventFile,
    mapping: StreamMapping,
    spec: FeatureSpec,
    engine: Engine,
    out: Path,
    advance: Callable[[int], None],
    *,
    batch_rows: int = BATCH_ROWS,
) -> None:
    """Stream ``file`` through ``engine`` in batches and write ``out`` whole or not at all."""
    times = np.asarray(file.events.column("time_us").to_numpy(), dtype=np.int64)
    known_at = times + mapping.label_delay_us
    passed = passthrough(file.events, mapping)
    names = [
        each.name for each in spec.features if not (isinstance(each, FieldFeature) and each.name in passed)
    ]
    if repeated := set(names) & set(passed):
        raise SpecError(f"feature {min(repeated)!r}", "has the name of a column of the file")
    places = [engine.names.index(name) for name in names]
    part = out.with_name(f"{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [*((name, column.type) for name, column in passed.items()), *((n, pa.float64()) for n in names)]
    )
    told = 0
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for first in range(0, len(times), batch_rows):
                last = min(first + batch_rows, len(times))
                due = int(np.searchsorted(known_at, times[last - 1], side="right"))
                rows = told + np.flatnonzero(file.fraud[told:due] >= 0)
                outcomes = None
                if len(rows):
                    ids = file.events.column("event_id").take(pa.array(rows)).to_numpy(zero_copy_only=False)
                    outcomes = OutcomeBatch(np.asarray(ids), file.fraud[rows] == 1, known_at[rows])
                told = due
                matrix = engine.update(transactions_of(file.events.slice(first, last - first)), outcomes)
                columns = [column.slice(first, last - first) for column in passed.values()]
                columns += [pa.array(np.ascontiguousarray(matrix.values[:, place])) for place in places]
                writer.write_table(pa.table(columns, schema=schema))
                advance(last - first)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def passthrough(events: pa.RecordBatch, mapping: StreamMapping) -> dict[str, pa.Array]:
    """The mapped columns under the file's own names; times in UTC."""
    columns: dict[str, pa.Array] = {}
    for field, name in mapping.columns.items():
        if field == "time":
            columns[name] = events.column("time_us").cast(pa.timestamp("us"))
        elif field != "channel":
            columns[name] = events.column(field)
    return columns


def _engine(spec: FeatureSpec, shards: int, stack: ExitStack) -> Engine:
    if shards == 1:
        return FeatureEngine(spec)
    # Ray takes seconds to import: only when it is asked for.
    from member_node.compute.ray_cluster import RayCluster
    from member_node.compute.shards import ShardedEngine

    engine: ShardedEngine = stack.enter_context(
        ShardedEngine(stack.enter_context(RayCluster()), spec, shards)
    )
    return engine


def _report_rejects(file: EventFile, out: Path, events: Path, console: Console) -> None:
    if not file.rejects:
        return
    rejects = out.with_name(f"{out.name}.rejects.csv")
    rejects.parent.mkdir(parents=True, exist_ok=True)
    write_rejects(file.rejects, rejects)
    first = file.rejects[0]
    console.print(
        f"[yellow]{events.name}: {file.rejected} of {file.rows} rows left out; first: row {first.row}, "
        f"column {first.column!r} {first.reason}. All are in {rejects.name}.[/yellow]",
        highlight=False,
        soft_wrap=True,
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
