"""``subrosa member``: set up a bank's data directory, serve it, watch it, replay a file of transactions through it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crypto.errors import CryptoError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.roll import PartyCard
from member_node import setup, staff_cli
from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    day_text,
    open_desk,
    parse_day,
    refuse,
    time_text,
)
from member_node.secret_files import SecretFileError
from member_node.settings import MAX_SHARDS, SettingsError, load_settings

DAY_MS = 86_400_000
OPERATOR_ERRORS = (CryptoError, MalformedError, MembershipError, OSError, SecretFileError, SettingsError)

Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        min=1,
        max=MAX_SHARDS,
        help="Processes that keep the features, in place of the setting; 1: the node's own.",
    ),
]
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Set up and serve a member node; replay a file through it.",
)


app.add_typer(staff_cli.app, name="staff")


@contextmanager
def _explained() -> Iterator[None]:
    """What an operator can mend is said in one line, without a traceback."""
    try:
        yield
    except OPERATOR_ERRORS as error:
        raise refuse(f"member: {error}") from error


@app.command()
def init(
    directory: Annotated[Path, typer.Option("--directory", help="Data directory to make.")],
    party: Annotated[str, typer.Option(help="Party id, such as bank-a.")],
    name: Annotated[str, typer.Option(help="Name of the bank.")],
    coordinator_url: Annotated[str, typer.Option(help="Where the coordinator listens.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8701,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Make a data directory with fresh secrets; prints the card for the coordinator's operator."""
    os.umask(0o077)
    with _explained():
        card = setup.init_member(
            directory, party=party, name=name, host=host, port=port, coordinator_url=coordinator_url
        )
    typer.echo(card.to_json())


@app.command()
def card(directory: Directory) -> None:
    """Print the card of a data directory again."""
    with _explained():
        typer.echo(setup.member_card(directory).to_json())


@app.command()
def trust(
    directory: Directory,
    coordinator_card: Annotated[
        Path, typer.Argument(help="The coordinator's card, a JSON file carried by hand.")
    ],
    log_key: Annotated[str, typer.Option(help="The log's verifier key: name+hash+key.")],
) -> None:
    """Pin the coordinator's key and the log's key; everything later is verified against them."""
    with _explained():
        card = PartyCard.from_json(coordinator_card.read_text(encoding="utf-8"))
        setup.trust(directory, card, log_key, log_key.partition("+")[0])
    typer.echo(f"{card.party} and its log are pinned")


@app.command()
def pin(
    directory: Directory,
    party_card: Annotated[
        Path,
        typer.Argument(help="Card of another member or a regulator, a JSON file from that party itself."),
    ],
) -> None:
    """Pin another party's key; a roll that names a party whose card is not pinned is refused."""
    with _explained():
        card = PartyCard.from_json(party_card.read_text(encoding="utf-8"))
        setup.pin_party(directory, card)
    typer.echo(f"{card.party} ({card.role}) is pinned")


@app.command("directory")
def public_directory(
    directory: Directory,
    file: Annotated[Path, typer.Argument(help="Public ids, UTF-8, one a line; the same file at every bank.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "terminals",
) -> None:
    """Install the public directory that joint statistics address by position."""
    with _explained():
        public = setup.install_directory(directory, file, dataset=dataset)
    typer.echo(json.dumps({"dataset": public.dataset, "cells": public.cells, "digest": public.digest.hex()}))


@app.command()
def serve(directory: Directory, shards: Shards = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    from member_node.__main__ import serve as run

    with _explained():
        settings = load_settings(directory)
        run(settings if shards is None else replace(settings, shards=shards))


@app.command()
def status(directory: Directory, as_json: AsJson = False) -> None:
    """What the running node knows of itself, and what others asked of it."""
    with open_desk(directory) as desk:
        answer = desk.get("status")
    typer.echo(json.dumps(answer) if as_json else _status_text(answer))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="Transactions, Parquet or CSV.")],
    directory: Directory,
    mapping: Annotated[
        Path, typer.Option(help="TOML that maps the file's columns to the transaction schema.")
    ],
    until: Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD. Default: the file's last.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a file through the running node, day by day: confirm outcomes, share, score. Goes on where it stopped."""
    with open_desk(directory) as desk:
        opened = desk.post("replay/open", events=str(file.resolve()), mapping=str(mapping.resolve()))
        if opened["rejected"]:
            typer.echo(f"{opened['rejected']} rows are refused: see {opened['rejects']}", err=True)
        if not opened["rows"]:
            raise CommandError(f"{file}: has no row that can be replayed")
        last = opened["last_day"] if until is None else min(parse_day(until), opened["last_day"])
        totals: dict[str, int] = {}
        scored = 0
        with _progress() as bar:
            task = bar.add_task("replaying", total=max(0, last - opened["first_day"] + 1))
            for day in range(opened["first_day"], last + 1):
                bar.update(task, description=day_text(day))
                desk.post("replay/confirm", until_ms=day * DAY_MS)
                shared = desk.post("replay/share", day=day)
                answer = desk.post("replay/score", until_ms=(day + 1) * DAY_MS)
                scored += answer["scored"]
                for verdict, count in answer["verdicts"].items():
                    totals[verdict] = totals.get(verdict, 0) + count
                for text in filter(None, (shared["distrust"], shared["reason"])):
                    bar.console.print(f"{day_text(day)}: {text}", soft_wrap=True)
                bar.advance(task)
    if as_json:
        typer.echo(json.dumps({"scored": scored, "verdicts": totals}))
    else:
        counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(totals.items()))
        typer.echo(f"{scored} transactions scored: {counted or 'none'}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _status_text(answer: dict[str, Any]) -> str:
    lines = [f"{answer['party']} ({answer['name']}): {'ready' if answer['ready'] else 'NOT READY'}"]
    if answer["joined"]:
        lines += [
            f"  roll {answer['roll_version']}, policy epoch {answer['policy_epoch']}, key epoch {answer['epoch']}",
            f"  log: {answer['log_size']} entries verified, checkpoint {answer['checkpoint_age_seconds']} s old",
            f"  index: {answer['index']['labels']} labels in {answer['index']['deltas']} deltas; "
            f"{answer['cached_tags']} tags known",
        ]
        lines += [f"  inquiries, {how}: {count}" for how, count in sorted(answer["inquiries"].items())]
        lines += [
            f"  key holder {party} is asked no more: {why}"
            for party, why in answer["excluded_holders"].items()
        ]
    lines += _scoring_lines(answer.get("scoring", {}))
    lines += [f"  thread {name}: {state}" for name, state in answer["threads"].items() if state != "running"]
    lines += [
        f"  FAULT of {each['party']} ({each['what']}): {each['reason']}" for each in answer["faults"][:10]
    ]
    return "\n".join(lines)


def _scoring_lines(scoring: dict[str, Any]) -> list[str]:
    if not scoring:
        return []
    without = f", without {', '.join(scoring['degraded'])}" if scoring["degraded"] else ""
    lines = [f"  scoring: {scoring['state']}{without}; {scoring['open_cases']} open cases"]
    if "journal" in scoring:
        journal, snapshot, history = scoring["journal"], scoring["snapshot"], scoring["history"]
        age = snapshot["age_seconds"]
        lines += [
            f"  journal: frames {journal['first']} to {journal['last']}, {journal['bytes'] / 2**20:.1f} MiB in "
            f"{journal['segments']} segments",
            "  snapshot: none yet"
            if age is None
            else f"  snapshot: frame {snapshot['sequence']}, {age} s old",
            f"  history: {history['rows']} events, {history['waiting_rows']} of them not in files yet",
        ]
        lines += [f"  {name}: {part['failure']}" for name, part in scoring.items() if _failed(part)]
        rules = scoring["rules"]
        stopped = ", ".join(rules["stopped"])
        lines.append(
            f"  rules: version {' and '.join(map(str, rules['versions'])) or 'none'}, "
            f"{f'STOPPED by the brake: {stopped}' if stopped else 'none stopped by the brake'}"
        )
    lines += [
        f"  {each['kind']} list {name}: {each['entries']} entries" for name, each in scoring["lists"].items()
    ]
    model, drift = scoring["model"], scoring["drift"]
    lines.append(f"  model: {'none' if model['active'] is None else _model_text(model)}")
    if model["failure"]:
        lines.append(f"  MODEL FAILS: {model['failure']}")
    if drift is not None:
        lines.append(f"  drift of model {drift['version']}: {_drift_text(drift)}")
    return lines


def _failed(part: Any) -> bool:
    return isinstance(part, dict) and bool(part.get("failure")) and "active" not in part


def _model_text(model: dict[str, Any]) -> str:
    shadows = ", ".join(map(str, model["shadows"]))
    return f"{model['name']} {model['active']}{f', shadows {shadows}' if shadows else ''}"


def _drift_text(drift: dict[str, Any]) -> str:
    at = time_text(drift["measured_at"] * 1000)
    if drift["note"]:
        return f"not told, {drift['note']} ({at} UTC)"
    moved = ", ".join(f"{name} {psi:.2f}" for name, psi in drift["columns"])
    return f"{drift['level']}, stability index {moved} over {drift['rows']} events ({at} UTC)"
