"""Tables of the bank's own stream: outcomes, confirmed frauds, cursors, daily aggregates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT, INT, BIG, BYTES = sa.Text, sa.Integer, sa.BigInteger, sa.LargeBinary

# table -> (primary key columns, other columns, indexed columns)
TABLES: dict[str, tuple[dict[str, type], dict[str, type], tuple[str, ...]]] = {
    "outcomes": ({"event_id": TEXT}, {"fraud": INT, "known_at_us": BIG}, ()),
    "confirmed_frauds": (
        {"event_id": TEXT},
        {"time_us": BIG, "day": INT, "cell": INT, "known_at_us": BIG, "customer": TEXT, "weighed": INT},
        ("day", "known_at_us"),
    ),
    "fraud_indicators": ({"kind": TEXT, "value": TEXT, "event_id": TEXT}, {}, ()),
    "pending_findings": (
        {"kind": TEXT, "value": TEXT},
        {"distinct_victims": INT, "first_seen_ms": BIG, "last_seen_ms": BIG, "found_at_ms": BIG},
        (),
    ),
    "stream_cursors": ({"name": TEXT}, {"value": BIG}, ()),
    "stream_sources": ({"name": TEXT}, {"content": TEXT}, ()),
    "daily_aggregates": ({"dataset": TEXT, "day": INT}, {"counts": BYTES}, ()),
}


def upgrade() -> None:
    """Create every table of :data:`TABLES`."""
    for name, (keys, columns, indexed) in TABLES.items():
        op.create_table(
            name,
            *(sa.Column(key, kind(), primary_key=True, autoincrement=False) for key, kind in keys.items()),
            *(sa.Column(column, kind(), nullable=False) for column, kind in columns.items()),
        )
        for column in indexed:
            op.create_index(f"ix_{name}_{column}", name, [column])


def downgrade() -> None:
    """Drop every table of :data:`TABLES`."""
    for name in TABLES:
        op.drop_table(name)
