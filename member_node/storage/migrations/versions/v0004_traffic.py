"""What crossed the bank's boundary, so that a restart does not forget what each party saw."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the counters and the record of starts."""
    op.create_table(
        "traffic",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("direction", "peer", "call")),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("requests", "errors", "bytes_in", "bytes_out", "elements")
        ),
    )
    op.create_table(
        "traffic_counting",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("starts", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("traffic_counting")
    op.drop_table("traffic")
