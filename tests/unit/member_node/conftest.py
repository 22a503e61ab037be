"""A consortium without a network: real member services over an honest coordinator in memory that a test can make lie.

``world.chair.distort["deltas"] = change`` lets every answer of that call pass through ``change``; the same for
``world.banks[party].distort["evaluate"]``. Time is ``world.clock.now``.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from crypto.he.contexts import RequesterKey
from crypto.he.decryption import decrypt_sum
from crypto.merkle import MerkleTree
from crypto.signing import SigningKey
from crypto.threshold import KeyShare, deal, least_threshold
from governance.indicators import ALL_KIND_GROUPS
from governance.inquiries import InquiryProgress, inquiry_id
from governance.log.entries import DeltaEntry, Entry, KnownParty, MembershipEntry, PolicyEntry, encode_entry
from governance.log.evidence import intent_entry, totals_entry
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, sign_checkpoint, verifier_key
from governance.members import PinnedParty
from governance.messages.codec import decode, encode
from governance.messages.index import Delta, Deltas, Receipt, SealedLabel, SubmitLabels, labels_digest
from governance.messages.inquiry import (
    Contribution,
    Inquiry,
    InquiryStatus,
    InquiryTask,
    InquiryTasks,
    MaskKey,
    OpenInquiry,
    Outcome,
    Veto,
)
from governance.messages.log import CheckpointUpdate, LoggedEntry, LogPage
from governance.messages.policy import PolicyBundle
from governance.messages.problems import ProblemError, problem_for
from governance.messages.roll import Directory, GroupKey, MembershipRoll, PublicShare, RollEntry
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy.default import default_bundle
from member_node.client.ports import NotMaturedError, PartyUnreachableError
from member_node.secret_files import StorageKey
from member_node.service.contribution import ContributionService
from member_node.service.holder import HolderService
from member_node.service.index import IndexMirror
from member_node.service.inquiry import InquiryService
from member_node.service.lookup import LookupService
from member_node.service.participation import Participation
from member_node.service.policy import Anchors, Consortium, OwnShare
from member_node.service.tag_cache import TagCache
from member_node.service.totals import TotalsService
from member_node.storage.database import Database
from member_node.storage.evaluations import EvaluationStore
from member_node.storage.labels import LabelStore
from member_node.storage.questions import QuestionStore
from member_node.storage.tags import TagStore
from member_node.storage.trust import FaultStore, ReplayStore, TrustStore

ORIGIN = "unit.subrosa.example/log"
DIRECTORY_DIGEST = b"d" * 32
CELLS = 5


@dataclass
class Clock:
    now: int = 1_800_000_000

    def __call__(self) -> int:
        return self.now


class Chair:
    """The coordinator: honest, in memory, unless ``distort`` changes an answer."""

    def __init__(self, clock: Clock, banks: dict[str, SigningKey], keys: list[GroupKey]) -> None:
        self.clock = clock
        self.key = SigningKey(secrets.token_bytes(32))
        self.log_key = SigningKey(secrets.token_bytes(32))
        self.log_verifier_key = verifier_key(ORIGIN, self.log_key.verify_key)
        self.distort: dict[str, Callable[[Any], Any]] = {}
        self.tree = MerkleTree()
        self.entries: list[tuple[bytes, bytes]] = []
        self.deltas: list[Delta] = []
        self.inquiries: dict[bytes, dict[str, Any]] = {}
        self.policy = default_bundle()
        holders = enumerate(sorted(banks), start=1)
        parties = [
            RollEntry(
                party=p,
                name=p,
                role="member",
                verify_key=banks[p].verify_key,
                url="",
                share_index=i,
                joined_epoch=1,
            )
            for i, p in holders
        ]
        parties.append(
            RollEntry(
                party="coordinator",
                name="Chair",
                role="coordinator",
                verify_key=self.key.verify_key,
                url="",
                share_index=0,
                joined_epoch=1,
            )
        )
        self.roll = MembershipRoll(
            version=1,
            epoch=1,
            issued_at=clock.now,
            normal_forms=1,
            parties=parties,
            group_keys=keys,
            directories=[Directory(dataset="terminals", cells=CELLS, digest=DIRECTORY_DIGEST)],
        )

        self.publish()

    def publish(self) -> None:
        """Log the roll and the policy in force, as every honest coordinator does before it serves them."""
        everyone = sorted(self.verify_keys())
        self.append(
            MembershipEntry(
                at=self.clock.now,
                parties=everyone,
                version=self.roll.version,
                epoch=self.roll.epoch,
                digest=hashlib.sha256(encode(self.roll)).hexdigest(),
                roll=[
                    KnownParty(party=each.party, role=each.role, verify_key=each.verify_key.hex())
                    for each in self.roll.parties
                ],
            )
        )
        self.append(
            PolicyEntry(
                at=self.clock.now,
                parties=everyone,
                policy_epoch=self.policy.policy_epoch,
                digest=hashlib.sha256(encode(self.policy)).hexdigest(),
            )
        )

    @property
    def cohort(self) -> list[str]:
        return sorted(each.party for each in self.roll.parties if each.role == "member")

    def verify_keys(self) -> dict[str, bytes]:
        return {each.party: each.verify_key for each in self.roll.parties}

    def append(self, entry: Entry) -> int:
        salt, body = secrets.token_bytes(32), encode_entry(entry)
        self.entries.append((salt, body))
        return self.tree.append(entry_leaf_hash(salt, body))

    def update(self, since: int) -> CheckpointUpdate:
        size = self.tree.size
        checkpoint = Checkpoint(ORIGIN, size, self.tree.root(), self.clock.now)
        proof = self.tree.consistency_proof(since, size) if 0 < since < size else []
        return CheckpointUpdate(
            note=sign_checkpoint(checkpoint, self.log_key), first_size=since, consistency=list(proof)
        )

    def logged(self, index: int) -> LoggedEntry:
        salt, body = self.entries[index]
        proof = list(self.tree.inclusion_proof(index, self.tree.size))
        return LoggedEntry(index=index, salt=salt, body=body, inclusion=proof)


class ChairPort:
    """The coordinator as one member reaches it (:class:`member_node.client.ports.CoordinatorPort`)."""

    def __init__(self, chair: Chair, caller: str) -> None:
        self.chair = chair
        self.caller = caller
        self.down = False

    def _answer(self, call: str, make: Callable[[], Any]) -> Any:
        if self.down:
            raise PartyUnreachableError("coordinator", "it is down")
        try:
            made = make()
        except Exception as error:
            raise ProblemError(problem_for(error, self.caller), "coordinator") from error
        return self.chair.distort.get(call, lambda each: each)(made)

    def _sign(self, message: Any) -> Signed:
        return sign_message(message, "coordinator", self.chair.key)

    def membership(self) -> Signed:
        return self._answer("membership", lambda: self._sign(self.chair.roll))

    def policy(self) -> Signed:
        return self._answer("policy", lambda: self._sign(self.chair.policy))

    def checkpoint(self, since: int) -> CheckpointUpdate:
        return self._answer("checkpoint", lambda: self.chair.update(since))

    def log(self, first: int, count: int, since: int) -> LogPage:
        def make() -> LogPage:
            entries = [
                self.chair.logged(i) for i in range(first, min(first + count, len(self.chair.entries)))
            ]
            return LogPage(checkpoint=self.chair.update(since), entries=entries)

        return self._answer("log", make)

    def submit_labels(self, submission: SubmitLabels) -> Signed:
        def make() -> Signed:
            chair = self.chair
            digest = labels_digest(submission.labels)
            entry = DeltaEntry(
                at=chair.clock.now,
                parties=chair.cohort,
                number=len(chair.deltas) + 1,
                digest=digest.hex(),
                contributor=self.caller,
                purpose=submission.purpose,
                labels=len(submission.labels),
                kinds=sorted({decode(SealedLabel, each.payload).kind for each in submission.labels}),
            )
            index = chair.append(entry)
            chair.deltas.append(
                Delta(number=entry.number, labels=submission.labels, entry=chair.logged(index))
            )
            return self._sign(
                Receipt(
                    contributor=self.caller,
                    digest=digest,
                    accepted=len(submission.labels),
                    merge_by=chair.clock.now + 60,
                )
            )

        return self._answer("submit_labels", make)

    def deltas(self, after: int, since: int) -> Deltas:
        def make() -> Deltas:
            fresh = [
                Delta(number=each.number, labels=each.labels, entry=self.chair.logged(each.entry.index))
                for each in self.chair.deltas[after : after + 64]
            ]
            update = self.chair.update(since)
            return Deltas(after=after, last=len(self.chair.deltas), checkpoint=update, deltas=fresh)

        return self._answer("deltas", make)

    def send_totals(self, totals: Signed) -> CheckpointUpdate:
        def make() -> CheckpointUpdate:
            self.chair.append(totals_entry(totals, at=self.chair.clock.now))
            return self.chair.update(0)

        return self._answer("send_totals", make)

    def open_inquiry(self, opening: OpenInquiry) -> InquiryTask:
        def make() -> InquiryTask:
            chair = self.chair
            identifier = inquiry_id(opening.inquiry.payload)
            inquiry = decode(Inquiry, opening.inquiry.payload)
            intent = intent_entry(
                opening.inquiry, at=chair.clock.now, cohort=chair.cohort, rule="members-inquire"
            )
            progress = InquiryProgress(identifier, self.caller, tuple(chair.cohort), inquiry.cells)
            chair.inquiries[identifier] = {
                "opening": opening,
                "intent": chair.append(intent),
                "progress": progress,
                "mask_key": {},
                "contribution": {},
                "veto": {},
                "outcome": {},
            }
            return self._task(identifier, 0)

        return self._answer("open_inquiry", make)

    def _task(self, identifier: bytes, since: int) -> InquiryTask:
        known = self.chair.inquiries[identifier]
        keys = known["mask_key"]
        return InquiryTask(
            inquiry_id=identifier,
            inquiry=known["opening"].inquiry,
            context=known["opening"].context,
            cohort=self.chair.cohort,
            intent=self.chair.logged(known["intent"]),
            checkpoint=self.chair.update(since),
            mask_keys=[keys[each] for each in sorted(keys)] if len(keys) == len(self.chair.cohort) else [],
        )

    def tasks(self, wait: float, since: int) -> InquiryTasks:
        def make() -> InquiryTasks:
            waiting = [
                i for i, known in self.chair.inquiries.items() if self.caller in known["progress"].waiting_for
            ]
            live = [
                i for i in waiting if self.chair.inquiries[i]["progress"].state in ("keys", "contributions")
            ]
            return InquiryTasks(tasks=[self._task(each, since) for each in live])

        return self._answer("tasks", make)

    def _accept(self, step: str, kind: Any, identifier: bytes, envelope: Signed) -> CheckpointUpdate:
        def make() -> CheckpointUpdate:
            known = self.chair.inquiries[identifier]
            message = open_signed(kind, envelope, self.chair.verify_keys())
            known["progress"] = known["progress"].advance(self.caller, message)
            known[step][self.caller] = envelope
            return self.chair.update(0)

        return self._answer(step, make)

    def send_mask_key(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._accept("mask_key", MaskKey, inquiry_id, envelope)

    def send_contribution(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._accept("contribution", Contribution, inquiry_id, envelope)

    def send_veto(self, inquiry_id: bytes, envelope: Signed) -> None:
        self._accept("veto", Veto, inquiry_id, envelope)

    def send_outcome(self, inquiry_id: bytes, envelope: Signed) -> CheckpointUpdate:
        return self._accept("outcome", Outcome, inquiry_id, envelope)

    def inquiry_status(self, inquiry_id: bytes, wait: float) -> InquiryStatus:
        time.sleep(0.005)

        def make() -> InquiryStatus:
            known = self.chair.inquiries[inquiry_id]
            progress = known["progress"]
            done = progress.state == "complete"
            return InquiryStatus(
                inquiry_id=inquiry_id,
                state=progress.state,
                cohort=self.chair.cohort,
                waiting_for=progress.waiting_for,
                vetoes=[known["veto"][each] for each in sorted(known["veto"])],
                mask_keys=[known["mask_key"][each] for each in sorted(known["mask_key"])],
                contributions=[known["contribution"][each] for each in sorted(known["contribution"])]
                if done
                else [],
            )

        return self._answer("status", make)


class Statistic:
    """Counts of one bank: ``(day + cell) % 3 + bias``."""

    def __init__(self, bias: int) -> None:
        self.bias = bias
        self.matured = 10**6
        self.calls = 0

    def counts(self, first_day: int, last_day: int) -> np.ndarray:
        if last_day > self.matured:
            raise NotMaturedError(self.matured)
        self.calls += 1
        days, cells = np.arange(first_day, last_day + 1)[:, None], np.arange(CELLS)[None, :]
        return ((days + cells) % 3 + self.bias).astype(np.int64)


@dataclass
class Bank:
    """One member's services; ``restart`` builds them anew over the same storage."""

    world: World
    party: str
    key: SigningKey
    shares: list[KeyShare]
    path: Path
    storage_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    distort: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    down: bool = False

    def __post_init__(self) -> None:
        self.statistic = Statistic(int(self.party[-1], 36))
        self.database: Database | None = None
        self.restart()

    def restart(self) -> None:
        self.close()
        clock, chair = self.world.clock, self.world.chair
        self.database = database = Database(f"sqlite:///{self.path / self.party}.sqlite3")
        self.port = ChairPort(chair, self.party)
        storage = StorageKey(self.storage_key, secrets.token_bytes)
        anchors = Anchors(
            self.party, self.key.verify_key, "coordinator", chair.key.verify_key, chair.log_verifier_key
        )
        own = [OwnShare(s.epoch, s.kind_group, s.generation, s.index, s.public_share()) for s in self.shares]
        self.consortium = Consortium(
            anchors, self.port, TrustStore(database), clock, own, pinned=lambda: self.world.pins
        )
        self.evaluations, self.labels = EvaluationStore(database), LabelStore(database)
        self.questions, self.faults = QuestionStore(database), FaultStore(database)
        self.replays = ReplayStore(database)
        cache = TagCache(TagStore(database), storage)
        random = secrets.token_bytes
        self.holder = HolderService(
            self.key, self.consortium, self.shares, self.evaluations, clock=clock, random=random
        )
        holders = {p: DirectHolder(self.world, self.party, p) for p in self.world.names if p != self.party}
        self.lookup = LookupService(
            self.consortium, self.holder, holders, cache, self.faults, clock=clock, random=random
        )
        self.index = IndexMirror(self.consortium, self.port, self.labels, cache, self.faults, clock=clock)
        self.contribution = ContributionService(
            self.key,
            self.consortium,
            self.port,
            self.lookup,
            self.labels,
            self.faults,
            clock=clock,
            random=random,
        )
        self.inquiry = InquiryService(
            self.key,
            self.consortium,
            self.port,
            self.questions,
            storage,
            self.faults,
            dataset="terminals",
            directory_digest=DIRECTORY_DIGEST,
            sum_and_decrypt=lambda key, parts, length, bound: decrypt_sum(
                RequesterKey.from_bytes(key), parts, length, bound=bound
            ),
            clock=clock,
            random=random,
        )
        self.participation = Participation(
            self.key,
            self.consortium,
            self.port,
            self.statistic,
            self.questions,
            storage,
            self.faults,
            dataset="terminals",
            directory_digest=DIRECTORY_DIGEST,
            clock=clock,
            random=random,
        )
        self.totals = TotalsService(self.party, self.key, self.port, self.evaluations, clock=clock)

    def close(self) -> None:
        if self.database is not None:
            self.lookup.close()
            self.database.close()


class DirectHolder:
    """Another bank's key holder without a network."""

    def __init__(self, world: World, caller: str, party: str) -> None:
        self.world, self.caller, self.party = world, caller, party
        self.requests = 0

    def evaluate(self, request: Any) -> Signed:
        bank = self.world.banks[self.party]
        self.requests += 1
        if bank.down:
            raise PartyUnreachableError(self.party, "it is down")
        try:
            answer = bank.holder.evaluate(self.caller, request)
        except Exception as error:
            raise ProblemError(problem_for(error, self.caller), self.party) from error
        return bank.distort.get("evaluate", lambda each: each)(answer)


class World:
    """``members`` banks (bank-a, bank-b, ...) and their coordinator."""

    def __init__(self, path: Path, members: int, migrated: Path) -> None:
        self.clock = Clock()
        self.names = [f"bank-{chr(ord('a') + i)}" for i in range(members)]
        identities = {name: SigningKey(secrets.token_bytes(32)) for name in self.names}
        self.pins = {name: PinnedParty("member", key.verify_key) for name, key in identities.items()}
        public, dealt = [], []
        for kind_group in ALL_KIND_GROUPS:
            keys, shares = deal(
                epoch=1,
                kind_group=kind_group,
                threshold=least_threshold(members),
                holders=members,
                random=secrets.token_bytes,
            )
            dealt.append(shares)
            public.append(
                GroupKey(
                    epoch=1,
                    kind_group=kind_group,
                    generation=keys.generation,
                    threshold=keys.threshold,
                    public_key=keys.public_key,
                    public_shares=[
                        PublicShare(share_index=i, element=e) for i, e in sorted(keys.public_shares.items())
                    ],
                )
            )
        self.chair = Chair(self.clock, identities, public)
        self.banks: dict[str, Bank] = {}
        for number, name in enumerate(self.names):
            shutil.copy(migrated, path / f"{name}.sqlite3")
            self.banks[name] = Bank(self, name, identities[name], [shares[number] for shares in dealt], path)
        for bank in self.banks.values():
            bank.consortium.refresh()

    def set_policy(self, **changes: Any) -> None:
        """Put a changed policy of the next epoch in force, everywhere."""
        fields = {name: getattr(self.chair.policy, name) for name in PolicyBundle.__struct_fields__}
        self.chair.policy = PolicyBundle(**(fields | {"policy_epoch": fields["policy_epoch"] + 1} | changes))
        self.chair.publish()
        for bank in self.banks.values():
            bank.consortium.refresh()

    def remove(self, party: str) -> None:
        """``party`` leaves: a roll without it and without its public shares, believed by everybody else."""
        roll = self.chair.roll
        index = next(each.share_index for each in roll.parties if each.party == party)
        self.banks.pop(party).close()
        self.chair.roll = msgspec.structs.replace(
            roll,
            version=roll.version + 1,
            parties=[each for each in roll.parties if each.party != party],
            group_keys=[
                msgspec.structs.replace(
                    key, public_shares=[each for each in key.public_shares if each.share_index != index]
                )
                for key in roll.group_keys
            ],
        )
        self.chair.publish()
        for bank in self.banks.values():
            bank.consortium.refresh()

    def take_turns(self, rounds: int = 2) -> None:
        """Let every bank look after its inquiries."""
        for _ in range(rounds):
            for bank in self.banks.values():
                bank.participation.poll(0)

    def close(self) -> None:
        for bank in self.banks.values():
            bank.close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database at the newest schema, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "empty.sqlite3"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def world(tmp_path: Path, migrated: Path) -> Iterator[World]:
    """Three banks, threshold two."""
    made = World(tmp_path, 3, migrated)
    yield made
    made.close()


@pytest.fixture
def world_of_four(tmp_path: Path, migrated: Path) -> Iterator[World]:
    """Four banks, threshold three."""
    made = World(tmp_path, 4, migrated)
    yield made
    made.close()
