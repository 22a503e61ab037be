"""The ``subrosa`` command: finds the command of each part and imports only the one that is called.

A regulator who verifies a log must not wait for Ray or TenSEAL to load, so the parts are named here as text.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    # Typer carries its own click; its classes are the only ones its groups may be mixed with.
    from typer._click import Command, Context, HelpFormatter

# command -> (module with a Typer app, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "sandbox": ("sandbox.cli", "Run a whole consortium on this machine and draw what it achieved."),
    "coordinator": ("coordinator.cli", "Set up and serve a coordinator; export its log."),
    "member": ("member_node.cli", "Set up and serve a bank's member node; replay a file through it."),
    "indicator": (
        "member_node.indicator_cli",
        "Share fraud indicators from a running member node; look one up.",
    ),
    "rules": ("member_node.rules_cli", "Write, approve, roll out and watch the rules of a running node."),
    "list": ("member_node.lists_cli", "Keep block, allow, watch and exemption lists of a running node."),
    "model": ("member_node.models_cli", "Train models from the bank's history; shadow, promote, roll back."),
    "case": ("member_node.cases_cli", "Work the alerts that scoring raised: assign, note, decide."),
    "inquiry": ("member_node.inquiry_cli", "Ask the consortium for a joint statistic."),
    "features": ("member_node.features_cli", "Compute features of a file through the streaming engine."),
    "policy": ("governance.policy.cli", "Show a policy bundle and try decisions against it."),
    "audit": ("governance.log.cli", "Verify an exported governance log offline; export it."),
    "bench": ("sandbox.bench.cli", "Measure each part as a ratio to its peers or its primitive operations."),
    "doctor": ("sandbox.doctor", "Say what this machine can run and how to mend what is missing."),
}


class LazyGroup(TyperGroup):
    """A group whose subcommands are imported when they are called; its own help imports none of them."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = typer.main.get_command(import_module(module).app)
        if cmd_name == "audit":
            # Verifying needs files alone; writing an export needs the coordinator's store, so it is lent from there.
            command.add_command(typer.main.get_command(_export), "export")  # type: ignore[attr-defined]
        return command

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


_export = typer.Typer(add_completion=False)


@_export.command("export")
def _write_export(
    directory: Annotated[Path, typer.Option("--directory", help="The coordinator's data directory.")],
    out: Annotated[Path, typer.Option("--out", help="New directory for the exported log.")],
    reader: Annotated[
        str, typer.Option("--reader", help="Party id the export is for; the coordinator if empty.")
    ] = "",
) -> None:
    """Write a coordinator's whole log to files, verify them, and say what they hold (the coordinator's operator)."""
    import_module("coordinator.cli").export(directory, out, reader)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Subrosa: competing banks fight fraud together without showing each other any data.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"subrosa {version('subrosa')}")
        raise typer.Exit


@app.callback()
def subrosa(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """The parts are found by :class:`LazyGroup`."""


main = typer.main.get_command(app)


if __name__ == "__main__":
    main()
