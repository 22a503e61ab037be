"""Exporting the whole log as files that anyone can verify offline; also while the coordinator serves."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from pathlib import Path

from coordinator.service.log import GovernanceLog
from coordinator.service.permission import close_counts
from coordinator.settings import load_settings
from coordinator.storage import log as stored
from coordinator.storage.database import Database
from governance.log.audit import verify_export
from governance.log.entries import ExportEntry
from governance.log.export import write_export
from governance.log.report import AuditReport


def export_log(directory: Path, out: Path, *, reader: str = "") -> AuditReport:
    """Write the log of a data directory to the new directory ``out``, verify it, and return what it says.

    What is counted so far is logged first. That the log left for ``reader`` (a party id; by default the coordinator)
    is itself an entry. Raises
    :class:`~governance.log.export.AuditError` if what was written does not verify.
    """
    settings = load_settings(directory)
    with closing(Database.in_directory(settings.directory, settings.database_url)) as database:
        log = GovernanceLog(
            database,
            origin=settings.origin,
            key=settings.log_key,
            clock=time.time,
            random=secrets.token_bytes,
        )
        reader = reader or settings.party
        with log.transaction() as transaction:
            close_counts(transaction)
            size = transaction.first + len(transaction.staged)
            transaction.append(ExportEntry(at=transaction.at, parties=[reader], reader=reader, size=size))
        head = log.head
        with database.read() as connection:
            write_export(
                out,
                note=head.note,
                origin=settings.origin,
                verify_key=log.verifier_key,
                entries=(
                    (entry.salt, entry.body)
                    for entry in stored.every_entry(connection)
                    if entry.index < head.size
                ),
            )
    return verify_export(out, log.verifier_key)
