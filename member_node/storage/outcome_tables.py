"""Tables of the bank's own stream: outcomes, the frauds among them, cursors and the consortium's daily counts.

Unlike the tables in ``models`` these do hold raw values (customers, indicators of confirmed frauds): they are the
bank's own records, on its own disk, and no endpoint for other parties reads them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from member_node.storage.models import METADATA

OUTCOMES = Table(
    "outcomes",
    METADATA,
    Column("event_id", Text, primary_key=True),
    Column("fraud", Integer, nullable=False),
    Column("known_at_us", BigInteger, nullable=False),
)

# ``day`` is the transaction's day in the data set's zone, ``cell`` its place in the public directory (-1: none);
# ``weighed`` is 1 once the evidence rule has looked at it.
CONFIRMED_FRAUDS = Table(
    "confirmed_frauds",
    METADATA,
    Column("event_id", Text, primary_key=True),
    Column("time_us", BigInteger, nullable=False),
    Column("day", Integer, nullable=False, index=True),
    Column("cell", Integer, nullable=False),
    Column("known_at_us", BigInteger, nullable=False, index=True),
    Column("customer", Text, nullable=False),
    Column("weighed", Integer, nullable=False),
)

FRAUD_INDICATORS = Table(
    "fraud_indicators",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
)

# Findings the evidence rule has made and the index has not acknowledged yet.
PENDING_FINDINGS = Table(
    "pending_findings",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("distinct_victims", Integer, nullable=False),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("found_at_ms", BigInteger, nullable=False),
)

STREAM_CURSORS = Table(
    "stream_cursors",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

STREAM_SOURCES = Table(
    "stream_sources",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("content", Text, nullable=False),
)

DAILY_AGGREGATES = Table(
    "daily_aggregates",
    METADATA,
    Column("dataset", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("counts", LargeBinary, nullable=False),
)
