"""``subrosa model train|register|list|show|shadow|promote|rollback|retire|drift``: models from data to service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from member_node.command_line import (
    AsJson,
    CommandError,
    Directory,
    TokenFile,
    open_desk,
    time_option,
    time_text,
)

if TYPE_CHECKING:
    from scoring.models.dataset import DataWindow

DAY_US = 86_400_000_000
SHOWN_COLUMNS = 15

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train models on the bank's own history, put them into service, watch their drift.",
)

Version = Annotated[int, typer.Argument(help="The model's version, as `subrosa model list` shows it.", min=1)]
Why = Annotated[str, typer.Option(help="Why, for the audit trail.")]


@app.command()
def train(
    directory: Directory,
    name: Annotated[str, typer.Option(help="What to call it: letters, digits, -, _ and dots.")] = "fraud",
    until: Annotated[
        str | None, typer.Option(help="End of the validation window (ISO 8601). Default: the newest event.")
    ] = None,
    train_days: Annotated[float, typer.Option(min=0.01, help="Length of the training window.")] = 30.0,
    valid_days: Annotated[float, typer.Option(min=0.01, help="Length of the validation window.")] = 7.0,
    label_delay_days: Annotated[
        float, typer.Option(min=0, help="Gap between the two: how long until a fraud is known.")
    ] = 7.0,
    feature: Annotated[
        list[str] | None, typer.Option(help="A column to learn from; repeat it. Default: all features.")
    ] = None,
    trees: Annotated[int, typer.Option(min=1, max=5000, help="How many trees.")] = 200,
    leaves: Annotated[int, typer.Option(min=2, max=1024, help="Leaves of a tree at most.")] = 31,
    learning_rate: Annotated[float, typer.Option(help="Step of each tree.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds and rows give equal models.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads for training.")] = 1,
    precision: Annotated[
        float, typer.Option(min=0, max=1, help="Precision that the suggested threshold must reach.")
    ] = 0.9,
    only_labelled: Annotated[
        bool, typer.Option("--only-labelled", help="Leave out events without an outcome.")
    ] = False,
    only_informed: Annotated[
        bool, typer.Option("--only-informed", help="Leave out events scored without the consortium.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the model to this file, do not register it.")
    ] = None,
    why: Why = "",
    token: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Train on the node's own history and register the model; it decides nothing until somebody else promotes it.

    Reads the data directory, computes in this process, and leaves the node to its scoring.
    """
    from member_node.service.training import RowChoice, ScoredHistory, train_from_history
    from member_node.settings import load_settings
    from member_node.storage.database import Database
    from member_node.storage.outcomes import OutcomeStore
    from member_node.streams.durable import replace_file
    from scoring.models.artefact import ArtefactError, artefact_digest
    from scoring.models.dataset import DatasetError, DataWindow
    from scoring.models.training import TrainingOptions

    with open_desk(directory, token) as desk, _progress() as bar:
        desk.post("models/history")
        listed = desk.get("models")
        task = bar.add_task("reading history", total=None)
        try:
            history = ScoredHistory(directory / "history")
            names = tuple(feature or _trainable(history.features(), listed["columns"]))
            end_us = time_option(until, "until", history.span_us()[1] // 1000) * 1000 + (until is None) * 1000
            window = DataWindow.ending(
                end_us,
                train_us=int(train_days * DAY_US),
                valid_us=int(valid_days * DAY_US),
                label_delay_us=int(label_delay_days * DAY_US),
            )
            database = Database.in_directory(directory, load_settings(directory).database_url)
            try:
                outcomes = OutcomeStore(database).labels()
            finally:
                database.close()
            options = TrainingOptions(
                trees=trees,
                leaves=leaves,
                learning_rate=learning_rate,
                seed=seed,
                threads=threads,
                target_precision=precision,
            )
            artefact, content = train_from_history(
                name,
                history,
                outcomes,
                names,
                window,
                choice=RowChoice(only_labelled=only_labelled, only_informed=only_informed),
                options=options,
                advance=lambda done, of: bar.update(task, description="trees", completed=done, total=of),
            )
            replace_file(out or directory / "models" / f"{name}.trained", content)
        except (ArtefactError, DatasetError, OSError) as error:
            raise CommandError(f"{desk.party}: {error}") from error
        digest = artefact_digest(content).hex()
        answer = (
            {"file": str(out)} if out is not None else desk.post("models", name=name, digest=digest, why=why)
        )
        bar.stop()
        import msgspec

        answer["card"] = msgspec.to_builtins(artefact.card)
        typer.echo(json.dumps(answer) if as_json else _trained(answer, window))


@app.command()
def register(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `train --out` wrote.")],
    directory: Directory,
    why: Why = "",
    token: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Register a model that was trained elsewhere; it decides nothing until somebody else promotes it."""
    from member_node.streams.durable import replace_file
    from scoring.models.artefact import MAX_ARTEFACT_BYTES, artefact_digest

    with open_desk(directory, token) as desk:
        if file.stat().st_size > MAX_ARTEFACT_BYTES:
            raise CommandError(f"{file} is too large to be a model")
        content = file.read_bytes()
        replace_file(directory / "models" / "given.trained", content)
        answer = desk.post("models", name="given", digest=artefact_digest(content).hex(), why=why)
    typer.echo(json.dumps(answer) if as_json else _line(answer))


@app.command("list")
def list_models(directory: Directory, token: TokenFile = None, as_json: AsJson = False) -> None:
    """All models, the newest first, and what serves now."""
    with open_desk(directory, token) as desk:
        answer = desk.get("models")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for each in answer["models"]:
        typer.echo(_line(each))
    if not answer["models"]:
        typer.echo("no model is registered: rules decide alone")
    serving = answer["serving"]
    for version, why in serving["out_of_service"].items():
        typer.echo(f"OUT OF SERVICE  model {version}: {why}", err=True)
    for version, rows in serving["rows_without_score"].items():
        if rows:
            typer.echo(f"model {version} gave no score for {rows} events since the node started", err=True)


@app.command()
def show(version: Version, directory: Directory, token: TokenFile = None, as_json: AsJson = False) -> None:
    """One model: data, parameters, quality, thresholds, and who changed its state."""
    with open_desk(directory, token) as desk:
        answer = desk.get(f"models/{version}")
    typer.echo(json.dumps(answer) if as_json else _card(answer))


@app.command()
def shadow(
    version: Version, directory: Directory, why: Why = "", token: TokenFile = None, as_json: AsJson = False
) -> None:
    """Let a registered model score every event beside the active one, without deciding."""
    _change(f"models/{version}/shadow", directory, why, token, as_json)


@app.command()
def promote(
    version: Version, directory: Directory, why: Why = "", token: TokenFile = None, as_json: AsJson = False
) -> None:
    """Make a model the active one from the next batch on; by somebody else than who registered it."""
    _change(f"models/{version}/promote", directory, why, token, as_json)


@app.command()
def rollback(directory: Directory, why: Why = "", token: TokenFile = None, as_json: AsJson = False) -> None:
    """Go back to the model that the active one took over from."""
    _change("models/rollback", directory, why, token, as_json)


@app.command()
def retire(
    version: Version, directory: Directory, why: Why = "", token: TokenFile = None, as_json: AsJson = False
) -> None:
    """Take a model out of service for good; without an active one rules decide alone."""
    _change(f"models/{version}/retire", directory, why, token, as_json)


@app.command()
def drift(
    version: Version,
    directory: Directory,
    since: Annotated[
        str | None, typer.Option(help="First event (ISO 8601). Default: seven days before the end.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="End (ISO 8601). Default: the newest event.")] = None,
    token: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """How far the history has moved from what the model was trained on: below 0.1 stable, above 0.25 major (PSI)."""
    with open_desk(directory, token) as desk, _progress() as bar:
        bar.add_task("scoring history again", total=None)
        asked = {"since_ms": time_option(since, "since", 0), "until_ms": time_option(until, "until", 0)}
        answer = desk.post(f"models/{version}/drift", **asked)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(
        f"{answer['level'].upper()}  model {version} on {answer['rows_now']} events "
        f"{time_text(answer['since_us'] // 1000)} to {time_text(answer['until_us'] // 1000)} UTC, "
        f"trained on {answer['rows_then']}"
    )
    typer.echo(f"{'column':36} {'PSI':>8} {'KS':>7} {'1 % KS':>7}  missing then, now")
    for each in [answer["score"], *answer["features"][:SHOWN_COLUMNS]]:
        typer.echo(
            f"{each['name'][:36]:36} {_number(each['psi'], 8)} {_number(each['ks'], 7)} "
            f"{_number(each['critical'], 7)}  {each['missing_then']:.1%}, {each['missing_now']:.1%}  {each['level']}"
        )
    if (rest := len(answer["features"]) - SHOWN_COLUMNS) > 0:
        typer.echo(f"and {rest} columns with less: --json shows all")


def _trainable(features: tuple[str, ...], columns: list[str] | None) -> list[str]:
    """Features that the open stream offers to a model; all of the history where no stream is open."""
    return [name for name in features if columns is None or name in columns]


def _change(path: str, directory: Path, why: str, token: Path | None, as_json: bool) -> None:
    with open_desk(directory, token) as desk:
        answer = desk.post(path, why=why)
    typer.echo(json.dumps(answer) if as_json else _line(answer))


def _line(each: dict[str, Any]) -> str:
    quality = f"AUC {_number(each['roc_auc'], 0)}, AP {_number(each['average_precision'], 0)}"
    return (
        f"{each['version']:4}  {each['state']:10}  {each['name']}  {quality}, {each['features']} features, "
        f"by {each['registered_by']} {each['registered_at'][:16].replace('T', ' ')} UTC"
    )


def _trained(answer: dict[str, Any], window: DataWindow) -> str:
    card = answer["card"]
    lines = [
        f"trained on {card['train_rows']} events, {card['train_frauds']} frauds; measured on "
        f"{card['metrics']['rows']}, {card['metrics']['frauds']} frauds, from "
        f"{time_text(window.valid_first_us // 1000)} UTC",
        *_quality(card["metrics"]),
    ]
    if "version" in answer:
        lines.append(
            f"registered as version {answer['version']}: `subrosa model shadow {answer['version']}` lets it score "
            "beside the active one, `subrosa model promote` by somebody else makes it decide"
        )
    else:
        lines.append(f"written to {answer['file']}")
    return "\n".join(lines)


def _card(answer: dict[str, Any]) -> str:
    card = answer["card"]
    window = card["window"]
    lines = [
        _line(answer),
        f"digest {answer['digest']}",
        f"trained on {time_text(window['train_first_us'] // 1000)} to {time_text(window['train_until_us'] // 1000)} "
        f"UTC, {card['train_rows']} events, {card['train_frauds']} frauds ({card['trained_with']})",
        "parameters " + ", ".join(f"{name} {value}" for name, value in card["parameters"].items()),
        *_quality(card["metrics"]),
        "features " + ", ".join(card["features"]),
    ]
    for each in answer["changes"]:
        when = time_text(each["at_us"] // 1000)
        lines.append(f"{when}  {each['verb']} by {each['who']}{': ' if each['why'] else ''}{each['why']}")
    return "\n".join(lines)


def _quality(metrics: dict[str, Any]) -> list[str]:
    lines = [
        f"ROC AUC {_number(metrics['roc_auc'], 0)}, average precision {_number(metrics['average_precision'], 0)}, "
        f"card precision@100 {_number(metrics['card_precision_100'], 0)}",
        f"{'threshold':>9} {'flagged':>8} {'frauds':>7} {'precision':>9} {'recall':>7} {'money caught':>13} "
        f"{'genuine money':>14}",
    ]
    for each in metrics["thresholds"]:
        lines.append(
            f"{each['threshold']:9.4f} {each['flagged']:8} {each['frauds']:7} {_number(each['precision'], 9)} "
            f"{_number(each['recall'], 7)} {each['money']:13.2f} {each['genuine_money']:14.2f}"
        )
    target, suggested = metrics["target_precision"], metrics["suggested_threshold"]
    lines.append(
        f"no threshold reaches a precision of {target}"
        if suggested is None
        else f"suggested threshold {suggested:.4f}: the lowest with a precision of {target}"
    )
    return lines


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.3f}" if width else f"{value:.3f}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
