"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("signed_at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "deltas",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("contributor", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("merge_by", sa.BigInteger(), nullable=False),
        sa.Column("entry_index", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_deltas")),
    )
    op.create_index("ix_deltas_contributor", "deltas", ["contributor", "digest"], unique=False)
    op.create_table(
        "directories",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_directories")),
    )
    op.create_table(
        "evaluation_totals",
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("period_end", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "sequence", name=op.f("pk_evaluation_totals")),
    )
    op.create_table(
        "group_keys",
        sa.Column("kind_group", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("kind_group", "epoch", "generation", name=op.f("pk_group_keys")),
    )
    op.create_table(
        "inquiries",
        sa.Column("inquiry_id", sa.LargeBinary(), nullable=False),
        sa.Column("requester", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("context", sa.LargeBinary(), nullable=False),
        sa.Column("cohort", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("intent_index", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("inquiry_id", name=op.f("pk_inquiries")),
    )
    op.create_index("ix_inquiries_state", "inquiries", ["state"], unique=False)
    op.create_table(
        "inquiry_budgets",
        sa.Column("requester", sa.String(length=32), nullable=False),
        sa.Column("template", sa.String(length=64), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("spent", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("requester", "template", "dataset", "day", name=op.f("pk_inquiry_budgets")),
    )
    op.create_table(
        "log_entries",
        sa.Column("entry_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("entry_index", name=op.f("pk_log_entries")),
    )
    op.create_table(
        "membership_rolls",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_membership_rolls")),
    )
    op.create_table(
        "parties",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("verify_key", sa.LargeBinary(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("share_index", sa.Integer(), nullable=False),
        sa.Column("joined_epoch", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("party", name=op.f("pk_parties")),
    )
    op.create_table(
        "policy_bundles",
        sa.Column("policy_epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("entry_index", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("policy_epoch", name=op.f("pk_policy_bundles")),
    )
    op.create_table(
        "refused_inquiries",
        sa.Column("inquiry_id", sa.LargeBinary(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("inquiry_id", name=op.f("pk_refused_inquiries")),
    )
    op.create_table(
        "replay_nonces",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("party", "nonce", name=op.f("pk_replay_nonces")),
    )
    op.create_index("ix_replay_nonces_expires", "replay_nonces", ["expires"], unique=False)
    op.create_table(
        "inquiry_messages",
        sa.Column("inquiry_id", sa.LargeBinary(), nullable=False),
        sa.Column("step", sa.String(length=64), nullable=False),
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["inquiry_id"], ["inquiries.inquiry_id"], name=op.f("fk_inquiry_messages_inquiry_id")
        ),
        sa.PrimaryKeyConstraint("inquiry_id", "step", "party", name=op.f("pk_inquiry_messages")),
    )
    op.create_table(
        "labels",
        sa.Column("delta_number", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("contributor", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.LargeBinary(), nullable=False),
        sa.Column("issued_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["delta_number"], ["deltas.number"], name=op.f("fk_labels_delta_number")),
        sa.PrimaryKeyConstraint("delta_number", "position", name=op.f("pk_labels")),
    )
    op.create_index(
        "ix_labels_contributor", "labels", ["contributor", "kind", "tag", "issued_ms"], unique=False
    )
    op.create_index("ix_labels_tag", "labels", ["tag"], unique=False)
    op.create_table(
        "log_readers",
        sa.Column("party", sa.String(length=32), nullable=False),
        sa.Column("entry_index", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["log_entries.entry_index"], name=op.f("fk_log_readers_entry_index")
        ),
        sa.PrimaryKeyConstraint("party", "entry_index", name=op.f("pk_log_readers")),
    )


def downgrade() -> None:
    op.drop_table("log_readers")
    op.drop_index("ix_labels_tag", table_name="labels")
    op.drop_index("ix_labels_contributor", table_name="labels")
    op.drop_table("labels")
    op.drop_table("inquiry_messages")
    op.drop_index("ix_replay_nonces_expires", table_name="replay_nonces")
    op.drop_table("replay_nonces")
    op.drop_table("refused_inquiries")
    op.drop_table("policy_bundles")
    op.drop_table("parties")
    op.drop_table("membership_rolls")
    op.drop_table("log_entries")
    op.drop_table("inquiry_budgets")
    op.drop_index("ix_inquiries_state", table_name="inquiries")
    op.drop_table("inquiries")
    op.drop_table("group_keys")
    op.drop_table("evaluation_totals")
    op.drop_table("directories")
    op.drop_index("ix_deltas_contributor", table_name="deltas")
    op.drop_table("deltas")
    op.drop_table("checkpoints")
