"""``python -m coordinator --directory DIR`` serves a data directory."""

from __future__ import annotations

import typer

from coordinator.cli import serve

if __name__ == "__main__":
    typer.run(serve)
