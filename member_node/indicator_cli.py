"""``subrosa indicator add|import|lookup``: the fraud desk's indicators, through the bank's own running member node."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from governance.purposes import Purpose
from member_node.client.desk import BankDesk, DeskError
from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    TokenFile,
    now_ms,
    open_desk,
    time_option,
    time_text,
)
from member_node.indicator_file import (
    CellError,
    Finding,
    IndicatorFile,
    make_finding,
    read_indicators,
)

BATCH = 1000

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Share fraud indicators from a running member node; look one up.",
)

KindArgument = Annotated[
    str,
    typer.Argument(help="account, iban, phone, device, email_domain, terminal or merchant.", metavar="KIND"),
]
ValueArgument = Annotated[
    str,
    typer.Argument(
        help="The value, or - to read it from standard input, which no list of processes shows.",
        metavar="VALUE",
    ),
]
At = Annotated[
    str | None, typer.Option(help="Business time (ISO 8601), for replays of the past. Default: now.")
]


@app.command()
def add(
    kind: KindArgument,
    value: ValueArgument,
    directory: Directory,
    typology: Annotated[str, typer.Option(help="What kind of fraud, one word such as mule-account.")],
    victims: Annotated[
        int, typer.Option(min=1, help="Distinct customers of this bank who lost money by it.")
    ],
    first_seen: Annotated[
        str | None, typer.Option(help="First fraud (ISO 8601, UTC). Default: the last one.")
    ] = None,
    last_seen: Annotated[str | None, typer.Option(help="Last fraud. Default: now.")] = None,
    at: At = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Contribute one indicator of confirmed fraud: the others learn it only if they ask for this very value."""
    issued = time_option(at, "at", now_ms())
    last = time_option(last_seen, "last-seen", issued)
    first = time_option(first_seen, "first-seen", last)
    with open_desk(directory, token_file) as desk:
        try:
            finding, _ = make_finding(kind, _value(value), typology, victims, first, last)
        except CellError as error:
            raise CommandError(f"{desk.party}: {error}: correct it and repeat the command") from error
        answer = desk.post("indicators", **asdict(finding), now_ms=issued)
        if answer["accepted"] != 1:
            raise CommandError(
                f"{desk.party} left the indicator out: its normal forms differ from this command's"
            )
        typer.echo(json.dumps(answer) if as_json else f"{desk.party} contributed one {kind} to the index")


@app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="CSV with the columns kind, value, typology, victims[, first_seen, last_seen]."),
    ],
    directory: Directory,
    at: At = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Contribute every good row of a CSV file; the others are named by row and column in FILE.rejects.csv."""
    issued = time_option(at, "at", now_ms())
    with open_desk(directory, token_file) as desk:
        held = read_indicators(file, issued)
        rejects = _report_rejects(held, file)
        if not held.findings:
            raise CommandError(f"{file}: no row can be contributed{f': see {rejects}' if rejects else ''}")
        accepted = _contribute(desk, held.findings, issued, file)
        if as_json:
            report = {
                "accepted": accepted,
                "rejected": len(held.rejects),
                "rejects": rejects and str(rejects),
            }
            typer.echo(json.dumps(report))
        else:
            typer.echo(
                f"{desk.party} contributed {accepted} of {len(held.findings) + len(held.rejects)} rows to the index"
            )


@app.command()
def lookup(
    kind: KindArgument,
    value: ValueArgument,
    directory: Directory,
    purpose: Annotated[str, typer.Option(help="Why, for policy and log.")] = Purpose.INVESTIGATION.value,
    at: At = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask whether a value is flagged, by whom and on what evidence; the key holders see that something was asked."""
    moment = time_option(at, "at", now_ms())
    with open_desk(directory, token_file) as desk:
        text = _value(value)
        desk.post("sync", now_ms=moment)
        answer = desk.post("lookups", kind=kind, value=text, purpose=purpose, now_ms=moment)
        typer.echo(json.dumps(answer) if as_json else _as_text(answer))


def _value(argument: str) -> str:
    return sys.stdin.readline().strip() if argument == "-" else argument


def _report_rejects(held: IndicatorFile, file: Path) -> Path | None:
    """Write FILE.rejects.csv and name the first bad rows; an old report of the same file goes away."""
    report = file.with_name(f"{file.name}.rejects.csv")
    try:
        if not held.rejects:
            report.unlink(missing_ok=True)
            return None
        # Loads polars, which a file without bad rows can do without.
        from member_node.streams.files import Reject, write_rejects

        write_rejects([Reject(row, each.column, each.reason) for row, each in held.rejects.items()], report)
    except OSError as error:
        raise CommandError(f"{report}: {error.strerror}") from error
    for row, each in list(held.rejects.items())[:5]:
        typer.echo(f"{file.name}, row {row}, column {each.column}: {each.reason}", err=True)
    typer.echo(f"{len(held.rejects)} rows are not contributed: all are named in {report}", err=True)
    return report


def _contribute(desk: BankDesk, findings: Mapping[int, Finding], issued: int, file: Path) -> int:
    accepted = 0
    rows = list(findings)
    with _progress() as bar:
        task = bar.add_task("contributing", total=len(findings))
        for start in range(0, len(findings), BATCH):
            batch = rows[start : start + BATCH]
            try:
                answer = desk.post(
                    "indicators/batch", findings=[asdict(findings[row]) for row in batch], now_ms=issued
                )
            except DeskError:
                bar.stop()
                place = f"{file.name}, rows {batch[0]} to {batch[-1]}"
                _tell_rest(place, accepted)
                raise
            accepted += int(answer["accepted"])
            bar.advance(task, len(batch))
    return accepted


def _tell_rest(place: str, accepted: int) -> None:
    typer.echo(
        f"{place}: not contributed, nor is anything after it; {accepted} before are. "
        "Importing the whole file again is harmless",
        err=True,
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _as_text(answer: dict[str, Any]) -> str:
    labels, kind, moment = answer["labels"], answer["kind"], answer["now_ms"]
    if not labels:
        return f"NOT FLAGGED  no bank has a label on this {kind}"
    valid = [each for each in labels if each["issued_at_ms"] <= moment < each["expires_at_ms"]]
    tier = answer["tier"]
    if not valid:
        lines = [f"NOT FLAGGED  every label on this {kind} has expired"]
    else:
        reach = "no tier" if tier is None else f"tier {tier['name']} (at most: {tier['verdict']})"
        victims = answer["distinct_victims"]
        lines = [f"FLAGGED  {kind}, {reach}: {victims} distinct victims, reported by {len(valid)} bank(s)"]
    for each in sorted(labels, key=lambda label: str(label["contributor"])):
        state = "expires" if each in valid else "EXPIRED or not yet issued, until"
        lines.append(
            f"  {each['contributor']}: {each['distinct_victims']} victims, {each['typology']}, {each['grade']}, "
            f"seen {time_text(each['first_seen_ms'])} to {time_text(each['last_seen_ms'])} UTC, "
            f"{state} {time_text(each['expires_at_ms'])} UTC"
        )
    return "\n".join(lines)
