"""First tables: trust, evaluation budgets, tag cache, index mirror, inquiries."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT, INT, BIG, BYTES = sa.Text, sa.Integer, sa.BigInteger, sa.LargeBinary

# table -> (primary key columns, other columns, indexed columns)
TABLES: dict[str, tuple[dict[str, type], dict[str, type], tuple[str, ...]]] = {
    "seen_nonces": ({"party": TEXT, "nonce": TEXT}, {"expires": BIG}, ("expires",)),
    "trusted": ({"name": TEXT}, {"version": BIG, "content": BYTES}, ()),
    "evaluation_ledgers": ({"caller": TEXT, "kind_group": TEXT}, {"state": BYTES}, ()),
    "evaluation_counts": (
        {"caller": TEXT, "kind_group": TEXT, "purpose": TEXT, "quota": TEXT, "refusal": TEXT},
        {"requests": BIG, "elements": BIG},
        (),
    ),
    "evaluation_totals": ({"sequence": INT}, {"period_end": BIG, "envelope": BYTES, "sent": INT}, ()),
    "faults": (
        {"number": INT},
        {"party": TEXT, "at": BIG, "what": TEXT, "reason": TEXT, "evidence": BYTES},
        (),
    ),
    "cached_tags": ({"epoch": INT, "lookup_key": BYTES}, {"sealed": BYTES}, ()),
    "deltas": (
        {"number": INT},
        {"contributor": TEXT, "digest": BYTES, "labels": INT, "log_index": BIG},
        ("digest",),
    ),
    "labels": (
        {"epoch": INT, "kind": TEXT, "tag": BYTES, "contributor": TEXT},
        {"issued_at": BIG, "expires_at": BIG, "sealed": BYTES},
        (),
    ),
    "receipts": ({"digest": BYTES}, {"envelope": BYTES, "merge_by": BIG, "delta": INT}, ()),
    "inquiries": (
        {"inquiry_id": BYTES},
        {
            "requester": TEXT,
            "question": BYTES,
            "decided_at": BIG,
            "first_day": INT,
            "last_day": INT,
            "refusal": TEXT,
            "mask_secret": BYTES,
            "mask_key": BYTES,
            "contribution": BYTES,
        },
        (),
    ),
    "statistics": ({"question": BYTES}, {"sealed": BYTES}, ()),
    "aggregates": (
        {"question": BYTES},
        {"inquiry_id": BYTES, "salt": BYTES, "sealed": BYTES, "outcome_sent": INT},
        (),
    ),
}
COUNTED_FROM_OUTSIDE = {"evaluation_totals", "deltas"}


def upgrade() -> None:
    """Create every table of :data:`TABLES`."""
    for name, (keys, columns, indexed) in TABLES.items():
        counts: Literal["auto", False] = "auto" if name not in COUNTED_FROM_OUTSIDE else False
        op.create_table(
            name,
            *(sa.Column(key, kind(), primary_key=True, autoincrement=counts) for key, kind in keys.items()),
            *(sa.Column(column, kind(), nullable=False) for column, kind in columns.items()),
        )
        for column in indexed:
            op.create_index(f"ix_{name}_{column}", name, [column])


def downgrade() -> None:
    """Drop every table of :data:`TABLES`."""
    for name in TABLES:
        op.drop_table(name)
