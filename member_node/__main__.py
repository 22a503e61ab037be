"""``python -m member_node --directory DIR``: serve one member node until it is told to stop."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from member_node.secret_files import SecretFileError
from member_node.settings import MemberSettings, SettingsError, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 4


def serve(settings: MemberSettings) -> None:
    """Serve until SIGTERM or SIGINT; one worker, because the node's state is in this process.

    From here on this process makes files that only its user can read.
    """
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uvicorn.run(
        load(settings),
        host=settings.host,
        port=settings.port,
        workers=1,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )


def load(settings: MemberSettings) -> FastAPI:
    """The application, loaded with the collector of garbage at rest: what is loaded stays for good, and looking through
    it again and again is a fifth of the time of a start. Later collections leave it out, too."""
    gc.disable()
    try:
        from member_node.app import create_app

        return create_app(settings)
    finally:
        gc.freeze()
        gc.enable()


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="member_node", description="Serve a bank's member node.")
    parser.add_argument("--directory", type=Path, required=True, help="the member's data directory")
    chosen = parser.parse_args(arguments)
    try:
        serve(load_settings(chosen.directory))
    except (SettingsError, SecretFileError) as error:
        print(f"member_node: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
