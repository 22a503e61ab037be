"""The member node's tables (SQLAlchemy Core). Migrations create them; nothing here is created at import.

In the tables of this module no raw indicator value stands: the tag cache is keyed by an HMAC and sealed under the
bank's storage key. Those of ``outcome_tables``, in the same file, do hold raw values: the bank's own customers and the
indicators of its confirmed frauds. What keeps them is the data directory, which only its owner may enter.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

SEEN_NONCES = Table(
    "seen_nonces",
    METADATA,
    Column("party", Text, primary_key=True),
    Column("nonce", Text, primary_key=True),
    Column("expires", BigInteger, nullable=False, index=True),
)

# The newest signed roll and policy, and the newest checkpoint this member has verified.
TRUSTED = Table(
    "trusted",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

EVALUATION_LEDGERS = Table(
    "evaluation_ledgers",
    METADATA,
    Column("caller", Text, primary_key=True),
    Column("kind_group", Text, primary_key=True),
    Column("state", LargeBinary, nullable=False),
)

# Counts of the period that no sent total covers yet.
EVALUATION_COUNTS = Table(
    "evaluation_counts",
    METADATA,
    Column("caller", Text, primary_key=True),
    Column("kind_group", Text, primary_key=True),
    Column("purpose", Text, primary_key=True),
    Column("quota", Text, primary_key=True),
    Column("refusal", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("elements", BigInteger, nullable=False),
)

EVALUATION_TOTALS = Table(
    "evaluation_totals",
    METADATA,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("period_end", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("sent", Integer, nullable=False),
)

FAULTS = Table(
    "faults",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("party", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("what", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
)

CACHED_TAGS = Table(
    "cached_tags",
    METADATA,
    Column("epoch", Integer, primary_key=True),
    Column("lookup_key", LargeBinary(32), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

DELTAS = Table(
    "deltas",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("contributor", Text, nullable=False),
    Column("digest", LargeBinary(32), nullable=False, index=True),
    Column("labels", Integer, nullable=False),
    Column("log_index", BigInteger, nullable=False),
)

LABELS = Table(
    "labels",
    METADATA,
    Column("epoch", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("tag", LargeBinary(16), primary_key=True),
    Column("contributor", Text, primary_key=True),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)

RECEIPTS = Table(
    "receipts",
    METADATA,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("merge_by", BigInteger, nullable=False),
    Column("delta", Integer, nullable=False),
)

# The member's own ledger of inquiries it was asked to take part in, with its own decision.
INQUIRIES = Table(
    "inquiries",
    METADATA,
    Column("inquiry_id", LargeBinary(32), primary_key=True),
    Column("requester", Text, nullable=False),
    Column("question", LargeBinary(32), nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("first_day", Integer, nullable=False),
    Column("last_day", Integer, nullable=False),
    Column("refusal", Text, nullable=False),
    Column("mask_secret", LargeBinary, nullable=False),
    Column("mask_key", LargeBinary, nullable=False),
    Column("contribution", LargeBinary, nullable=False),
)

# This bank's statistic of each day it ever answered, computed once and resent; ``cohort`` is the digest of the only
# cohort it may be added up with, ``directory`` the digest of the public directory its cells address.
ANSWERED_DAYS = Table(
    "answered_days",
    METADATA,
    Column("template", Text, primary_key=True),
    Column("dataset", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("cohort", LargeBinary(32), nullable=False),
    Column("directory", LargeBinary(32), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)

AGGREGATES = Table(
    "aggregates",
    METADATA,
    Column("question", LargeBinary(32), primary_key=True),
    Column("inquiry_id", LargeBinary(32), nullable=False),
    Column("salt", LargeBinary(32), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("outcome_sent", Integer, nullable=False),
)
