"""The ``subrosa`` command: finds the command of each part and imports only the one that is called.

A regulator who verifies a log must not wait for Ray or TenSEAL to load, so the parts are named here as text.
"""

from __future__ import annotations

from importlib import import_module

import click
import typer

# command -> (module with a Typer app, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "sandbox": ("sandbox.cli", "Run a whole consortium on this machine and draw what it achieved."),
    "coordinator": ("coordinator.cli", "Set up and serve a coordinator; export its log."),
    "member": ("member_node.cli", "Set up and serve a bank's member node; replay a file through it."),
    "indicator": (
        "member_node.indicator_cli",
        "Share fraud indicators from a running member node; look one up.",
    ),
    "inquiry": ("member_node.inquiry_cli", "Ask the consortium for a joint statistic."),
    "features": ("member_node.features_cli", "Compute features of a file through the streaming engine."),
    "policy": ("governance.policy.cli", "Show a policy bundle and try decisions against it."),
    "audit": ("governance.log.cli", "Verify an exported governance log offline."),
    "bench": ("sandbox.bench.cli", "Measure each part as a ratio to its peers or its primitive operations."),
    "doctor": ("sandbox.doctor", "Say what this machine can run and how to mend what is missing."),
}


class LazyGroup(click.Group):
    """A click group whose subcommands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return typer.main.get_command(import_module(module).app)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, help="Subrosa: competing banks fight fraud together without showing each other any data."
)
@click.version_option(package_name="subrosa")
def main() -> None:
    """Entry point of the console script."""


if __name__ == "__main__":
    main()
