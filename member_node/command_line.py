"""What the commands of a bank's staff share: finding the node's desk, dates, and errors in one line each."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer

from member_node.client.desk import TOKEN_FILE, BankDesk, BankUnreachableError, DeskError
from member_node.settings import MemberSettings, SettingsError, load_settings

EPOCH_DAY = dt.date(1970, 1, 1)

Directory = Annotated[Path, typer.Option("--directory", help="Data directory of the running member node.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", envvar="SUBROSA_TOKEN_FILE", help="Your own token; the operator's without it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class CommandError(Exception):
    """A command cannot be carried out; the text is one sentence with the fix."""


@contextmanager
def open_desk(directory: Path, token_file: Path | None = None) -> Iterator[BankDesk]:
    """The bank-internal API of the node that serves ``directory``, by the operator's or a person's own token.

    Inside, every error an operator can mend ends the command with one line and exit code 1.
    """
    try:
        settings = load_settings(directory)
        desk = _desk(settings, token_file)
    except (SettingsError, CommandError) as error:
        raise refuse(f"{directory}: {error}") from error
    try:
        yield desk
    except BankUnreachableError as error:
        if isinstance(error.__cause__, httpx.ConnectError):
            text = (
                f"{settings.party} does not answer at {settings.url}: "
                f"start it with `subrosa member serve --directory {directory}`"
            )
        else:
            text = f"{error}. It may still be at it: look at its output, then repeat the command"
        raise refuse(text) from error
    except (DeskError, CommandError) as error:
        raise refuse(str(error)) from error
    finally:
        desk.close()


def refuse(text: str) -> typer.Exit:
    """Say ``text`` on standard error as one line; raise what it returns to end the command with exit code 1."""
    typer.echo(" ".join(text.split()), err=True)
    return typer.Exit(1)


def parse_day(text: str) -> int:
    """``YYYY-MM-DD`` as days since 1970-01-01; raises :class:`typer.BadParameter`."""
    try:
        return (dt.date.fromisoformat(text) - EPOCH_DAY).days
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a day written YYYY-MM-DD") from error


def parse_time_ms(text: str) -> int:
    """ISO 8601 (UTC without an offset, midnight without a time) in unix milliseconds; raises :class:`ValueError`."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("not a time in ISO 8601, such as 2026-03-01 or 2026-03-01T09:30:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    milliseconds = (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)
    if milliseconds < 0:
        raise ValueError("before 1970")
    return milliseconds


def time_option(text: str | None, name: str, default_ms: int) -> int:
    """The option ``name`` in unix milliseconds, ``default_ms`` if it was not given."""
    if text is None:
        return default_ms
    try:
        return parse_time_ms(text)
    except ValueError as error:
        raise typer.BadParameter(f"--{name}: {error}") from error


def now_ms() -> int:
    """This machine's clock in unix milliseconds."""
    return int(time.time() * 1000)


def day_text(day: int) -> str:
    """Days since 1970-01-01 as ``YYYY-MM-DD``."""
    return (EPOCH_DAY + dt.timedelta(days=day)).isoformat()


def time_text(milliseconds: int) -> str:
    """Unix milliseconds as ``YYYY-MM-DD HH:MM`` in UTC."""
    return dt.datetime.fromtimestamp(milliseconds / 1000, tz=dt.UTC).strftime("%Y-%m-%d %H:%M")


def _desk(settings: MemberSettings, token_file: Path | None) -> BankDesk:
    name = TOKEN_FILE if token_file is None else str(token_file)
    try:
        # Whoever reads it acts under its owner's name, and may be the second person to themselves.
        if token_file is not None and token_file.stat().st_mode & 0o077:
            raise CommandError(f"{name} is open to other users: chmod 600 it")
        return BankDesk(settings.party, settings.url, settings.directory, token_file=token_file)
    except FileNotFoundError as error:
        fix = "restore it, or make the node again" if token_file is None else "ask an admin for a new token"
        raise CommandError(f"{name} is missing: {fix}") from error
    except OSError as error:
        raise CommandError(
            f"{name}: {error.strerror}: run this as the user that runs {settings.party}"
        ) from error
