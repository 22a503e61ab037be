"""Exemptions that came with the decision of a case and wait for an approver."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TEXTS = ("customer", "rule", "reason", "state", "author", "decided_by", "why")
TIMES = ("until_us", "proposed_at", "decided_at")


def upgrade() -> None:
    """One row a case."""
    op.create_table(
        "case_exemptions",
        sa.Column("case_id", sa.Integer(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in TEXTS),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in TIMES),
    )
    op.create_index("ix_case_exemptions_state", "case_exemptions", ["state"])


def downgrade() -> None:
    """What waited is gone; the notes of the cases keep it."""
    op.drop_table("case_exemptions")
