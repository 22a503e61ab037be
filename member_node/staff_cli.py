"""``subrosa member staff add|list|revoke``: personal tokens for the bank's own staff."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from member_node.command_line import AsJson, CommandError, Directory, TokenFile, open_desk, time_text
from member_node.secret_files import SecretFileError, write_secret

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Give the bank's staff tokens of their own, so that one person proposes and another approves.",
)

Name = Annotated[str, typer.Argument(help="A unique name, such as ann.")]


@app.command()
def add(
    name: Name,
    directory: Directory,
    role: Annotated[str, typer.Option(help="sender (events only, for systems), analyst, approver or admin.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the token to this new file (mode 0600), do not print it.")
    ] = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a personal token. It is shown this once; the node keeps its digest only."""
    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists already: a secret is never overwritten")
    with open_desk(directory, token_file) as desk:
        answer = desk.post("staff", name=name, role=role)
        if out is not None:
            os.umask(0o077)
            try:
                write_secret(out, (answer.pop("token") + "\n").encode())
            except (OSError, SecretFileError) as error:
                desk.delete(f"staff/{name}")
                raise CommandError(f"{out}: {error}; {name}'s token was revoked again") from error
            answer["file"] = str(out)
    if as_json:
        typer.echo(json.dumps(answer))
    elif out is not None:
        typer.echo(f"{name} ({role}): token in {out}")
    else:
        typer.echo(answer["token"])


@app.command("list")
def list_staff(directory: Directory, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show who has or had a token."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get("staff")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for each in answer["staff"]:
        revoked = f", revoked by {each['revoked_by']}" if each["revoked_by"] else ""
        typer.echo(
            f"{each['name']:20} {','.join(each['roles']):10} since {time_text(each['added_at_ms'])}{revoked}"
        )


@app.command()
def revoke(name: Name, directory: Directory, token_file: TokenFile = None) -> None:
    """End a token at once; the name is not given again."""
    with open_desk(directory, token_file) as desk:
        desk.delete(f"staff/{name}")
    typer.echo(f"{name}'s token opens nothing any more")
