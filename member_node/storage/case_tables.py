"""Tables of alerts and cases: what the scoring engine asks the bank's staff to look at, and what they made of it.

Like ``outcome_tables`` they hold raw values (customers): the bank's own records on its own disk.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, Table, Text

from member_node.storage.models import METADATA

# ``status``: open or closed; ``decision`` is empty until it is closed; ``severity`` is the greatest of its alerts.
# Times ending in _us are those of the events, those ending in _at unix seconds of the bank's clock.
CASES = Table(
    "cases",
    METADATA,
    Column("case_id", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("customer", Text, nullable=False, index=True),
    Column("status", Text, nullable=False, index=True),
    Column("severity", Integer, nullable=False),
    Column("first_us", BigInteger, nullable=False),
    Column("last_us", BigInteger, nullable=False),
    Column("alerts", Integer, nullable=False),
    Column("amount", Float, nullable=False),
    Column("assignee", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("opened_at", BigInteger, nullable=False, index=True),
)

# ``source`` names the journal frame and row (or the alarm), so that a replay opens no alert twice.
ALERTS = Table(
    "alerts",
    METADATA,
    Column("source", Text, primary_key=True),
    Column("case_id", Integer, nullable=False, index=True),
    Column("event_id", Text, nullable=False, index=True),
    Column("time_us", BigInteger, nullable=False),
    Column("verdict", Integer, nullable=False),
    Column("rule", Text, nullable=False),
    Column("amount", Float, nullable=False),
    Column("score", Float),
    Column("reasons", Text, nullable=False),
)

# Everything staff did to a case, never changed afterwards: who, when, what.
CASE_NOTES = Table(
    "case_notes",
    METADATA,
    Column("note_id", Integer, primary_key=True, autoincrement=True),
    Column("case_id", Integer, nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("text", Text, nullable=False),
)

# What an approver has to agree to: see ``case_exemptions``.
CASE_EXEMPTIONS = Table(
    "case_exemptions",
    METADATA,
    Column("case_id", Integer, primary_key=True, autoincrement=False),
    Column("customer", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("author", Text, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Column("proposed_at", BigInteger, nullable=False),
    Column("decided_at", BigInteger, nullable=False),
)
