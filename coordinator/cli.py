"""``subrosa coordinator``: set up a data directory, serve it, export its log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from coordinator.export import export_log
from coordinator.service.consortium import NotReadyError
from coordinator.service.log import LogCorruptError
from coordinator.settings import SettingsError
from coordinator.setup import admit, init_coordinator, install_directory, install_policy, read_directory
from crypto.errors import CryptoError
from governance.log.export import AuditError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.roll import PartyCard
from governance.policy.decision import PolicyError
from governance.policy.default import default_bundle

app = typer.Typer(no_args_is_help=True, help="Set up and serve a coordinator; export its log.")

Directory = Annotated[Path, typer.Option("--directory", help="The coordinator's data directory.")]

OPERATOR_ERRORS = (
    AuditError,
    CryptoError,
    LogCorruptError,
    MalformedError,
    MembershipError,
    NotReadyError,
    OSError,
    PolicyError,
    SettingsError,
)


@contextmanager
def _explained() -> Iterator[None]:
    """What an operator can mend is said in one line, without a traceback."""
    try:
        yield
    except OPERATOR_ERRORS as error:
        typer.echo(f"coordinator: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def init(
    directory: Directory,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8700,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    origin: Annotated[str, typer.Option(help="Name of the log in its checkpoints.")] = "subrosa.example/log",
    party: Annotated[str, typer.Option(help="Party id of the coordinator.")] = "coordinator",
    name: Annotated[str, typer.Option(help="Name of the coordinator.")] = "Coordinator",
    label_clock: Annotated[
        str, typer.Option(help="'wall': labels expire by this clock; 'business': for replays of the past.")
    ] = "wall",
) -> None:
    """Make a data directory with fresh keys and the default policy; prints what members pin."""
    os.umask(0o077)
    with _explained():
        anchors = init_coordinator(
            directory,
            party=party,
            name=name,
            host=host,
            port=port,
            origin=origin,
            label_clock=label_clock,
        )
        install_policy(directory, default_bundle())
    typer.echo(
        json.dumps(
            {
                "card": json.loads(anchors.card.to_json()),
                "log_key": anchors.log_verifier_key,
                "origin": origin,
            },
            indent=2,
        )
    )


@app.command("admit")
def admit_party(
    directory: Directory,
    card: Annotated[Path, typer.Argument(help="The party's card (JSON).")],
    share_index: Annotated[int, typer.Option(help="Its Shamir index; 0 if it holds no key share.")] = 0,
) -> None:
    """Admit a party; it is on the roll from the next start."""
    with _explained():
        entry = admit(directory, PartyCard.from_json(card.read_bytes()), share_index)
    typer.echo(f"admitted {entry.party} ({entry.role})")


@app.command("directory")
def add_directory(
    directory: Directory,
    file: Annotated[
        Path, typer.Argument(help="The public directory: one id a line, as the members have it.")
    ],
    dataset: Annotated[str, typer.Option(help="The data set it belongs to.")] = "terminals",
) -> None:
    """Name the public directory of a data set; it is on the roll from the next start."""
    with _explained():
        public = read_directory(file, dataset)
        install_directory(directory, public)
    typer.echo(f"{dataset}: {public.cells} entries, SHA-256 {public.digest.hex()}")


@app.command()
def serve(directory: Directory) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from coordinator.app import serve as serve_directory

    with _explained():
        serve_directory(directory)


@app.command()
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="New directory for the exported log.")],
    reader: Annotated[str, typer.Option(help="Party id the export is for; the coordinator if empty.")] = "",
) -> None:
    """Write the whole log to files, verify them, and say what they hold."""
    with _explained():
        report = export_log(directory, out, reader=reader)
    typer.echo(f"exported {report.size} entries to {out}")
