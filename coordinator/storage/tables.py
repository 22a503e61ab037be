"""The tables, once. Migrations build them; a test holds both to be the same.

Signed messages are kept as the bytes that were signed, never taken apart and put together again. Times are
unix seconds of the coordinator's clock; ``*_ms`` columns are business time of the sender in milliseconds.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

PARTY = String(32)
NAME = String(64)

parties = Table(
    "parties",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", NAME, nullable=False),
    Column("verify_key", LargeBinary, nullable=False),
    Column("url", Text, nullable=False),
    Column("share_index", Integer, nullable=False),
    Column("joined_epoch", Integer, nullable=False),
)

group_keys = Table(
    "group_keys",
    metadata,
    Column("kind_group", NAME, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)

directories = Table(
    "directories",
    metadata,
    Column("dataset", NAME, primary_key=True),
    Column("cells", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)

membership_rolls = Table(
    "membership_rolls",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# ``entry_index`` stays empty until the bundle is published, that is logged, at the next start.
policy_bundles = Table(
    "policy_bundles",
    metadata,
    Column("policy_epoch", Integer, primary_key=True, autoincrement=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("entry_index", BigInteger, nullable=True),
)

replay_nonces = Table(
    "replay_nonces",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("nonce", NAME, primary_key=True),
    Column("expires", BigInteger, nullable=False),
    Index("ix_replay_nonces_expires", "expires"),
)

deltas = Table(
    "deltas",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("contributor", PARTY, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("merge_by", BigInteger, nullable=False),
    Column("entry_index", BigInteger, nullable=False),
    Index("ix_deltas_contributor", "contributor", "digest"),
)

labels = Table(
    "labels",
    metadata,
    Column("delta_number", BigInteger, ForeignKey("deltas.number"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("contributor", PARTY, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("kind", NAME, nullable=False),
    Column("tag", LargeBinary, nullable=False),
    Column("issued_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Index("ix_labels_tag", "tag"),
    Index("ix_labels_contributor", "contributor", "kind", "tag", "issued_ms"),
)

inquiries = Table(
    "inquiries",
    metadata,
    Column("inquiry_id", LargeBinary, primary_key=True),
    Column("requester", PARTY, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("context", LargeBinary, nullable=False),
    Column("cohort", Text, nullable=False),
    Column("state", NAME, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("intent_index", BigInteger, nullable=False),
    Index("ix_inquiries_state", "state"),
)

# One row per message a party sent for an inquiry: its mask key, contribution, veto or outcome.
inquiry_messages = Table(
    "inquiry_messages",
    metadata,
    Column("inquiry_id", LargeBinary, ForeignKey("inquiries.inquiry_id"), primary_key=True),
    Column("step", NAME, primary_key=True),
    Column("party", PARTY, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

# An inquiry that was refused stays refused: its requester signs a new one.
refused_inquiries = Table(
    "refused_inquiries",
    metadata,
    Column("inquiry_id", LargeBinary, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("reason", Text, nullable=False),
)

inquiry_budgets = Table(
    "inquiry_budgets",
    metadata,
    Column("requester", PARTY, primary_key=True),
    Column("template", NAME, primary_key=True),
    Column("dataset", NAME, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("spent", Integer, nullable=False),
)

# What one party has spent of one budget in its newest period (a day or an hour, counted from 1970).
party_budgets = Table(
    "party_budgets",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("budget", NAME, primary_key=True),
    Column("period", Integer, nullable=False),
    Column("spent", BigInteger, nullable=False),
)

# Decisions that are counted and wait to be logged as totals: permitted reads, and refusals after the first of a minute.
read_counts = Table(
    "read_counts",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("action", NAME, primary_key=True),
    Column("purpose", NAME, primary_key=True),
    Column("rule", String(128), primary_key=True),
    Column("policy_epoch", Integer, primary_key=True, autoincrement=False),
    Column("period_start", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
)

refusal_counts = Table(
    "refusal_counts",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("action", NAME, primary_key=True),
    Column("rule", String(128), primary_key=True),
    Column("policy_epoch", Integer, primary_key=True, autoincrement=False),
    Column("resource", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
)

evaluation_totals = Table(
    "evaluation_totals",
    metadata,
    Column("holder", PARTY, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("period_end", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

log_entries = Table(
    "log_entries",
    metadata,
    Column("entry_index", BigInteger, primary_key=True, autoincrement=False),
    Column("salt", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

log_readers = Table(
    "log_readers",
    metadata,
    Column("party", PARTY, primary_key=True),
    Column("entry_index", BigInteger, ForeignKey("log_entries.entry_index"), primary_key=True),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("signed_at", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)
