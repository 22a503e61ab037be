"""Asking joint statistics: one fresh key per inquiry, and only the sum over the whole cohort is ever decrypted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crypto.errors import CryptoError
from crypto.he.contexts import RequesterKey
from crypto.signing import SigningKey
from governance.inquiries import (
    CONFIRMED_FRAUDS,
    NONCE_SIZE,
    check_aggregate,
    days_of,
    find_rule,
    inquiry_id,
    mask_keys_digest,
)
from governance.log.entries import InquiryExpiredEntry
from governance.log.follow import LogFollowError
from governance.members import cohort, find_directory
from governance.messages.codec import MalformedError, encode
from governance.messages.inquiry import (
    Contribution,
    Inquiry,
    InquiryStatus,
    InquiryTask,
    MaskKey,
    OpenInquiry,
    Outcome,
    Veto,
)
from governance.messages.log import CheckpointUpdate, LogPage
from governance.messages.problems import ProblemError, RequestError
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy import requests
from governance.purposes import Purpose
from member_node.client.ports import Clock, CoordinatorPort, PartyUnreachableError, Random
from member_node.latencies import Latencies
from member_node.secret_files import StorageKey
from member_node.service.policy import Consortium
from member_node.service.questions import aggregate_question, outcome_commitment
from member_node.storage.questions import AggregateRecord, QuestionStore
from member_node.storage.trust import Fault, FaultStore

STATUS_WAIT_SECONDS = 20.0
GRACE_SECONDS = 10
SALT_SIZE = 32
LOGGER = logging.getLogger(__name__)

_E = TypeVar("_E", MaskKey, Contribution)

# (secret key bytes, ciphertexts by member, number of values, largest possible sum) -> the sum, int64. Adding and
# decrypting bytes that others made happens in a child process.
SumAndDecrypt = Callable[[bytes, Mapping[str, Sequence[bytes]], int, int], NDArray[np.int64]]


class InquiryFailedError(Exception):
    """An inquiry ended without an aggregate. ``missing``: who did not send; ``vetoes``: who refused, and why."""

    def __init__(
        self, reason: str, *, missing: Sequence[str] = (), vetoes: Mapping[str, str] | None = None
    ) -> None:
        parts = [reason]
        if missing:
            parts.append(f"missing: {', '.join(missing)}")
        parts += [f"{party}: {why}" for party, why in sorted((vetoes or {}).items())]
        super().__init__("; ".join(parts))
        self.missing = list(missing)
        self.vetoes = dict(vetoes or {})


class InquiryService:
    """The requester's side. Thread safe; :meth:`ask` blocks until the aggregate is there."""

    def __init__(
        self,
        key: SigningKey,
        consortium: Consortium,
        port: CoordinatorPort,
        store: QuestionStore,
        storage: StorageKey,
        faults: FaultStore,
        *,
        dataset: str,
        directory_digest: bytes,
        sum_and_decrypt: SumAndDecrypt,
        clock: Clock,
        random: Random,
        latencies: Latencies | None = None,
    ) -> None:
        """``dataset``, ``directory_digest``: the public directory this bank holds and its SHA-256."""
        self._party = consortium.anchors.party
        self._key = key
        self._consortium = consortium
        self._port = port
        self._store = store
        self._storage = storage
        self._faults = faults
        self._dataset = dataset
        self._directory_digest = directory_digest
        self._sum_and_decrypt = sum_and_decrypt
        self._clock = clock
        self._random = random
        self._latencies = latencies or Latencies()

    def ask(self, first_day: int, last_day: int) -> NDArray[np.int64]:
        """Confirmed frauds of the whole cohort, this bank included: int64 of shape [days, directory entries].

        Days count from 1970-01-01 in the data set's zone, both inclusive. A question answered before is answered
        from this bank's own store. Raises :class:`InquiryFailedError`,
        :class:`~governance.policy.decision.RefusedError`, :class:`RequestError`, and what the port raises.
        """
        inquiry, requester_key, context = self._make_inquiry(first_day, last_day)
        members = cohort(self._consortium.roll)
        question = aggregate_question(inquiry, members)
        known = self._store.aggregate(question)
        if known is not None:
            return self._from_store(known, inquiry)
        with self._latencies.time("inquiry", inquiry.cells):
            return self._ask(inquiry, members, question, requester_key, context)

    def _ask(
        self,
        inquiry: Inquiry,
        members: Sequence[str],
        question: bytes,
        requester_key: RequesterKey,
        context: bytes,
    ) -> NDArray[np.int64]:
        self._require_permitted(inquiry, members)
        signed = sign_message(inquiry, self._party, self._key)
        task = self._open(signed, inquiry, context, members)
        status = self._await_contributions(task, inquiry)
        aggregate = self._decrypt(inquiry, members, status, requester_key)
        record = AggregateRecord(
            question=question,
            inquiry_id=task.inquiry_id,
            salt=self._random(SALT_SIZE),
            sealed=self._storage.seal("aggregate", question, aggregate.astype("<i8").tobytes()),
            outcome_sent=0,
        )
        self._store.save_aggregate(record)
        self._send_outcome(record, aggregate)
        return aggregate.reshape(days_of(inquiry), -1)

    def _make_inquiry(self, first_day: int, last_day: int) -> tuple[Inquiry, RequesterKey, bytes]:
        roll, policy = self._consortium.roll, self._consortium.policy
        directory = find_directory(roll, self._dataset)
        if directory.digest != self._directory_digest:
            raise RequestError(
                "conflict",
                f"our copy of the directory {self._dataset!r} is not the one of the roll: install that one",
                self._party,
            )
        if last_day < first_day:
            raise RequestError("malformed", "the last day is before the first", self._party)
        requester_key = RequesterKey.generate()
        context = requester_key.public_context()
        inquiry = Inquiry(
            nonce=self._random(NONCE_SIZE),
            requester=self._party,
            template=CONFIRMED_FRAUDS,
            dataset=self._dataset,
            purpose=Purpose.JOINT_STATISTICS,
            first_day=first_day,
            last_day=last_day,
            cells=directory.cells * (last_day - first_day + 1),
            privacy="none",
            mode="strict",
            roll_version=roll.version,
            policy_epoch=policy.policy_epoch,
            created_at=self._clock(),
            context_digest=hashlib.sha256(context).digest(),
        )
        return inquiry, requester_key, context

    def _require_permitted(self, inquiry: Inquiry, members: Sequence[str]) -> None:
        asking = requests.inquire(
            self._party,
            inquiry.template,
            inquiry.dataset,
            inquiry.purpose,
            inquiry.cells,
            days_of(inquiry),
            members,
            inquiry.privacy,
            inquiry.mode,
        )
        self._consortium.decide(asking).require()

    def _open(self, signed: Signed, inquiry: Inquiry, context: bytes, members: Sequence[str]) -> InquiryTask:
        try:
            task = self._port.open_inquiry(OpenInquiry(inquiry=signed, context=context))
        except ProblemError as error:
            if error.problem.name in ("membership", "stale-policy"):
                self._consortium.refresh()
                raise InquiryFailedError("roll or policy changed meanwhile: ask again") from error
            raise
        if task.inquiry_id != inquiry_id(signed.payload) or task.cohort != list(members):
            raise self._blame("opened another inquiry than was asked, or with another cohort", encode(signed))
        return task

    def _await_contributions(self, task: InquiryTask, inquiry: Inquiry) -> InquiryStatus:
        rule = find_rule(self._consortium.policy, inquiry.template, inquiry.dataset, self._party)
        deadline = inquiry.created_at + rule.lifetime_seconds + GRACE_SECONDS
        waiting: list[str] = []
        while self._clock() < deadline:
            status = self._port.inquiry_status(task.inquiry_id, STATUS_WAIT_SECONDS)
            if status.inquiry_id != task.inquiry_id or status.cohort != task.cohort:
                raise self._blame("answers about another inquiry", b"")
            waiting = status.waiting_for or waiting
            if status.state == "complete":
                return status
            if status.state == "vetoed":
                raise InquiryFailedError("the inquiry was vetoed", vetoes=self._read_vetoes(status))
            if status.state not in ("keys", "contributions"):
                missing = self._missing_by_log(task) or waiting
                raise InquiryFailedError(f"the inquiry is {status.state}", missing=missing)
        raise InquiryFailedError("the inquiry ran out of time", missing=waiting)

    def _read_vetoes(self, status: InquiryStatus) -> dict[str, str]:
        vetoes = {}
        for signed in status.vetoes:
            veto = open_signed(Veto, signed, self._consortium.verify_keys())
            if (veto.member, veto.inquiry_id) == (signed.signer, status.inquiry_id):
                vetoes[veto.member] = veto.reason
        return vetoes

    def _missing_by_log(self, task: InquiryTask) -> list[str]:
        """Who the log says was missing when the inquiry expired; empty if the entry cannot be had."""
        try:
            page, log = self._consortium.follow(
                lambda since: self._port.log(task.intent.index, 256, since), _checkpoint_of
            )
            for logged in page.entries:
                entry = log.verify_entry(logged)
                if isinstance(entry, InquiryExpiredEntry) and entry.inquiry_id == task.inquiry_id.hex():
                    return list(entry.missing)
        except (LogFollowError, ProblemError, PartyUnreachableError) as error:
            LOGGER.warning("who was missing cannot be read from the log: %s", error)
        return []

    def _decrypt(
        self, inquiry: Inquiry, members: Sequence[str], status: InquiryStatus, requester_key: RequesterKey
    ) -> NDArray[np.int64]:
        """Verify every contribution, then add and decrypt them all at once: no part of a cohort is ever decrypted."""
        keys = self._collect(status, members)
        digest = mask_keys_digest(keys)
        ciphertexts: dict[str, list[bytes]] = {}
        for signed in status.contributions:
            part = self._open_from(Contribution, signed)
            if (part.member, part.inquiry_id) != (
                signed.signer,
                status.inquiry_id,
            ) or part.member in ciphertexts:
                raise self._blame(
                    f"hands over a contribution of {signed.signer} to something else", encode(signed)
                )
            if part.mask_keys_digest != digest:
                raise InquiryFailedError(f"{part.member} was shown other mask keys than we were")
            ciphertexts[part.member] = part.ciphertexts
        if sorted(ciphertexts) != list(members):
            raise self._blame("hands over contributions that are not those of the whole cohort", b"")
        rule = find_rule(self._consortium.policy, inquiry.template, inquiry.dataset, self._party)
        bound = len(members) * rule.max_cell_value
        try:
            aggregate = self._sum_and_decrypt(requester_key.to_bytes(), ciphertexts, inquiry.cells, bound)
            check_aggregate(aggregate, len(members), rule.max_cell_value)
        except (CryptoError, ValueError) as error:
            raise InquiryFailedError(f"the contributions do not add up: {error}") from error
        return aggregate

    def _collect(self, status: InquiryStatus, members: Sequence[str]) -> dict[str, bytes]:
        keys: dict[str, bytes] = {}
        for signed in status.mask_keys:
            key = self._open_from(MaskKey, signed)
            if (key.member, key.inquiry_id) == (signed.signer, status.inquiry_id):
                keys[key.member] = key.public_key
        if sorted(keys) != list(members):
            raise self._blame("hands over mask keys that are not those of the whole cohort", b"")
        return keys

    def _open_from(self, kind: type[_E], signed: Signed) -> _E:
        try:
            return open_signed(kind, signed, self._consortium.verify_keys())
        except (CryptoError, MalformedError) as error:
            raise self._blame(f"hands over a message that nobody signed: {error}", encode(signed)) from error

    def _from_store(self, known: AggregateRecord, inquiry: Inquiry) -> NDArray[np.int64]:
        content = self._storage.unseal("aggregate", known.question, known.sealed)
        aggregate = np.frombuffer(content, dtype="<i8").astype(np.int64)
        if not known.outcome_sent:
            self._send_outcome(known, aggregate)
        return aggregate.reshape(days_of(inquiry), -1)

    def _send_outcome(self, record: AggregateRecord, aggregate: NDArray[np.int64]) -> None:
        """Commit to the aggregate in the log. If the coordinator does not take it now, a later ask tries again."""
        outcome = Outcome(
            inquiry_id=record.inquiry_id,
            requester=self._party,
            commitment=outcome_commitment(record.salt, aggregate),
            cells=aggregate.size,
        )
        try:
            self._port.send_outcome(record.inquiry_id, sign_message(outcome, self._party, self._key))
        except (PartyUnreachableError, ProblemError) as error:
            LOGGER.warning("the outcome of %s is not logged yet: %s", record.inquiry_id.hex()[:16], error)
            return
        self._store.mark_outcome_sent(record.question)

    def _blame(self, reason: str, evidence: bytes) -> InquiryFailedError:
        coordinator = self._consortium.anchors.coordinator
        self._faults.record(Fault(coordinator, self._clock(), "inquiry", reason, evidence))
        return InquiryFailedError(f"{coordinator} {reason}")


def _checkpoint_of(page: LogPage) -> CheckpointUpdate:
    return page.checkpoint
