"""``subrosa inquiry ask|show``: joint statistics, through the bank's own running member node."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from member_node.client.desk import BankDesk
from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    day_text,
    open_desk,
    parse_day,
    time_text,
)

ID_CHARACTERS = 64
SHORTEST_PREFIX = 6
TOP = 10

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Ask the consortium for a joint statistic."
)


@app.command()
def ask(
    first_day: Annotated[str, typer.Option(help="First day, YYYY-MM-DD.")],
    last_day: Annotated[str, typer.Option(help="Last day, YYYY-MM-DD; it counts too.")],
    directory: Directory,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="CSV file for every non-zero count: day, entity, count."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the confirmed frauds of all banks together per public entity and day; no bank shows its own to anybody.

    It may take until every bank of the cohort has answered. The same question again gives the stored answer.
    """
    first, last = parse_day(first_day), parse_day(last_day)
    if not 0 <= first <= last:
        raise typer.BadParameter("--last-day is before --first-day, or both are before 1970")
    with open_desk(directory) as desk:
        if out is not None and not out.parent.is_dir():
            raise CommandError(f"{out}: there is no such folder: make it first, an inquiry is asked once")
        with Console(stderr=True).status(f"{desk.party} asks the cohort {first_day} to {last_day}"):
            answer = desk.post("inquiries", first_day=first, last_day=last)
        if out is not None:
            _write_counts(answer, out)
        if as_json:
            typer.echo(json.dumps(answer))
            return
        typer.echo(
            f"{answer['total']} confirmed frauds of the whole cohort on {answer['days']} days, in "
            f"{len(answer['counts'])} of {answer['cells'] * answer['days']} cells"
        )
        if out is not None:
            typer.echo(f"written to {out}")
            return
        highest = sorted(answer["counts"], key=lambda cell: (-cell["count"], cell["day"], cell["entity"]))
        for cell in highest[:TOP]:
            typer.echo(f"  {day_text(cell['day'])}  {cell['count']:>6}  {cell['entity']}")
        if len(highest) > TOP:
            typer.echo(f"  and {len(highest) - TOP} more: --out FILE.csv writes them all")


@app.command()
def show(
    directory: Directory,
    identifier: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="An inquiry's id, or the first digits of it.")
    ] = None,
    all_inquiries: Annotated[
        bool, typer.Option("--all", help="Every inquiry this member has decided on, newest first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show inquiries as this member's own ledger has them: who asked, what it decided, how it ended."""
    if (identifier is None) == (not all_inquiries):
        raise typer.BadParameter("give an inquiry's id, or --all")
    with open_desk(directory) as desk:
        if identifier is None:
            answer = desk.get("inquiries")
            typer.echo(json.dumps(answer) if as_json else _list(answer["inquiries"], desk.party))
            return
        row = desk.get(f"inquiries/{_full_id(desk, identifier.lower())}")
        typer.echo(json.dumps(row) if as_json else _describe(row, desk.party))


def _full_id(desk: BankDesk, given: str) -> str:
    if len(given) > ID_CHARACTERS or set(given) - set("0123456789abcdef"):
        raise CommandError(
            "an inquiry's id is 64 hexadecimal digits: `subrosa inquiry show --all` lists them"
        )
    if len(given) == ID_CHARACTERS:
        return given
    if len(given) < SHORTEST_PREFIX:
        raise CommandError(f"give at least {SHORTEST_PREFIX} digits of the inquiry's id")
    known = [row["inquiry_id"] for row in desk.get("inquiries")["inquiries"]]
    found = [each for each in known if each.startswith(given)]
    if len(found) != 1:
        raise CommandError(
            f"{desk.party} knows {len(found)} inquiries whose id begins with {given}: "
            "`subrosa inquiry show --all` lists them"
        )
    return str(found[0])


def _write_counts(answer: dict[str, Any], out: Path) -> None:
    """Write the file whole or not at all."""
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["day", "entity", "count"])
            writer.writerows(
                (day_text(cell["day"]), cell["entity"], cell["count"]) for cell in answer["counts"]
            )
        os.replace(part, out)
    except OSError as error:
        raise CommandError(f"{out}: {error.strerror}: the answer is stored, ask again to write it") from error


def _list(rows: list[dict[str, Any]], party: str) -> str:
    if not rows:
        return f"{party} has decided on no inquiry yet"
    return "\n".join(
        f"{row['inquiry_id'][:16]}  {time_text(row['decided_at'] * 1000)}  {row['requester']}  "
        f"{day_text(row['first_day'])} to {day_text(row['last_day'])}  {_decision(row)}"
        for row in rows
    )


def _describe(row: dict[str, Any], party: str) -> str:
    lines = [
        f"inquiry {row['inquiry_id']}",
        f"  asked by {row['requester']}: {day_text(row['first_day'])} to {day_text(row['last_day'])}",
        f"  {party}: {_decision(row)}, decided {time_text(row['decided_at'] * 1000)} UTC",
        f"  coordinator: {row['state']}{': ' + row['state_reason'] if row['state_reason'] else ''}",
    ]
    if row["cohort"]:
        lines.append(f"  cohort: {', '.join(row['cohort'])}")
    if row["waiting_for"]:
        lines.append(f"  waiting for: {', '.join(row['waiting_for'])}")
    if row["outcome_logged"] is not None:
        lines.append(
            f"  the answer is stored here, {'and' if row['outcome_logged'] else 'but not yet'} committed to in the log"
        )
    return "\n".join(lines)


def _decision(row: dict[str, Any]) -> str:
    if not row["takes_part"]:
        return f"refused: {row['refusal']}"
    return "contributed" if row["contributed"] else "takes part, has not contributed"
