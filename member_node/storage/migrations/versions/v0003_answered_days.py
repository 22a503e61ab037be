"""Answers to joint statistics are kept by the day, each bound to one cohort, instead of by the question.

Answers kept by the question name no cohort, so they cannot be carried over; no node was in service with them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the table of questions by the table of days."""
    op.create_table(
        "answered_days",
        sa.Column("template", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("cohort", sa.LargeBinary(32), nullable=False),
        sa.Column("directory", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.drop_table("statistics")


def downgrade() -> None:
    """Put the empty table of questions back."""
    op.create_table(
        "statistics",
        sa.Column("question", sa.LargeBinary, primary_key=True, autoincrement=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.drop_table("answered_days")
