"""``subrosa sandbox``: a whole consortium on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(add_completion=False)


@app.command()
def sandbox(
    members: Annotated[int, typer.Option(min=1, max=12, help="Number of banks.")] = 4,
    events: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A Parquet or CSV file instead of the population."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="How its columns become transactions (TOML)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the generated population.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the parties' data, the log and the report.")] = Path(
        "out"
    ),
    days: Annotated[int | None, typer.Option(min=1, help="Play only the first days (default: all).")] = None,
    customers: Annotated[
        int | None, typer.Option(min=1, help="Customers a bank of the generated population.")
    ] = None,
    capture: Annotated[
        bool,
        typer.Option("--capture", help="Record every body that crosses a party boundary in OUT/capture."),
    ] = False,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTY@DAY[:PART]",
            help="End a member as a power cut would, in a day's confirm (default), share or score.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON at the end.")] = False,
) -> None:
    """Start a coordinator and N banks as real processes, play a stream through them, and report what it was worth.

    Ends with 1 when a sum was wrong, when nothing was summed although it should have been, or when the coordinator
    lied.
    """
    from governance.log.export import AuditError
    from member_node.client.desk import DeskError
    from member_node.streams.files import EventFileError
    from member_node.streams.mapping import MappingError
    from sandbox.cluster import ProcessDiedError
    from sandbox.faults import parse_kill
    from sandbox.options import SandboxOptions
    from sandbox.run import run_sandbox
    from sandbox.summary import print_summary

    console = Console(stderr=as_json)
    if (events is None) != (mapping is None):
        raise typer.BadParameter("--events and --mapping go together: the mapping names the file's columns")
    try:
        options = SandboxOptions(
            out=out,
            members=members,
            seed=seed,
            days=days,
            customers=customers,
            events=events,
            mapping=mapping,
            capture=capture,
            kills=tuple(parse_kill(text) for text in kill or ()),
            command=shlex.join(["subrosa", *sys.argv[1:]]),
        )
        record = run_sandbox(options, console)
    except EventFileError as error:
        fix = "mend the file, or name its columns in the mapping"
        console.print(f"[red]subrosa sandbox:[/red] {error}; {fix}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (ValueError, MappingError, ProcessDiedError, DeskError, AuditError) as error:
        console.print(f"[red]subrosa sandbox:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    print_summary(record, out, console)
    if as_json:
        typer.echo(json.dumps(json.loads((out / "report.json").read_text(encoding="utf-8"))))
    if record.failures:
        raise typer.Exit(1)
