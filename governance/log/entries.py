"""What the log records: one type per kind of entry, and their only spelling, canonical JSON (RFC 8785).

Every entry says when it was appended (``at``, unix seconds) and which parties may read its body (``parties``,
sorted; regulators read all). Bytes are lower-case hex. No entry holds an indicator's value, a tag or a statistic.
Entries that report what a party signed carry that signature; ``governance.log.evidence`` rebuilds the signed
message from the fields and verifies it, so the coordinator cannot put words into a member's mouth.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

MAX_BODY_BYTES = 2**20
# RFC 8785 numbers are IEEE 754 doubles: integers beyond 2**53 - 1 have no exact form.
MAX_INTEGER = 2**53 - 1

Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
PartyId: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{1,31}\Z")]
Name: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\Z")]
Sentence: TypeAlias = Annotated[str, Meta(max_length=500)]
# What a party claimed in a request that may be refused for it: any text, bounded.
Claimed: TypeAlias = Annotated[str, Meta(max_length=128)]
Hex32: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex64: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]
HexBytes: TypeAlias = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{2})*\Z", max_length=256)]


class MalformedEntryError(ValueError):
    """A body is not the canonical JSON of a known entry."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A value inside an entry."""


class LogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """Base of all entries."""

    at: Count
    parties: list[PartyId]


class KnownParty(_Part, frozen=True):
    """A party of the roll with its Ed25519 verify key."""

    party: PartyId
    role: Name
    verify_key: Hex32


class MembershipEntry(LogEntry, frozen=True, tag="membership"):
    """A new membership roll is in force; ``digest`` is SHA-256 of its signed payload, ``roll`` all its parties."""

    version: Count
    epoch: Count
    digest: Hex32
    roll: list[KnownParty]


class PolicyEntry(LogEntry, frozen=True, tag="policy"):
    """A new policy bundle is in force; ``digest`` is SHA-256 of its signed payload."""

    policy_epoch: Count
    digest: Hex32


class KeyEpochEntry(LogEntry, frozen=True, tag="key-epoch"):
    """The OPRF key of a kind group: public key (ristretto255) and who holds a share."""

    epoch: Count
    kind_group: Name
    generation: Count
    threshold: Count
    public_key: Hex32
    holders: list[PartyId]


class DeltaEntry(LogEntry, frozen=True, tag="delta"):
    """A batch of labels entered the index. ``labels`` counts them, ``kinds`` names the kinds that occur."""

    number: Count
    digest: Hex32
    contributor: PartyId
    purpose: Name
    labels: Count
    kinds: list[Name]


class InquiryIntentEntry(LogEntry, frozen=True, tag="inquiry-intent"):
    """A permitted inquiry, before anything is computed. ``rule`` permitted it under ``policy_epoch``.

    Days count from 1970-01-01, both inclusive. ``signature`` is the requester's over the inquiry, all of whose
    fields are here; ``inquiry_id`` is SHA-256 of the signed payload.
    """

    inquiry_id: Hex32
    nonce: HexBytes
    requester: PartyId
    template: Name
    dataset: Name
    purpose: Name
    first_day: Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
    last_day: Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
    cells: Count
    privacy: Name
    mode: Name
    roll_version: Count
    policy_epoch: Count
    created_at: Count
    context_digest: Hex32
    signature: Hex64
    cohort: list[PartyId]
    rule: Name


class InquiryRefusalEntry(LogEntry, frozen=True, tag="inquiry-refusal"):
    """An inquiry that policy, a budget or the roll forbids. It never had a cohort."""

    inquiry_id: Hex32
    requester: PartyId
    template: Claimed
    dataset: Claimed
    purpose: Claimed
    reason: Sentence
    rule: Claimed
    policy_epoch: Count


class InquiryVetoEntry(LogEntry, frozen=True, tag="inquiry-veto"):
    """A cohort member refuses to take part; ``signature`` is the member's over its veto."""

    inquiry_id: Hex32
    member: PartyId
    reason: Sentence
    signature: Hex64


class InquiryOutcomeEntry(LogEntry, frozen=True, tag="inquiry-outcome"):
    """The requester's salted commitment to the aggregate it decrypted, with its signature."""

    inquiry_id: Hex32
    requester: PartyId
    commitment: Hex32
    cells: Count
    signature: Hex64


class InquiryExpiredEntry(LogEntry, frozen=True, tag="inquiry-expired"):
    """An inquiry ran out of time in ``state``; ``missing`` names the parties it was waiting for."""

    inquiry_id: Hex32
    state: Name
    missing: list[PartyId]


class CallerCount(_Part, frozen=True):
    """What one caller asked of a key holder in a period; ``refusal`` is empty for answered requests."""

    caller: PartyId
    kind_group: Claimed
    purpose: Claimed
    quota: Claimed
    refusal: Sentence
    requests: Count
    elements: Count


class EvaluationTotalsEntry(LogEntry, frozen=True, tag="evaluation-totals"):
    """A key holder's signed account of a period (unix seconds, half open). ``sequence`` counts from 1."""

    holder: PartyId
    sequence: Count
    period_start: Count
    period_end: Count
    counts: list[CallerCount]
    signature: Hex64


class RefusalEntry(LogEntry, frozen=True, tag="refusal"):
    """Requests that the policy or a budget of it refused: who wanted to do what, why, and which rule decided.

    The first of a party, action and rule is an entry of its own (``requests`` 1). Repetitions within a minute are
    one entry: ``requests`` since ``since`` (unix seconds); ``resource``, ``purpose`` and ``reason`` are the last's.
    """

    party: PartyId
    action: Name
    resource: Claimed
    purpose: Claimed
    reason: Sentence
    rule: Claimed
    policy_epoch: Count
    since: Count
    requests: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]


class ReadsEntry(LogEntry, frozen=True, tag="reads"):
    """Permitted requests that only read (``mirror``, ``read-log``), counted by party, action, purpose and rule.

    The period (unix seconds) begins with the first of them and ends when they are logged: after an hour, before an
    export, or when the coordinator stops.
    """

    party: PartyId
    action: Name
    purpose: Name
    rule: Claimed
    policy_epoch: Count
    period_start: Count
    period_end: Count
    requests: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]


class ExportEntry(LogEntry, frozen=True, tag="export"):
    """The whole log, bodies included, left the coordinator for ``reader``; it had ``size`` entries then."""

    reader: PartyId
    size: Count


Entry: TypeAlias = (
    MembershipEntry
    | PolicyEntry
    | KeyEpochEntry
    | DeltaEntry
    | InquiryIntentEntry
    | InquiryRefusalEntry
    | InquiryVetoEntry
    | InquiryOutcomeEntry
    | InquiryExpiredEntry
    | EvaluationTotalsEntry
    | RefusalEntry
    | ReadsEntry
    | ExportEntry
)

# For these types (ASCII keys, integers below 2**53, text, lists) sorted compact JSON is exactly RFC 8785;
# the tests hold it against the reference canonicaliser.
_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """The canonical JSON of ``entry``; :class:`MalformedEntryError` if a field is outside its bounds."""
    try:
        body = _ENCODER.encode(entry)
        # Constraints are checked by decoding only; that the bytes are canonical is the encoder's work.
        survived = len(body) <= MAX_BODY_BYTES and _DECODER.decode(body) == entry
    except (msgspec.DecodeError, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise MalformedEntryError(f"{type(entry).__name__}: {error}") from error
    if not survived:
        raise MalformedEntryError(f"{type(entry).__name__}: does not survive its own encoding")
    _check_parties(entry)
    return body


def decode_entry(body: bytes) -> Entry:
    """Read one canonical entry, or raise :class:`MalformedEntryError` saying what is wrong."""
    if len(body) > MAX_BODY_BYTES:
        raise MalformedEntryError(f"an entry of {len(body)} bytes, at most {MAX_BODY_BYTES} are accepted")
    try:
        entry = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEntryError(f"not a log entry: {error}") from error
    if _ENCODER.encode(entry) != body:
        raise MalformedEntryError("a log entry that is not canonical JSON (RFC 8785)")
    _check_parties(entry)
    return entry


def _check_parties(entry: Entry) -> None:
    parties = entry.parties
    if any(first >= second for first, second in pairwise(parties)):
        raise MalformedEntryError("the parties of a log entry are not sorted and distinct")


def as_claimed(text: str) -> str:
    """``text`` as a refused party wrote it, cut to what an entry may carry."""
    return text.encode("utf-8", "replace").decode()[:128]


def entry_type(entry: Entry) -> str:
    """The name of the entry's type as it is written in the log."""
    return str(entry.__struct_config__.tag)
