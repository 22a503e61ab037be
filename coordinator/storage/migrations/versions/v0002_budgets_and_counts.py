"""Budgets of parties, and decisions counted until they are logged as totals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "party_budgets",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("budget", sa.String(length=64), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("party", "budget", name=op.f("pk_party_budgets")),
    )
    op.create_table(
        "read_counts",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("purpose", sa.String(length=64), nullable=False),
        sa.Column("rule", sa.String(length=128), nullable=False),
        sa.Column("policy_epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("period_start", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "party", "action", "purpose", "rule", "policy_epoch", name=op.f("pk_read_counts")
        ),
    )
    op.create_table(
        "refusal_counts",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("rule", sa.String(length=128), nullable=False),
        sa.Column("policy_epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("party", "action", "rule", "policy_epoch", name=op.f("pk_refusal_counts")),
    )
