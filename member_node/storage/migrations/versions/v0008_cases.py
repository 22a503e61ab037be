"""Alerts and cases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TEXT, INT, BIG, FLOAT = sa.Text, sa.Integer, sa.BigInteger, sa.Float

# table -> (primary key (numbered by the database if an integer), other columns, indexed columns, nullable columns)
TABLES: dict[str, tuple[tuple[str, type], dict[str, type], tuple[str, ...], tuple[str, ...]]] = {
    "cases": (
        ("case_id", INT),
        {
            "kind": TEXT,
            "customer": TEXT,
            "status": TEXT,
            "severity": INT,
            "first_us": BIG,
            "last_us": BIG,
            "alerts": INT,
            "amount": FLOAT,
            "assignee": TEXT,
            "decision": TEXT,
            "decided_by": TEXT,
            "decided_at": BIG,
            "opened_at": BIG,
        },
        ("customer", "status", "opened_at"),
        (),
    ),
    "alerts": (
        ("source", TEXT),
        {
            "case_id": INT,
            "event_id": TEXT,
            "time_us": BIG,
            "verdict": INT,
            "rule": TEXT,
            "amount": FLOAT,
            "score": FLOAT,
            "reasons": TEXT,
        },
        ("case_id", "event_id"),
        ("score",),
    ),
    "case_notes": (
        ("note_id", INT),
        {"case_id": INT, "at": BIG, "author": TEXT, "action": TEXT, "text": TEXT},
        ("case_id",),
        (),
    ),
}


def upgrade() -> None:
    """Create every table of :data:`TABLES`."""
    for name, ((key, kind), columns, indexed, nullable) in TABLES.items():
        op.create_table(
            name,
            sa.Column(key, kind(), primary_key=True, autoincrement=kind is INT),
            *(sa.Column(column, of(), nullable=column in nullable) for column, of in columns.items()),
        )
        for column in indexed:
            op.create_index(f"ix_{name}_{column}", name, [column])


def downgrade() -> None:
    """Drop every table of :data:`TABLES`."""
    for name in TABLES:
        op.drop_table(name)
