"""``subrosa audit verify|proof``: works on files alone, with no network, database or configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from governance.log.audit import prove_entry, verify_entry_proof, verify_export
from governance.log.entries import encode_entry
from governance.log.export import AuditError

app = typer.Typer(help="Verify an exported log offline, from files alone.", no_args_is_help=True)


def _refuse(error: AuditError | OSError, as_json: bool) -> typer.Exit:
    what, where = (error.what, error.where) if isinstance(error, AuditError) else (str(error), "files")
    if as_json:
        typer.echo(msgspec.json.encode({"holds": False, "what": what, "where": where}).decode())
    else:
        typer.echo(f"REFUSED  {where}: {what}", err=True)
    return typer.Exit(code=1)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Directory of an exported log, or file of an entry's proof.")],
    key: Annotated[str | None, typer.Option(help="The log's verifier key, name+hash+base64, to pin.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Accept the log (exit 0) and tell who asked what, or refuse it (exit 1) and tell what is wrong where."""
    try:
        if path.is_file():
            if key is None:
                raise AuditError(
                    "an entry's proof means nothing without the log's key: give --key", path.name
                )
            proven = verify_entry_proof(path.read_bytes(), key)
            head = {"holds": True, "index": proven.index, "size": proven.checkpoint.size}
            if json:
                body = msgspec.Raw(encode_entry(proven.entry))
                typer.echo(msgspec.json.encode({**head, "entry": body}).decode())
            else:
                typer.echo(f"entry {proven.index} of {proven.checkpoint.size} in {proven.checkpoint.origin}:")
                typer.echo(encode_entry(proven.entry).decode())
            return
        report = verify_export(path, key)
    except (AuditError, OSError) as error:
        raise _refuse(error, json) from error
    if json:
        typer.echo(msgspec.json.encode({"holds": True, "report": report}, order="sorted").decode())
    else:
        typer.echo(report.to_text(), nl=False)
        typer.echo("ACCEPTED: every entry, signature and proof holds")


@app.command()
def proof(
    directory: Annotated[Path, typer.Argument(help="Directory of an exported log.")],
    index: Annotated[int, typer.Argument(help="Index of the entry, from 0.")],
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
) -> None:
    """Write the proof that one entry is in the log: it can be shown without the rest of the log."""
    try:
        written = prove_entry(directory, index)
        if out is not None:
            out.write_bytes(written)
    except (AuditError, OSError) as error:
        raise _refuse(error, False) from error
    if out is None:
        typer.echo(written.decode(), nl=False)
