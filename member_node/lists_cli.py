"""``subrosa list create|add|import|remove|show|find``: block, allow, watch and exemption lists of a running node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from member_node.client.desk import BankDesk, DeskError
from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    TokenFile,
    open_desk,
    time_option,
    time_text,
)
from member_node.list_file import ListFile, read_list_file

BATCH = 20_000

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Keep the bank's block, allow, watch and exemption lists; a change counts from the next batch on.",
)

ListName = Annotated[str, typer.Argument(help="The list's name.", metavar="LIST")]
ValueArgument = Annotated[
    str,
    typer.Argument(
        help="The value, or - to read it from standard input, which no list of processes shows.",
        metavar="VALUE",
    ),
]
Reason = Annotated[str, typer.Option(help="Why: kept with the entry and in the record of changes.")]
Until = Annotated[
    str | None, typer.Option(help="First moment it no longer holds (ISO 8601, UTC). Default: no end.")
]
At = Annotated[
    str | None, typer.Option(help="Business time (ISO 8601), for replays of the past. Default: now.")
]


@app.command()
def create(
    name: ListName,
    kind: Annotated[str, typer.Argument(help="block, allow, watch or exemption.", metavar="KIND")],
    entity: Annotated[str, typer.Argument(help="customer, account, card, payee...", metavar="ENTITY")],
    directory: Directory,
    reason: Reason,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Make an empty list over one entity."""
    with open_desk(directory, token_file) as desk:
        answer = desk.post("lists", name=name, kind=kind, entity=entity, reason=reason)
        typer.echo(
            json.dumps(answer) if as_json else f"{desk.party} has the {kind} list {name} over {entity}"
        )


@app.command()
def add(
    name: ListName,
    value: ValueArgument,
    directory: Directory,
    reason: Reason,
    until: Until = None,
    rule: Annotated[str, typer.Option(help="Exemption lists: the rule's id. Default: every rule.")] = "",
    at: At = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Put one value on a list, or give it a new end."""
    expires = None if until is None else time_option(until, "until", 0)
    with open_desk(directory, token_file) as desk:
        answer = desk.post(
            f"lists/{name}/entries",
            values=[_value(value)],
            expires_ms=[expires],
            rules=[rule],
            reason=reason,
            now_ms=time_option(at, "at", 0),
        )
        _refuse_single(answer, desk)
        what = next(
            text
            for count, text in (
                ("added", "is on"),
                ("renewed", "has a new end on"),
                ("known", "was already on"),
            )
            if answer[count]
        )
        typer.echo(json.dumps(answer) if as_json else f"the value {what} {name}")


@app.command()
def remove(
    name: ListName,
    value: ValueArgument,
    directory: Directory,
    reason: Reason,
    rule: Annotated[str | None, typer.Option(help="Only the entry of this rule.")] = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Take one value off a list; the record of changes keeps it."""
    with open_desk(directory, token_file) as desk:
        answer = desk.post(f"lists/{name}/removals", values=[_value(value)], rule=rule, reason=reason)
        _refuse_single(answer, desk)
        typer.echo(json.dumps(answer) if as_json else f"the value is off {name}")


@app.command("import")
def import_file(
    name: ListName,
    file: Annotated[
        Path, typer.Argument(help="CSV or Parquet with the columns value[, expires, reason, rule].")
    ],
    directory: Directory,
    reason: Reason,
    until: Annotated[str | None, typer.Option(help="End of rows that name none (ISO 8601, UTC).")] = None,
    at: At = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Put every good row of a file on a list; the others are named by row and column in FILE.rejects.csv."""
    end = None if until is None else time_option(until, "until", 0)
    now = time_option(at, "at", 0)
    with open_desk(directory, token_file) as desk:
        desk.get(f"lists/{name}?limit=1")  # an unknown list is refused before a long file is read
        held = read_list_file(file)
        totals = _import(desk, name, held, reason, end, now)
        rejects = _report_rejects(held, file)
        if as_json:
            typer.echo(
                json.dumps(
                    totals
                    | {"rejected": len(held.rejects), "rejects": None if rejects is None else str(rejects)}
                )
            )
            return
        typer.echo(
            f"{name}: {totals['added']} added, {totals['renewed']} with a new end, {totals['known']} known, "
            f"{totals['duplicates']} twice in the file, {len(held.rejects)} rejected"
        )


@app.command()
def show(
    directory: Directory,
    name: Annotated[
        str | None, typer.Argument(help="A list's name. Default: all lists.", metavar="LIST")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest entries to show.")] = 20,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the lists, or one list's newest entries."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get("lists" if name is None else f"lists/{name}?limit={limit}")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for each in [answer] if name else answer["lists"]:
        typer.echo(f"{each['name']}: {each['kind']} list over {each['entity']}, {each['entries']} entries")
    for entry in answer.get("newest", []):
        typer.echo(_entry_text(entry))


@app.command()
def find(
    name: ListName,
    value: ValueArgument,
    directory: Directory,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a value is on a list, since when, until when and why."""
    with open_desk(directory, token_file) as desk:
        answer = desk.post(f"lists/{name}/find", value=_value(value))
    if as_json:
        typer.echo(json.dumps(answer))
    elif not answer["entries"]:
        typer.echo(f"NOT LISTED  on {name}")
    else:
        for entry in answer["entries"]:
            typer.echo(_entry_text(entry))


def _value(argument: str) -> str:
    return sys.stdin.readline().strip() if argument == "-" else argument


def _refuse_single(answer: dict[str, Any], desk: BankDesk) -> None:
    for refusal in answer["refused"]:
        raise CommandError(f"{desk.party}: {refusal['code']}: {refusal['field']} {refusal['reason']}")


def _import(
    desk: BankDesk, name: str, held: ListFile, reason: str, end: int | None, now: int
) -> dict[str, int]:
    """Send the good rows in batches; what the node refuses joins the file's rejects."""
    totals = dict.fromkeys(("added", "renewed", "known", "duplicates"), 0)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("importing", total=len(held.rows))
        for start in range(0, len(held.rows), BATCH):
            part = slice(start, start + BATCH)
            try:
                answer = desk.post(
                    f"lists/{name}/entries",
                    values=held.values[part],
                    expires_ms=[end if each is None else each for each in held.expires_ms[part]],
                    reasons=held.reasons[part],
                    rules=held.rules[part],
                    reason=reason,
                    now_ms=now,
                )
            except DeskError:
                bar.stop()
                typer.echo(
                    f"rows from {held.rows[start]} on are not on {name}; {sum(totals.values())} before are. "
                    "Importing the whole file again is harmless",
                    err=True,
                )
                raise
            for count in totals:
                totals[count] += int(answer[count])
            for refusal in answer["refused"]:
                row = held.rows[start + refusal["row"]]
                held.rejects.append((row, refusal["field"], f"{refusal['code']}: {refusal['reason']}"))
            bar.advance(task, len(held.rows[part]))
    return totals


def _report_rejects(held: ListFile, file: Path) -> Path | None:
    """Write FILE.rejects.csv and name the first bad rows; an old report of the same file goes away."""
    report = file.with_name(f"{file.name}.rejects.csv")
    try:
        if not held.rejects:
            report.unlink(missing_ok=True)
            return None
        from member_node.streams.files import Reject, write_rejects

        write_rejects([Reject(row, column, why) for row, column, why in sorted(held.rejects)], report)
    except OSError as error:
        raise CommandError(f"{report}: {error.strerror}") from error
    for row, column, why in sorted(held.rejects)[:5]:
        typer.echo(f"{file.name}, row {row}, column {column}: {why}", err=True)
    typer.echo(f"{len(held.rejects)} rows are not imported: all are named in {report}", err=True)
    return report


def _entry_text(entry: dict[str, Any]) -> str:
    end = "no end" if entry["expires_ms"] is None else f"until {time_text(entry['expires_ms'])} UTC"
    rule = f", exempt from {entry['rule']}" if entry["rule"] else ""
    added = f"{time_text(entry['added_ms'])} UTC by {entry['author']}"
    return f"  {entry['value']}: {end}{rule}, since {added}: {entry['reason']}"
