"""Taking part in joint statistics: verify everything, decide for oneself, then contribute once (DESIGN 5.3, strict).

The member believes an inquiry only when the intent is in the log under a fresh checkpoint, the cohort is the roll's,
and its own decider and its own ledger permit it; what the coordinator hands over is checked again at the moment of
the contribution. What it decided, its mask secret (sealed), its statistic of each day and its contribution are
stored before anything is sent, so a restart continues, no day is answered twice differently, and none for two cohorts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crypto.errors import CryptoError
from crypto.he.contexts import load_public_context
from crypto.he.contributions import encrypt_vector
from crypto.he.parameters import MAX_CONTEXT_BYTES, P
from crypto.masks import MaskSecret, generate_mask_key, mask_vector
from crypto.signing import SigningKey
from governance.inquiries import (
    InquiryError,
    check_inquiry,
    cohort_digest,
    days_of,
    encode_counts,
    inquiry_id,
    mask_binding,
    mask_keys_digest,
)
from governance.log.entries import InquiryIntentEntry
from governance.log.follow import (
    LogFollowError,
    RollbackError,
    TrustedLog,
    UnprovenEntryError,
    UnprovenGrowthError,
)
from governance.members import MembershipError, cohort, find_directory
from governance.messages.codec import MalformedError, decode, encode
from governance.messages.inquiry import Contribution, Inquiry, InquiryTask, MaskKey, Veto
from governance.messages.policy import InquiryRule
from governance.messages.problems import ProblemError
from governance.messages.signed import Signed, open_signed, sign_message
from governance.policy import requests
from member_node.client.ports import Clock, CoordinatorPort, LocalStatistic, NotMaturedError, Random
from member_node.secret_files import StorageKey
from member_node.service.policy import Consortium
from member_node.service.questions import day_statistic, statistic_question
from member_node.storage.questions import InquiryRecord, OverlapError, QuestionStore, StatisticSeries
from member_node.storage.trust import Fault, FaultStore

SECONDS_PER_DAY = 86_400
ROUNDS = 4
LOGGER = logging.getLogger(__name__)


class _RefusedInquiryError(Exception):
    """This member does not take part; ``reason`` goes into its veto."""


class Participation:
    """One cohort member's side of every inquiry. Used by one background thread."""

    def __init__(
        self,
        key: SigningKey,
        consortium: Consortium,
        port: CoordinatorPort,
        statistic: LocalStatistic,
        store: QuestionStore,
        storage: StorageKey,
        faults: FaultStore,
        *,
        dataset: str,
        directory_digest: bytes,
        clock: Clock,
        random: Random,
    ) -> None:
        """``dataset`` and ``directory_digest`` (SHA-256): the installed public directory that the statistic is over."""
        self._party = consortium.anchors.party
        self._dataset = dataset
        self._directory_digest = directory_digest
        self._key = key
        self._consortium = consortium
        self._port = port
        self._statistic = statistic
        self._store = store
        self._storage = storage
        self._faults = faults
        self._clock = clock
        self._random = random

    def poll(self, wait: float) -> bool:
        """Handle every inquiry that waits for this member; block up to ``wait`` seconds for the first.

        Returns whether one of them has to be looked at again soon (the statistic is not complete yet, or the
        log could not be followed). Raises what the port raises.
        """
        again = False
        tasks = self._port.tasks(wait, self._consortium.log_size).tasks
        for _ in range(ROUNDS):
            late: dict[bytes, LogFollowError] = {}
            for task in tasks:
                try:
                    log = self._consortium.follow_received(task.checkpoint)
                except (UnprovenGrowthError, RollbackError) as error:
                    # The log went on while the answer was made or under way: ask again from where we are now.
                    late[task.inquiry_id] = error
                    continue
                except LogFollowError as error:
                    self._blame(task, f"a log that cannot be followed: {error}")
                    again = True
                    continue
                again = self._handle_safely(task, log) or again
            if not late:
                return again
            fresh = self._port.tasks(0, self._consortium.log_size).tasks
            tasks = [task for task in fresh if task.inquiry_id in late]
        for task in tasks:
            self._blame(task, f"a log that cannot be followed: {late[task.inquiry_id]}")
        return True

    def _handle_safely(self, task: InquiryTask, log: TrustedLog) -> bool:
        """Handle one task; whether it has to be looked at again soon."""
        try:
            self.handle(task, log)
        except NotMaturedError as error:
            LOGGER.info("inquiry %s waits: %s", task.inquiry_id.hex()[:16], error)
            return True
        except ProblemError as error:
            # Someone vetoed, or the lifetime ended, while we were at it: the next poll shows.
            LOGGER.info("inquiry %s: %s", task.inquiry_id.hex()[:16], error)
            return True
        return False

    def handle(self, task: InquiryTask, log: TrustedLog) -> None:
        """Take the next step of one inquiry: refuse with a veto, send the mask key, or contribute.

        ``log``: the verified log under the checkpoint that came with the task.
        """
        try:
            inquiry = open_signed(Inquiry, task.inquiry, self._consortium.verify_keys())
        except (CryptoError, MalformedError) as error:
            self._blame(task, f"an inquiry that nobody signed: {error}")
            return
        if inquiry_id(task.inquiry.payload) != task.inquiry_id or task.inquiry.signer != inquiry.requester:
            self._blame(task, "an inquiry under another id, or of another party, than it says")
            return
        record = self._store.inquiry(task.inquiry_id)
        if record is None:
            record = self._decide(task, inquiry, log)
        if record.refusal:
            self._send_veto(task.inquiry_id, record.refusal)
        elif not task.mask_keys:
            self._port.send_mask_key(task.inquiry_id, decode(Signed, record.mask_key))
        else:
            self._contribute(task, inquiry, record)

    # ---- deciding

    def _decide(self, task: InquiryTask, inquiry: Inquiry, log: TrustedLog) -> InquiryRecord:
        """Decide once, and write the decision down before anything of it is sent."""
        question = statistic_question(inquiry)
        try:
            self._check(task, inquiry, log)
        except _RefusedInquiryError as error:
            LOGGER.warning(
                "inquiry %s of %s is vetoed: %s", task.inquiry_id.hex()[:16], inquiry.requester, error
            )
            record = InquiryRecord(
                inquiry_id=task.inquiry_id,
                requester=inquiry.requester,
                question=question,
                decided_at=self._clock(),
                first_day=inquiry.first_day,
                last_day=inquiry.last_day,
                refusal=str(error)[:200],
            )
            self._store.save_inquiry(record)
            return record
        secret = generate_mask_key(self._random)
        mask_key = MaskKey(
            inquiry_id=task.inquiry_id,
            cohort_digest=cohort_digest(task.cohort),
            member=self._party,
            public_key=secret.public_key,
        )
        record = InquiryRecord(
            inquiry_id=task.inquiry_id,
            requester=inquiry.requester,
            question=question,
            decided_at=self._clock(),
            first_day=inquiry.first_day,
            last_day=inquiry.last_day,
            mask_secret=self._storage.seal("mask-secret", task.inquiry_id, secret.encode()),
            mask_key=encode(sign_message(mask_key, self._party, self._key)),
        )
        self._store.save_inquiry(record)
        return record

    def _check(self, task: InquiryTask, inquiry: Inquiry, log: TrustedLog) -> None:
        try:
            entry = log.verify_entry(task.intent)
        except UnprovenEntryError as error:
            self._blame(task, f"an inquiry whose intent is not in the log: {error}")
            raise _RefusedInquiryError("the intent is not in the log") from error
        named = isinstance(entry, InquiryIntentEntry) and (
            entry.inquiry_id == task.inquiry_id.hex() and entry.cohort == task.cohort
        )
        if not named:
            self._blame(task, "an inquiry with the log entry of something else")
            raise _RefusedInquiryError("the logged intent is not this inquiry's")
        consortium = self._consortium
        if inquiry.roll_version > consortium.roll.version or inquiry.policy_epoch > consortium.policy_epoch():
            consortium.refresh()
        rule = self._check_terms(task, inquiry)
        today = self._clock() // SECONDS_PER_DAY * SECONDS_PER_DAY
        if self._store.decided_since(inquiry.requester, today) >= rule.max_per_requester_per_day:
            raise _RefusedInquiryError("the requester's inquiries of this day are spent")

    def _check_terms(self, task: InquiryTask, inquiry: Inquiry) -> InquiryRule:
        """What must hold when the inquiry is decided and still when it is answered; else a refusal.

        The coordinator hands over context and cohort anew with each task: whoever chose the context reads the sum.
        """
        if hashlib.sha256(task.context).digest() != inquiry.context_digest:
            self._blame(task, "an encryption context that is not the one the requester signed")
            raise _RefusedInquiryError("the encryption context is not the one the inquiry names")
        consortium = self._consortium
        if task.cohort != cohort(consortium.roll):
            self._blame(task, "a cohort that is not all members of the roll")
            raise _RefusedInquiryError("the cohort is not all members of the roll")
        try:
            rule = check_inquiry(
                inquiry,
                bundle=consortium.policy,
                roll=consortium.roll,
                context=task.context,
                now=self._clock(),
            )
            series = self._series(inquiry)
            self._store.frozen(series, cohort_digest(task.cohort), inquiry.first_day, inquiry.last_day)
        except (InquiryError, MembershipError) as error:
            raise _RefusedInquiryError(error.reason) from error
        except OverlapError as error:
            raise _RefusedInquiryError(str(error)) from error
        self._check_permitted(inquiry, task.cohort)
        return rule

    def _series(self, inquiry: Inquiry) -> StatisticSeries:
        directory = find_directory(self._consortium.roll, inquiry.dataset)
        # One statistic under two names would be answered for two cohorts, and their difference is one bank's counts.
        if inquiry.dataset != self._dataset or directory.digest != self._directory_digest:
            raise _RefusedInquiryError(
                f"our statistic is not over the directory that the roll calls {inquiry.dataset!r}"
            )
        return StatisticSeries(inquiry.template, inquiry.dataset, directory.digest)

    def _check_permitted(self, inquiry: Inquiry, members: Sequence[str]) -> None:
        """This member's own decision, on the asking as well as on its taking part."""
        asking = requests.inquire(
            inquiry.requester,
            inquiry.template,
            inquiry.dataset,
            inquiry.purpose,
            inquiry.cells,
            days_of(inquiry),
            members,
            inquiry.privacy,
            inquiry.mode,
        )
        taking_part = requests.take_part(
            self._party,
            inquiry.requester,
            inquiry.template,
            inquiry.dataset,
            inquiry.purpose,
            inquiry.cells,
            members,
        )
        for request in (asking, taking_part):
            decision = self._consortium.decide(request)
            if not decision.permitted:
                raise _RefusedInquiryError(f"refused by rule {decision.rule}")

    def _send_veto(self, identifier: bytes, reason: str) -> None:
        veto = Veto(inquiry_id=identifier, member=self._party, reason=reason)
        self._port.send_veto(identifier, sign_message(veto, self._party, self._key))

    # ---- contributing

    def _contribute(self, task: InquiryTask, inquiry: Inquiry, record: InquiryRecord) -> None:
        if not record.contribution:
            try:
                record = self._make_contribution(task, inquiry, record)
            except (_RefusedInquiryError, CryptoError) as error:
                record = replace(record, refusal=str(error)[:200], mask_secret=b"")
                self._store.save_inquiry(record)
                self._send_veto(task.inquiry_id, record.refusal)
                return
        self._port.send_contribution(task.inquiry_id, decode(Signed, record.contribution))

    def _make_contribution(self, task: InquiryTask, inquiry: Inquiry, record: InquiryRecord) -> InquiryRecord:
        """Mask, encrypt, sign, and store the contribution in place of the mask secret, which nothing needs again."""
        rule = self._check_terms(task, inquiry)
        keys = self._mask_keys(task, decode(Signed, record.mask_key))
        values = self._values(inquiry, task.cohort, rule.max_cell_value)
        encoded = self._storage.unseal("mask-secret", task.inquiry_id, record.mask_secret)
        masks = mask_vector(
            MaskSecret.decode(encoded),
            self._party,
            {member: key for member, key in keys.items() if member != self._party},
            binding=mask_binding(task.inquiry_id, task.cohort, keys),
            length=inquiry.cells,
            modulus=P,
        )
        context = load_public_context(task.context, MAX_CONTEXT_BYTES)
        contribution = Contribution(
            inquiry_id=task.inquiry_id,
            member=self._party,
            mask_keys_digest=mask_keys_digest(keys),
            ciphertexts=encrypt_vector(context, (values + masks) % P),
        )
        signed = encode(sign_message(contribution, self._party, self._key))
        done = replace(record, mask_secret=b"", contribution=signed)
        self._store.save_inquiry(done)
        return done

    def _mask_keys(self, task: InquiryTask, own: Signed) -> Mapping[str, bytes]:
        """The whole cohort's mask keys, each signed for this inquiry and this cohort, ours as we sent it."""
        digest = cohort_digest(task.cohort)
        keys: dict[str, bytes] = {}
        for signed in task.mask_keys:
            try:
                key = open_signed(MaskKey, signed, self._consortium.verify_keys())
            except (CryptoError, MalformedError) as error:
                raise _RefusedInquiryError(f"a mask key is not valid: {error}") from error
            bound = (key.inquiry_id, key.cohort_digest, key.member) == (
                task.inquiry_id,
                digest,
                signed.signer,
            )
            if not bound or key.member in keys:
                raise _RefusedInquiryError(
                    f"the mask key of {signed.signer} is not for this inquiry and cohort"
                )
            keys[key.member] = key.public_key
        if sorted(keys) != task.cohort:
            raise _RefusedInquiryError("the mask keys are not those of the whole cohort")
        if keys[self._party] != decode(MaskKey, own.payload).public_key:
            raise _RefusedInquiryError("the mask key shown as ours is not the one we sent")
        return keys

    def _values(self, inquiry: Inquiry, members: Sequence[str], max_cell_value: int) -> NDArray[np.int64]:
        """This bank's answer, day by day: each day computed once, then always the same and for one cohort only."""
        series, asked_by = self._series(inquiry), cohort_digest(members)
        cells = inquiry.cells // days_of(inquiry)
        try:
            sealed = self._store.frozen(series, asked_by, inquiry.first_day, inquiry.last_day)
            missing = [day for day in range(inquiry.first_day, inquiry.last_day + 1) if day not in sealed]
            if missing:
                first, last = missing[0], missing[-1]
                counts = self._statistic.counts(first, last)
                values = encode_counts(counts, cells * (last - first + 1), max_cell_value)
                fresh = values.reshape(-1, cells).astype("<i8")
                sealed |= self._store.freeze(
                    series,
                    asked_by,
                    {day: self._seal_day(series, day, fresh[day - first]) for day in missing},
                )
        except OverlapError as error:
            raise _RefusedInquiryError(str(error)) from error
        except ValueError as error:
            raise _RefusedInquiryError(f"the local statistic does not fit: {error}") from error
        days = [
            self._storage.unseal("statistic", day_statistic(series, day), sealed[day])
            for day in sorted(sealed)
        ]
        return np.frombuffer(b"".join(days), dtype="<i8").astype(np.int64)

    def _seal_day(self, series: StatisticSeries, day: int, values: NDArray[np.int64]) -> bytes:
        return self._storage.seal("statistic", day_statistic(series, day), values.tobytes())

    def _blame(self, task: InquiryTask, reason: str) -> None:
        LOGGER.warning("%s sent %s", self._consortium.anchors.coordinator, reason)
        self._faults.record(
            Fault(
                self._consortium.anchors.coordinator, self._clock(), "inquiry", reason, encode(task.inquiry)
            )
        )
