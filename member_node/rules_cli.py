"""``subrosa rules``: the bank's living rules, from a checked file to an active version and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from member_node.client.desk import BankDesk
from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    TokenFile,
    open_desk,
    time_option,
    time_text,
)

FAR_MS = 7_258_118_400_000  # 2200-01-01

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Propose, approve, test and deploy versions of the rules; release a rule that the brake stopped.",
)

RulesFile = Annotated[Path, typer.Argument(help="A rule set file (TOML).", metavar="FILE")]
Number = Annotated[int, typer.Argument(help="The version, as `subrosa rules list` shows it.", min=1)]
Why = Annotated[str, typer.Option(help="Why, for the trail of changes.")]


@app.command("list")
def list_versions(directory: Directory, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show what is deployed and every version."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get("rules")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(_deployed_text(answer["deployed"]))
    for each in answer["versions"]:
        decided = f", decided by {each['decided_by']}" if each["decided_by"] else ""
        typer.echo(
            f"{each['number']:5}  {each['state']:9} {time_text(each['saved_at_ms'])} by {each['author']}{decided}: "
            f"{each['comment']}"
        )


@app.command()
def show(number: Number, directory: Directory, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Print a version's text."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get(f"rules/versions/{number}")
    typer.echo(json.dumps(answer) if as_json else answer["text"], nl=as_json)


@app.command()
def check(
    file: RulesFile, directory: Directory, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Say whether a file would be accepted, and where it is wrong if not."""
    with open_desk(directory, token_file) as desk:
        answer = desk.post("rules/check", text=_text(file))
        if as_json:
            typer.echo(json.dumps(answer))
            if not answer["ok"]:
                raise typer.Exit(1)
            return
        if not answer["ok"]:
            raise CommandError(f"{file}: {answer['error']}")
    typer.echo(f"{answer['rules']} rules over {len(answer['columns'])} columns")


@app.command()
def propose(
    file: RulesFile, directory: Directory, why: Why, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """Save a file as a new version and ask for its approval by another person."""
    with open_desk(directory, token_file) as desk:
        answer = desk.post("rules/versions", text=_text(file), why=why)
    typer.echo(json.dumps(answer) if as_json else f"version {answer['number']} is {answer['state']}")


@app.command()
def approve(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Approve a proposed version; its author cannot."""
    _act("approve", number, directory, why, token_file)


@app.command()
def reject(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Reject a version that is not approved yet, or withdraw your own."""
    _act("reject", number, directory, why, token_file)


@app.command()
def shadow(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Let a version judge everything and decide nothing."""
    _act("shadow", number, directory, why, token_file)


@app.command()
def rollout(
    number: Number,
    percent: Annotated[float, typer.Argument(help="Percentage of customers, above 0 and at most 100.")],
    directory: Directory,
    why: Why,
    token_file: TokenFile = None,
) -> None:
    """Let a version decide for a percentage of customers; again with another percentage changes it."""
    _act("rollout", number, directory, why, token_file, percent=percent)


@app.command()
def hold(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """End a version's shadow run or rollout; it stays approved."""
    _act("hold", number, directory, why, token_file)


@app.command()
def activate(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Let a version decide for all customers, from the next batch on."""
    _act("activate", number, directory, why, token_file)


@app.command()
def rollback(directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Bring back the version that was active before, from the next batch on."""
    _act("rollback", 0, directory, why, token_file)


@app.command()
def retire(number: Number, directory: Directory, why: Why, token_file: TokenFile = None) -> None:
    """Put a version away for good."""
    _act("retire", number, directory, why, token_file)


@app.command()
def brake(directory: Directory, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Show each live rule's share of declines in the brake's window, and which rules are stopped."""
    with open_desk(directory, token_file) as desk:
        answer = desk.get("rules/brake")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for each in answer["rules"]:
        state = "STOPPED" if each["braked"] else ""
        typer.echo(
            f"{each['rule']:40} version {each['version']}: challenge {each['challenge']}, review {each['review']}, "
            f"block {each['block']} of {each['events']} events {state}".rstrip()
        )


@app.command()
def release(
    rule: Annotated[str, typer.Argument(help="The rule's id.")],
    directory: Directory,
    why: Why,
    token_file: TokenFile = None,
) -> None:
    """Let a rule decide again that the brake stopped."""
    with open_desk(directory, token_file) as desk:
        seen = desk.get("rules")["deployed"]["deployment"]
        desk.post("rules/brake/release", rule=rule, why=why, deployment=seen)
    typer.echo(f"{rule} decides again")


@app.command()
def audit(
    directory: Directory,
    after: Annotated[int, typer.Option(min=0, help="Only entries behind this one.")] = 0,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what and why, and whether the trail is whole."""
    with open_desk(directory, token_file) as desk:
        entries: list[dict[str, Any]] = []
        while True:
            page = desk.get(f"rules/audit?after={entries[-1]['sequence'] if entries else after}")
            entries += page["entries"]
            if not page["entries"]:
                break
    if as_json:
        typer.echo(json.dumps({"entries": entries, "whole": page["whole"]}))
        return
    for each in entries:
        version = f" version {each['version']}" if each["version"] else ""
        typer.echo(
            f"{each['sequence']:5}  {time_text(each['at_ms'])}  {each['actor']} {each['action']}{version}: "
            f"{each['detail']}"
        )
    typer.echo("the trail is whole" if page["whole"] else "THE TRAIL WAS CHANGED behind the program's back")


@app.command()
def backtest(
    file: RulesFile,
    directory: Directory,
    since: Annotated[
        str | None, typer.Option("--from", help="First event's time (ISO 8601). Default: the first there is.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="End, not included (ISO 8601). Default: the newest event.")
    ] = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Judge the stored history by a file: hits, precision, recall, money, and the change against the active version.

    Reads the data directory and computes in this process; the node goes on scoring.
    """
    # Loads pyarrow and the rule engine, which the other commands do without.
    from member_node.backtesting import backtest_file, report_text

    first_ms, until_ms = time_option(since, "from", 0), time_option(until, "to", FAR_MS)
    if until_ms <= first_ms:
        raise typer.BadParameter("--to is not after --from")
    with open_desk(directory, token_file) as desk, _progress() as bar:
        task = bar.add_task("judging history", total=None)
        report = backtest_file(
            desk,
            directory,
            file,
            first_ms * 1000,
            until_ms * 1000,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(json.dumps(report) if as_json else report_text(report))


def _act(
    action: str, number: int, directory: Path, why: str, token_file: Path | None, percent: float = 0.0
) -> None:
    """Do it upon the deployment of this moment; ``number`` 0: the active version."""
    with open_desk(directory, token_file) as desk:
        deployed = desk.get("rules")["deployed"]
        version = number or _active(desk, deployed)
        answer = desk.post(
            f"rules/versions/{version}/act",
            action=action,
            why=why,
            deployment=deployed["deployment"],
            percent=percent,
        )
    typer.echo(f"version {version} is {answer['version']['state']}")
    typer.echo(_deployed_text(answer["deployed"]))


def _active(desk: BankDesk, deployed: dict[str, Any]) -> int:
    if deployed["active"] is None:
        raise CommandError(f"{desk.party} has no active version")
    return int(deployed["active"])


def _deployed_text(deployed: dict[str, Any]) -> str:
    if deployed["active"] is None:
        return "no version is active"
    parts = [f"deployment {deployed['deployment']}: version {deployed['active']} is active"]
    if deployed["rollout"]:
        parts.append(f"version {deployed['rollout']} decides for {deployed['percent']:g} % of customers")
    if deployed["shadows"]:
        parts.append(f"in shadow: {', '.join(map(str, deployed['shadows']))}")
    return "; ".join(parts)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}") from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
