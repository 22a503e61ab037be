"""A label as its contributor seals it and as a reader opens it: one size, bound to everything around it."""

from __future__ import annotations

from dataclasses import dataclass

from crypto.errors import UnsealingError
from crypto.sealing import seal, sealed_size, unseal
from governance.messages.codec import MalformedError, Message, decode, encode
from governance.messages.index import TAG_SIZE, Label, SealedLabel
from member_node.client.ports import Random

PADDED_SIZE = 192
SEALED_SIZE = sealed_size(PADDED_SIZE)
GRADES = frozenset({"confirmed", "suspected"})
MAX_TYPOLOGY_CHARACTERS = 48
MAX_TIME_MS = 2**53  # beyond it a time is no time, and no database column holds it


@dataclass(frozen=True, slots=True)
class LabelView:
    """An opened label. Times in unix milliseconds of business time; ``distinct_victims`` of this contributor only."""

    contributor: str
    issued_at: int
    expires_at: int
    distinct_victims: int
    typology: str
    grade: str
    first_seen: int
    last_seen: int


class _Associated(Message, frozen=True):
    """The fields around the seal: none can be changed, and no sealed text can move to another tag or contributor."""

    epoch: int
    kind: str
    tag: bytes
    contributor: str
    issued_at: int
    expires_at: int


def _associated(label: SealedLabel) -> bytes:
    return encode(
        _Associated(
            epoch=label.epoch,
            kind=label.kind,
            tag=label.tag,
            contributor=label.contributor,
            issued_at=label.issued_at,
            expires_at=label.expires_at,
        )
    )


def seal_label(
    label: Label,
    label_key: bytes,
    *,
    epoch: int,
    kind: str,
    tag: bytes,
    contributor: str,
    issued_at: int,
    expires_at: int,
    random: Random,
) -> SealedLabel:
    """Seal ``label`` under the key derived from the OPRF output; every sealed label has the same length."""
    if len(label.typology) > MAX_TYPOLOGY_CHARACTERS or not label.typology.isascii():
        raise MalformedError(f"Label: a typology is at most {MAX_TYPOLOGY_CHARACTERS} ASCII characters")
    bare = SealedLabel(
        epoch=epoch,
        kind=kind,
        tag=tag,
        contributor=contributor,
        issued_at=issued_at,
        expires_at=expires_at,
        sealed=b"",
    )
    sealed = seal(label_key, encode(label), _associated(bare), random=random, padded_size=PADDED_SIZE)
    return SealedLabel(
        epoch=epoch,
        kind=kind,
        tag=tag,
        contributor=contributor,
        issued_at=issued_at,
        expires_at=expires_at,
        sealed=sealed,
    )


def check_sealed(
    label: SealedLabel, *, contributor: str, epoch: int, kinds: frozenset[str], max_life_ms: int
) -> str:
    """What is wrong with a label whose signature verified, before it is opened; empty if nothing."""
    if label.contributor != contributor:
        return "names another contributor than the one who signed"
    if label.epoch != epoch:
        return "is of another key epoch"
    if label.kind not in kinds:
        return "has a kind the policy does not know"
    if len(label.tag) != TAG_SIZE or len(label.sealed) != SEALED_SIZE:
        return "has a tag or a seal of the wrong length"
    if not 0 <= label.issued_at < label.expires_at < MAX_TIME_MS:
        return "has times that cannot be"
    if label.expires_at - label.issued_at > max_life_ms:
        return "lives longer than the policy allows, or not at all"
    return ""


def open_label(sealed: SealedLabel, label_key: bytes) -> LabelView | None:
    """The label, or None if it does not open or says something a label cannot say."""
    try:
        label = decode(Label, unseal(label_key, sealed.sealed, _associated(sealed)))
    except (UnsealingError, MalformedError):
        return None
    sensible = (
        label.grade in GRADES
        and 0 <= label.distinct_victims < 10**6
        and 0 <= label.first_seen <= label.last_seen
        and len(label.typology) <= MAX_TYPOLOGY_CHARACTERS
    )
    if not sensible:
        return None
    return LabelView(
        contributor=sealed.contributor,
        issued_at=sealed.issued_at,
        expires_at=sealed.expires_at,
        distinct_victims=label.distinct_victims,
        typology=label.typology,
        grade=label.grade,
        first_seen=label.first_seen,
        last_seen=label.last_seen,
    )
