"""Joint statistics as the coordinator runs them: permit, log, collect, hand over, close.

The coordinator adds nothing and reads nothing: it checks who sent what and in which order, and it keeps bytes
until the requester has committed to its result. Order of one inquiry: reserve budget and append the intent (one
transaction) -> collect mask keys and contributions -> hand over -> append the outcome -> erase the bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from coordinator.service.admission import Admission
from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog, LogTransaction
from coordinator.service.permission import Permission
from coordinator.service.waiting import WaitingRoom
from coordinator.storage import inquiries as stored
from coordinator.storage.database import Connection, Database
from coordinator.storage.inquiries import StoredInquiry, StoredMessage
from crypto.he.parameters import MAX_CIPHERTEXT_BYTES, MAX_CONTEXT_BYTES, ciphertext_count
from governance.inquiries import (
    COMPLETE,
    CONTRIBUTIONS,
    FINAL_STATES,
    KEYS,
    VETOED,
    InquiryError,
    InquiryOrderError,
    InquiryProgress,
    inquiry_id,
)
from governance.log.entries import InquiryExpiredEntry
from governance.log.evidence import outcome_entry, veto_entry
from governance.messages.codec import decode
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
from governance.messages.log import CheckpointUpdate
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, open_signed

LIVE_STATES = (KEYS, CONTRIBUTIONS, COMPLETE)
STEPS: dict[str, type[MaskKey] | type[Contribution] | type[Veto] | type[Outcome]] = {
    "mask_key": MaskKey,
    "contribution": Contribution,
    "veto": Veto,
    "outcome": Outcome,
}


@dataclass(frozen=True)
class LiveInquiry:
    """An inquiry that is not finished: what is stored, what was asked, how far it has come."""

    stored: StoredInquiry
    inquiry: Inquiry
    progress: InquiryProgress

    def waits_for(self, member: str) -> bool:
        """Whether ``member`` still owes its mask key or contribution."""
        return self.progress.state in (KEYS, CONTRIBUTIONS) and member in self.progress.waiting_for


class InquiryService:
    """All inquiries. Every change happens under one lock, in one transaction, and is announced to who waits."""

    def __init__(
        self,
        database: Database,
        log: GovernanceLog,
        consortium: Consortium,
        permission: Permission,
        room: WaitingRoom,
        *,
        clock: Callable[[], float],
        checkpoint_age: int,
    ) -> None:
        """Take up what was unfinished when the process last ended."""
        self._database = database
        self._log = log
        self._consortium = consortium
        self._room = room
        self._admission = Admission(database, log, consortium, permission, clock)
        self._clock = clock
        self._checkpoint_age = checkpoint_age
        self._lock = threading.Lock()
        self._live: dict[bytes, LiveInquiry] = {}
        with database.read() as connection:
            for identifier in stored.ids_in_states(connection, LIVE_STATES):
                self._live[identifier] = _resume(connection, identifier)

    def open(self, caller: str, message: OpenInquiry) -> InquiryTask:
        """Decide on an inquiry and log the intent; a refusal is logged and raised. Repeating it is harmless."""
        inquiry = open_signed(Inquiry, message.inquiry, self._consortium.keys)
        _require_own(caller, message.inquiry, inquiry.requester)
        if len(message.context) > MAX_CONTEXT_BYTES:
            raise RequestError("too-large", f"a public context has at most {MAX_CONTEXT_BYTES} bytes", caller)
        identifier = inquiry_id(message.inquiry.payload)
        with self._lock:
            with self._database.read() as connection:
                known = stored.find_inquiry(connection, identifier)
            if known is None:
                known = self._admission.permit(identifier, inquiry, message)
                progress = InquiryProgress(identifier, caller, known.cohort, inquiry.cells)
                self._live[identifier] = LiveInquiry(known, inquiry, progress)
        self._room.announce()
        return self._task(known, 0, [])

    def tasks(self, caller: str, wait: float, since: int) -> InquiryTasks:
        """The inquiries that wait for ``caller``; waits up to ``wait`` seconds for the first one."""

        def waiting() -> list[LiveInquiry]:
            return [live for live in list(self._live.values()) if live.waits_for(caller)]

        self._room.wait_until(caller, lambda: bool(waiting()), wait)
        tasks = []
        for live in waiting():
            keys = self._messages(live.stored.inquiry_id, "mask_key")
            collected = keys if len(keys) == len(live.stored.cohort) else []
            tasks.append(self._task(live.stored, since, collected))
        return InquiryTasks(tasks=tasks)

    def status(self, caller: str, identifier: bytes, wait: float) -> InquiryStatus:
        """How far an inquiry is; waits up to ``wait`` seconds for the next change unless it needs no more."""
        known = self._find(caller, identifier)
        state = known.state
        if known.requester != caller or state != COMPLETE:
            self._room.wait_until(
                caller, lambda: state in FINAL_STATES or self._state(identifier) != state, wait
            )
        live = self._live.get(identifier)
        if live is None:
            known = self._find(caller, identifier)
        state = known.state if live is None else live.progress.state
        hand_over = state == COMPLETE and caller == known.requester
        return InquiryStatus(
            inquiry_id=identifier,
            state=state,
            cohort=list(known.cohort),
            waiting_for=[] if live is None else live.progress.waiting_for,
            vetoes=self._messages(identifier, "veto"),
            mask_keys=self._messages(identifier, "mask_key"),
            contributions=self._messages(identifier, "contribution") if hand_over else [],
        )

    def accept(self, caller: str, identifier: bytes, step: str, envelope: Signed) -> CheckpointUpdate:
        """Take a mask key, contribution, veto or outcome of ``caller``; an identical repetition changes nothing."""
        message = open_signed(STEPS[step], envelope, self._consortium.keys)
        _require_own(caller, envelope, message.requester if isinstance(message, Outcome) else message.member)
        self.expire_due()
        with self._lock:
            known = self._find(caller, identifier)
            live = self._live.get(identifier)
            if live is None:
                self._check_repetition(caller, known, step, envelope)
                return self._log.update(0)
            if isinstance(message, Contribution):
                _check_shape(caller, live.inquiry, message)
            progress = live.progress.advance(caller, message)
            if progress is not live.progress:
                with self._log.transaction() as transaction:
                    self._record(transaction, live, progress, step, caller, envelope)
                self._put(live, progress)
        self._room.announce()
        return self._log.update(0)

    def expire_due(self) -> int:
        """End the inquiries whose lifetime is over, naming in the log who was missing; returns how many."""
        now = self._clock()
        if all(now < live.stored.deadline for live in list(self._live.values())):
            return 0
        with self._lock:
            due = [live for live in self._live.values() if now >= live.stored.deadline]
            for live in due:
                progress = live.progress.expire()
                with self._log.transaction() as transaction:
                    transaction.append(
                        InquiryExpiredEntry(
                            at=transaction.at,
                            parties=sorted(live.stored.cohort),
                            inquiry_id=live.stored.inquiry_id.hex(),
                            state=live.progress.state,
                            missing=live.progress.waiting_for,
                        )
                    )
                    _finish(transaction.connection, live.stored.inquiry_id, progress.state)
                self._put(live, progress)
        self._room.announce()
        return len(due)

    def _record(
        self,
        transaction: LogTransaction,
        live: LiveInquiry,
        progress: InquiryProgress,
        step: str,
        caller: str,
        envelope: Signed,
    ) -> None:
        connection, identifier = transaction.connection, live.stored.inquiry_id
        digest = hashlib.sha256(envelope.payload).digest()
        stored.add_message(connection, identifier, StoredMessage(step, caller, digest, envelope))
        if step == "veto":
            transaction.append(veto_entry(envelope, at=transaction.at, parties=live.stored.cohort))
        elif step == "outcome":
            transaction.append(outcome_entry(envelope, at=transaction.at, parties=live.stored.cohort))
        if progress.state in FINAL_STATES:
            _finish(connection, identifier, progress.state)
        elif progress.state != live.progress.state:
            stored.set_state(connection, identifier, progress.state)

    def _put(self, live: LiveInquiry, progress: InquiryProgress) -> None:
        if progress.state in FINAL_STATES:
            del self._live[live.stored.inquiry_id]
        else:
            self._live[live.stored.inquiry_id] = replace(live, progress=progress)

    def _check_repetition(self, caller: str, known: StoredInquiry, step: str, envelope: Signed) -> None:
        """After the end only what was accepted before may be sent again."""
        with self._database.read() as connection:
            before = stored.digest_of(connection, known.inquiry_id, step, caller)
        if before != hashlib.sha256(envelope.payload).digest():
            word = step.replace("_", " ")
            vetoed = " by a veto" if known.state == VETOED else ""
            raise InquiryOrderError(
                caller, f"a {word} does not fit an inquiry that ended{vetoed} ({known.state})"
            )

    def _find(self, caller: str, identifier: bytes) -> StoredInquiry:
        with self._database.read() as connection:
            known = stored.find_inquiry(connection, identifier)
        if known is None:
            raise RequestError("not-found", "there is no inquiry with this id", caller)
        if caller not in known.cohort:
            raise RequestError("refused", "the caller is not in the cohort of this inquiry", caller)
        return known

    def _state(self, identifier: bytes) -> str:
        live = self._live.get(identifier)
        return "" if live is None else live.progress.state

    def _messages(self, identifier: bytes, step: str) -> list[Signed]:
        with self._database.read() as connection:
            return [message.signed for message in stored.messages_of(connection, identifier, step)]

    def _task(self, known: StoredInquiry, since: int, mask_keys: list[Signed]) -> InquiryTask:
        head = self._log.fresh_head(self._checkpoint_age)
        return InquiryTask(
            inquiry_id=known.inquiry_id,
            inquiry=known.signed,
            context=known.context,
            cohort=list(known.cohort),
            intent=self._log.logged(known.intent_index, head),
            checkpoint=self._log.update(since, head),
            mask_keys=mask_keys,
        )


def _finish(connection: Connection, identifier: bytes, state: str) -> None:
    stored.set_state(connection, identifier, state)
    stored.erase_contributions(connection, identifier)


def _resume(connection: Connection, identifier: bytes) -> LiveInquiry:
    """The inquiry as its accepted messages leave it."""
    known = stored.find_inquiry(connection, identifier)
    if known is None:
        raise RequestError("not-found", "an inquiry vanished while it was read")
    inquiry = decode(Inquiry, known.signed.payload)
    progress = InquiryProgress(identifier, known.requester, known.cohort, inquiry.cells)
    for step in ("mask_key", "contribution"):
        for message in stored.messages_of(connection, identifier, step):
            progress = progress.advance(message.party, decode(STEPS[step], message.signed.payload))
    return LiveInquiry(known, inquiry, progress)


def _require_own(caller: str, envelope: Signed, sender: str) -> None:
    if (envelope.signer, sender) != (caller, caller):
        raise RequestError("refused", f"the message is of {sender}, not of the caller", caller)


def _check_shape(caller: str, inquiry: Inquiry, contribution: Contribution) -> None:
    expected = ciphertext_count(inquiry.cells)
    if len(contribution.ciphertexts) != expected:
        raise InquiryError(
            caller, f"{len(contribution.ciphertexts)} ciphertexts, {inquiry.cells} cells need {expected}"
        )
    if any(not 0 < len(ciphertext) <= MAX_CIPHERTEXT_BYTES for ciphertext in contribution.ciphertexts):
        raise RequestError("too-large", f"a ciphertext has 1 to {MAX_CIPHERTEXT_BYTES} bytes", caller)
