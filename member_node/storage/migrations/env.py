"""Alembic's entry point: migrates on the connection that :class:`member_node.storage.database.Database` hands over."""

from __future__ import annotations

from alembic import context

from member_node.storage.models import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
