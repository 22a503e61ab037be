"""Entries made from what parties signed, and the way back: the signed message rebuilt from an entry.

An auditor needs no second file: all fields of an inquiry, veto, outcome or account of evaluations are in the
entry, so the message has the same canonical bytes and the signature in the entry must verify over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from crypto.errors import InvalidSignatureError
from crypto.signing import verify_signature
from governance.log.entries import (
    CallerCount,
    Entry,
    EvaluationTotalsEntry,
    InquiryIntentEntry,
    InquiryOutcomeEntry,
    InquiryVetoEntry,
    KnownParty,
    MembershipEntry,
    PolicyEntry,
    entry_type,
)
from governance.messages.codec import decode, encode
from governance.messages.inquiry import Inquiry, Outcome, Veto
from governance.messages.lookup import EvaluationCount, EvaluationTotals
from governance.messages.policy import PolicyBundle
from governance.messages.roll import MembershipRoll
from governance.messages.signed import Evidence, Signed


def membership_entry(envelope: Signed, *, at: int) -> MembershipEntry:
    """Entry of a signed :class:`MembershipRoll`; every party of the roll may read it."""
    roll = decode(MembershipRoll, envelope.payload)
    known = [
        KnownParty(party=entry.party, role=entry.role, verify_key=entry.verify_key.hex())
        for entry in sorted(roll.parties, key=lambda entry: entry.party)
    ]
    return MembershipEntry(
        at=at,
        parties=[party.party for party in known],
        version=roll.version,
        epoch=roll.epoch,
        digest=sha256(envelope.payload).hexdigest(),
        roll=known,
    )


def policy_entry(envelope: Signed, *, at: int, parties: Sequence[str]) -> PolicyEntry:
    """Entry of a signed :class:`PolicyBundle`."""
    bundle = decode(PolicyBundle, envelope.payload)
    return PolicyEntry(
        at=at,
        parties=_readers(parties),
        policy_epoch=bundle.policy_epoch,
        digest=sha256(envelope.payload).hexdigest(),
    )


def intent_entry(envelope: Signed, *, at: int, cohort: Sequence[str], rule: str) -> InquiryIntentEntry:
    """Entry of a permitted, signed :class:`Inquiry`; its cohort may read it."""
    inquiry = decode(Inquiry, envelope.payload)
    return InquiryIntentEntry(
        at=at,
        parties=_readers([*cohort, inquiry.requester]),
        inquiry_id=sha256(envelope.payload).hexdigest(),
        nonce=inquiry.nonce.hex(),
        requester=inquiry.requester,
        template=inquiry.template,
        dataset=inquiry.dataset,
        purpose=inquiry.purpose,
        first_day=inquiry.first_day,
        last_day=inquiry.last_day,
        cells=inquiry.cells,
        privacy=inquiry.privacy,
        mode=inquiry.mode,
        roll_version=inquiry.roll_version,
        policy_epoch=inquiry.policy_epoch,
        created_at=inquiry.created_at,
        context_digest=inquiry.context_digest.hex(),
        signature=envelope.signature.hex(),
        cohort=sorted(cohort),
        rule=rule,
    )


def veto_entry(envelope: Signed, *, at: int, parties: Sequence[str]) -> InquiryVetoEntry:
    """Entry of a signed :class:`Veto`; ``parties`` is the cohort."""
    veto = decode(Veto, envelope.payload)
    return InquiryVetoEntry(
        at=at,
        parties=_readers(parties),
        inquiry_id=veto.inquiry_id.hex(),
        member=veto.member,
        reason=veto.reason,
        signature=envelope.signature.hex(),
    )


def outcome_entry(envelope: Signed, *, at: int, parties: Sequence[str]) -> InquiryOutcomeEntry:
    """Entry of a signed :class:`Outcome`; ``parties`` is the cohort."""
    outcome = decode(Outcome, envelope.payload)
    return InquiryOutcomeEntry(
        at=at,
        parties=_readers(parties),
        inquiry_id=outcome.inquiry_id.hex(),
        requester=outcome.requester,
        commitment=outcome.commitment.hex(),
        cells=outcome.cells,
        signature=envelope.signature.hex(),
    )


def totals_entry(envelope: Signed, *, at: int) -> EvaluationTotalsEntry:
    """Entry of signed :class:`EvaluationTotals`; only their holder (and regulators) may read it."""
    totals = decode(EvaluationTotals, envelope.payload)
    return EvaluationTotalsEntry(
        at=at,
        parties=[totals.holder],
        holder=totals.holder,
        sequence=totals.sequence,
        period_start=totals.period_start,
        period_end=totals.period_end,
        counts=[
            CallerCount(
                caller=count.caller,
                kind_group=count.kind_group,
                purpose=count.purpose,
                quota=count.quota,
                refusal=count.refusal,
                requests=count.requests,
                elements=count.elements,
            )
            for count in totals.counts
        ],
        signature=envelope.signature.hex(),
    )


def signed_message(entry: Entry) -> tuple[str, Evidence, bytes] | None:
    """(signer, message, signature) that ``entry`` reports, or None for entries the coordinator alone stands for."""
    match entry:
        case InquiryIntentEntry():
            inquiry = Inquiry(
                nonce=bytes.fromhex(entry.nonce),
                requester=entry.requester,
                template=entry.template,
                dataset=entry.dataset,
                purpose=entry.purpose,
                first_day=entry.first_day,
                last_day=entry.last_day,
                cells=entry.cells,
                privacy=entry.privacy,
                mode=entry.mode,
                roll_version=entry.roll_version,
                policy_epoch=entry.policy_epoch,
                created_at=entry.created_at,
                context_digest=bytes.fromhex(entry.context_digest),
            )
            return entry.requester, inquiry, bytes.fromhex(entry.signature)
        case InquiryVetoEntry():
            veto = Veto(inquiry_id=bytes.fromhex(entry.inquiry_id), member=entry.member, reason=entry.reason)
            return entry.member, veto, bytes.fromhex(entry.signature)
        case InquiryOutcomeEntry():
            outcome = Outcome(
                inquiry_id=bytes.fromhex(entry.inquiry_id),
                requester=entry.requester,
                commitment=bytes.fromhex(entry.commitment),
                cells=entry.cells,
            )
            return entry.requester, outcome, bytes.fromhex(entry.signature)
        case EvaluationTotalsEntry():
            totals = EvaluationTotals(
                holder=entry.holder,
                sequence=entry.sequence,
                period_start=entry.period_start,
                period_end=entry.period_end,
                counts=[
                    EvaluationCount(
                        caller=count.caller,
                        kind_group=count.kind_group,
                        purpose=count.purpose,
                        quota=count.quota,
                        refusal=count.refusal,
                        requests=count.requests,
                        elements=count.elements,
                    )
                    for count in entry.counts
                ],
            )
            return entry.holder, totals, bytes.fromhex(entry.signature)
        case _:
            return None


def verify_evidence(entry: Entry, verify_keys: Mapping[str, bytes]) -> None:
    """Return if what ``entry`` says a party signed is what it signed; else InvalidSignatureError naming it."""
    rebuilt = signed_message(entry)
    if rebuilt is None:
        return
    signer, message, signature = rebuilt
    verify_key = verify_keys.get(signer)
    if verify_key is None:
        raise InvalidSignatureError(f"{entry_type(entry)}: signer {signer!r} is not on the membership roll")
    payload = encode(message)
    if isinstance(entry, InquiryIntentEntry) and sha256(payload).hexdigest() != entry.inquiry_id:
        raise InvalidSignatureError("inquiry-intent: the inquiry id is not the digest of the inquiry")
    try:
        verify_signature(verify_key, message.CONTEXT, payload, signature)
    except InvalidSignatureError as error:
        raise InvalidSignatureError(
            f"{entry_type(entry)}: the signature of {signer!r} does not verify"
        ) from error


def _readers(parties: Sequence[str]) -> list[str]:
    return sorted(set(parties))
