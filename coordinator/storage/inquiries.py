"""Statements over inquiries, the messages sent for them, and the daily budget of each requester."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from coordinator.storage.database import Connection
from coordinator.storage.tables import inquiries, inquiry_budgets, inquiry_messages, refused_inquiries
from governance.messages.signed import Signed


@dataclass(frozen=True)
class StoredInquiry:
    """One permitted inquiry. Times in unix seconds; ``intent_index`` is its intent's place in the log."""

    inquiry_id: bytes
    requester: str
    signed: Signed
    context: bytes
    cohort: tuple[str, ...]
    state: str
    opened_at: int
    deadline: int
    intent_index: int


@dataclass(frozen=True)
class StoredMessage:
    """What one party sent at one step (``mask_key``, ``contribution``, ``veto`` or ``outcome``)."""

    step: str
    party: str
    digest: bytes
    signed: Signed


def add_inquiry(connection: Connection, inquiry: StoredInquiry) -> None:
    """Store a newly permitted inquiry."""
    connection.execute(
        insert(inquiries).values(
            inquiry_id=inquiry.inquiry_id,
            requester=inquiry.requester,
            payload=inquiry.signed.payload,
            signature=inquiry.signed.signature,
            context=inquiry.context,
            cohort=json.dumps(inquiry.cohort),
            state=inquiry.state,
            opened_at=inquiry.opened_at,
            deadline=inquiry.deadline,
            intent_index=inquiry.intent_index,
        )
    )


def find_inquiry(connection: Connection, inquiry_id: bytes) -> StoredInquiry | None:
    """The inquiry with this id, if there is one."""
    row = connection.execute(select(inquiries).where(inquiries.c.inquiry_id == inquiry_id)).first()
    if row is None:
        return None
    return StoredInquiry(
        inquiry_id=row.inquiry_id,
        requester=row.requester,
        signed=Signed(signer=row.requester, payload=row.payload, signature=row.signature),
        context=row.context,
        cohort=tuple(json.loads(row.cohort)),
        state=row.state,
        opened_at=row.opened_at,
        deadline=row.deadline,
        intent_index=row.intent_index,
    )


def ids_in_states(connection: Connection, states: tuple[str, ...]) -> list[bytes]:
    """Ids of the inquiries in one of ``states``, oldest first."""
    query = (
        select(inquiries.c.inquiry_id).where(inquiries.c.state.in_(states)).order_by(inquiries.c.intent_index)
    )
    return list(connection.scalars(query))


def set_state(connection: Connection, inquiry_id: bytes, state: str) -> None:
    """Move an inquiry to ``state``."""
    connection.execute(update(inquiries).where(inquiries.c.inquiry_id == inquiry_id).values(state=state))


def add_message(connection: Connection, inquiry_id: bytes, message: StoredMessage) -> None:
    """Keep what a party sent; (inquiry, step, party) is new."""
    connection.execute(
        insert(inquiry_messages).values(
            inquiry_id=inquiry_id,
            step=message.step,
            party=message.party,
            digest=message.digest,
            payload=message.signed.payload,
            signature=message.signed.signature,
        )
    )


def messages_of(connection: Connection, inquiry_id: bytes, step: str) -> list[StoredMessage]:
    """What the parties sent at ``step``, by party."""
    query = (
        select(inquiry_messages)
        .where(inquiry_messages.c.inquiry_id == inquiry_id, inquiry_messages.c.step == step)
        .order_by(inquiry_messages.c.party)
    )
    return [
        StoredMessage(
            step=row.step,
            party=row.party,
            digest=row.digest,
            signed=Signed(signer=row.party, payload=row.payload, signature=row.signature),
        )
        for row in connection.execute(query)
    ]


def digest_of(connection: Connection, inquiry_id: bytes, step: str, party: str) -> bytes | None:
    """The digest of what ``party`` sent at ``step``; it outlives the payload."""
    return connection.scalar(
        select(inquiry_messages.c.digest).where(
            inquiry_messages.c.inquiry_id == inquiry_id,
            inquiry_messages.c.step == step,
            inquiry_messages.c.party == party,
        )
    )


def erase_contributions(connection: Connection, inquiry_id: bytes) -> None:
    """Forget the ciphertexts and the requester's context of a finished inquiry; digests remain."""
    connection.execute(
        update(inquiry_messages)
        .where(inquiry_messages.c.inquiry_id == inquiry_id, inquiry_messages.c.step == "contribution")
        .values(payload=b"", signature=b"")
    )
    connection.execute(update(inquiries).where(inquiries.c.inquiry_id == inquiry_id).values(context=b""))


def add_refused(connection: Connection, inquiry_id: bytes, rule: str, reason: str) -> None:
    """Remember that an inquiry was refused, and why."""
    connection.execute(insert(refused_inquiries).values(inquiry_id=inquiry_id, rule=rule, reason=reason))


def find_refused(connection: Connection, inquiry_id: bytes) -> tuple[str, str] | None:
    """(rule, reason) of the refusal of this inquiry, if it was refused."""
    row = connection.execute(
        select(refused_inquiries).where(refused_inquiries.c.inquiry_id == inquiry_id)
    ).first()
    return None if row is None else (row.rule, row.reason)


def spent_budget(connection: Connection, requester: str, template: str, dataset: str, day: int) -> int:
    """Inquiries of this kind that ``requester`` has opened on ``day`` (unix days)."""
    table = inquiry_budgets
    query = select(table.c.spent).where(
        table.c.requester == requester,
        table.c.template == template,
        table.c.dataset == dataset,
        table.c.day == day,
    )
    return connection.scalar(query) or 0


def reserve_budget(connection: Connection, requester: str, template: str, dataset: str, day: int) -> None:
    """Spend one inquiry; rows of earlier days are dropped."""
    spent = spent_budget(connection, requester, template, dataset, day)
    table = inquiry_budgets
    connection.execute(
        delete(table).where(
            table.c.requester == requester,
            table.c.template == template,
            table.c.dataset == dataset,
            table.c.day <= day,
        )
    )
    connection.execute(
        insert(table).values(
            requester=requester, template=template, dataset=dataset, day=day, spent=spent + 1
        )
    )
