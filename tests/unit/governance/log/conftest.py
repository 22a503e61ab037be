"""A small but complete log: every type of entry, signed by the parties it speaks of."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crypto.merkle import MerkleTree
from crypto.signing import SigningKey
from governance.log import entries as log
from governance.log import evidence
from governance.log.export import write_export
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, sign_checkpoint, verifier_key
from governance.messages.inquiry import Inquiry, Outcome, Veto
from governance.messages.lookup import EvaluationCount, EvaluationTotals
from governance.messages.policy import PolicyBundle
from governance.messages.roll import MembershipRoll, RollEntry
from governance.messages.signed import Evidence, Signed, sign_message

ORIGIN = "subrosa.example/test-log"
BANKS = ["bank-a", "bank-b", "bank-c"]
NOW = 1_790_000_000


@dataclass
class SampleLog:
    """Keys, entries and what is needed to sign a checkpoint over them."""

    keys: dict[str, SigningKey]
    log_key: SigningKey
    entries: list[log.Entry] = field(default_factory=list)

    def add(self, entry: log.Entry) -> None:
        self.entries.append(entry)

    def signed(self, message: Evidence, signer: str) -> Signed:
        return sign_message(message, signer, self.keys[signer])

    @property
    def verifier(self) -> str:
        return verifier_key(ORIGIN, self.log_key.verify_key)

    def leaves(self) -> list[tuple[bytes, bytes]]:
        return [
            (hashlib.sha256(b"salt%d" % index).digest(), log.encode_entry(entry))
            for index, entry in enumerate(self.entries)
        ]

    def tree(self) -> MerkleTree:
        return MerkleTree(entry_leaf_hash(salt, body) for salt, body in self.leaves())

    def note(self, *, size: int | None = None, time: int = NOW) -> str:
        tree = self.tree()
        size = tree.size if size is None else size
        return sign_checkpoint(Checkpoint(ORIGIN, size, tree.root(size), time), self.log_key)

    def export(self, directory: Path) -> Path:
        write_export(
            directory, note=self.note(), origin=ORIGIN, verify_key=self.verifier, entries=self.leaves()
        )
        return directory


def roll(keys: dict[str, SigningKey], version: int = 1) -> MembershipRoll:
    return MembershipRoll(
        version=version,
        epoch=1,
        issued_at=NOW,
        normal_forms=1,
        parties=[
            RollEntry(
                party=party,
                name=party.title(),
                role=party if party in ("coordinator", "regulator") else "member",
                verify_key=key.verify_key,
                url="http://127.0.0.1:1",
                share_index=0,
                joined_epoch=1,
            )
            for party, key in keys.items()
        ],
        group_keys=[],
        directories=[],
    )


def policy(epoch: int = 1) -> PolicyBundle:
    return PolicyBundle(
        policy_epoch=epoch,
        cedar="",
        cedar_schema="",
        kinds=[],
        tiers=[],
        budgets=[],
        inquiries=[],
        max_checkpoint_age_seconds=300,
        merge_delay_seconds=60,
        labels_per_day=20_000,
    )


def inquiry(requester: str = "bank-a", *, nonce: int = 1, policy_epoch: int = 1, cells: int = 100) -> Inquiry:
    return Inquiry(
        nonce=bytes([nonce]) * 16,
        requester=requester,
        template="confirmed-frauds-per-entity",
        dataset="terminals",
        purpose="joint-statistics",
        first_day=20_000,
        last_day=20_006,
        cells=cells,
        privacy="none",
        mode="strict",
        roll_version=1,
        policy_epoch=policy_epoch,
        created_at=NOW,
        context_digest=bytes(32),
    )


@pytest.fixture
def empty_log() -> SampleLog:
    """A log with a roll and a policy only."""
    names = [*BANKS, "coordinator", "regulator"]
    keys = {name: SigningKey(hashlib.sha256(name.encode()).digest()) for name in names}
    sample = SampleLog(keys, SigningKey(hashlib.sha256(b"log").digest()))
    sample.add(evidence.membership_entry(sample.signed(roll(keys), "coordinator"), at=NOW - 50))
    sample.add(evidence.policy_entry(sample.signed(policy(), "coordinator"), at=NOW - 49, parties=names))
    return sample


@pytest.fixture
def cosign() -> Callable[[str, str, SigningKey], str]:
    """Adds the signature of a name to a note, as other tools of C2SP may."""

    def add(note: str, name: str, key: SigningKey) -> str:
        text = note[: note.rindex("\n\n") + 1]
        typed = b"\x01" + key.verify_key
        key_hash = hashlib.sha256(name.encode() + b"\n" + typed).digest()[:4]
        encoded = base64.b64encode(key_hash + key.sign_raw(text.encode())).decode()
        return f"{note}\N{EM DASH} {name} {encoded}\n"

    return add


@pytest.fixture
def make_inquiry() -> Callable[..., Inquiry]:
    return inquiry


@pytest.fixture
def make_policy() -> Callable[..., PolicyBundle]:
    return policy


@pytest.fixture
def make_roll() -> Callable[..., MembershipRoll]:
    return roll


@pytest.fixture
def sample_log(empty_log: SampleLog) -> SampleLog:
    """Every type of entry once or more, in an order that is allowed."""
    sample = empty_log
    key_epoch = log.KeyEpochEntry(
        at=NOW - 48,
        parties=BANKS,
        epoch=1,
        kind_group="terminals",
        generation=1,
        threshold=2,
        public_key="ab" * 32,
        holders=BANKS,
    )
    sample.add(key_epoch)
    for number, contributor in ((1, "bank-b"), (2, "bank-c")):
        delta = log.DeltaEntry(
            at=NOW - 40,
            parties=BANKS,
            number=number,
            digest="cd" * 32,
            contributor=contributor,
            purpose="indicator-sharing",
            labels=3,
            kinds=["terminal"],
        )
        sample.add(delta)
    asked = sample.signed(inquiry(), "bank-a")
    sample.add(evidence.intent_entry(asked, at=NOW - 30, cohort=BANKS, rule="inquire-terminals"))
    digest = hashlib.sha256(asked.payload).digest()
    outcome = Outcome(inquiry_id=digest, requester="bank-a", commitment=b"\x05" * 32, cells=100)
    sample.add(evidence.outcome_entry(sample.signed(outcome, "bank-a"), at=NOW - 29, parties=BANKS))

    vetoed = sample.signed(inquiry("bank-b", nonce=2), "bank-b")
    sample.add(evidence.intent_entry(vetoed, at=NOW - 28, cohort=BANKS, rule="inquire-terminals"))
    veto = Veto(inquiry_id=hashlib.sha256(vetoed.payload).digest(), member="bank-c", reason="overlap")
    sample.add(evidence.veto_entry(sample.signed(veto, "bank-c"), at=NOW - 27, parties=BANKS))

    expired = sample.signed(inquiry("bank-c", nonce=3), "bank-c")
    sample.add(evidence.intent_entry(expired, at=NOW - 26, cohort=BANKS, rule="inquire-terminals"))
    expiry = log.InquiryExpiredEntry(
        at=NOW - 20,
        parties=BANKS,
        inquiry_id=hashlib.sha256(expired.payload).hexdigest(),
        state="keys",
        missing=["bank-b"],
    )
    sample.add(expiry)
    inquiry_refusal = log.InquiryRefusalEntry(
        at=NOW - 19,
        parties=["bank-b"],
        inquiry_id="ef" * 32,
        requester="bank-b",
        template="volumes",
        dataset="terminals",
        purpose="curiosity",
        reason="no rule permits this",
        rule="",
        policy_epoch=1,
    )
    sample.add(inquiry_refusal)
    for sequence in (1, 2):
        totals = EvaluationTotals(
            holder="bank-b",
            sequence=sequence,
            period_start=NOW - 100 + 10 * sequence,
            period_end=NOW - 90 + 10 * sequence,
            counts=[
                EvaluationCount(
                    caller="bank-a",
                    kind_group="terminals",
                    purpose="fraud-prevention",
                    quota="lookup",
                    refusal="budget exceeded" if sequence == 2 else "",
                    requests=4,
                    elements=400,
                )
            ],
        )
        sample.add(evidence.totals_entry(sample.signed(totals, "bank-b"), at=NOW - 10))
    refusal = log.RefusalEntry(
        at=NOW - 9,
        parties=["bank-c"],
        party="bank-c",
        action="mirror",
        resource="index",
        purpose="Ünusual \x1b[31m",
        reason="not permitted",
        rule="",
        policy_epoch=1,
        since=NOW - 9,
        requests=1,
    )
    sample.add(refusal)
    reads = log.ReadsEntry(
        at=NOW - 8,
        parties=["bank-a"],
        party="bank-a",
        action="mirror",
        purpose="indicator-sharing",
        rule="members-mirror",
        policy_epoch=1,
        period_start=NOW - 40,
        period_end=NOW - 8,
        requests=12,
    )
    sample.add(reads)
    sample.add(
        log.ExportEntry(at=NOW - 1, parties=["regulator"], reader="regulator", size=len(sample.entries))
    )
    return sample
