"""Whether an inquiry may be asked at all: versions, policy, bounds, budget; and the intent that says so.

Reserving the budget and appending the intent are one transaction. Refusals are logged before the requester hears
of them (repetitions within a minute as one entry), except that what is merely out of date is no refusal.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog, LogTransaction
from coordinator.service.permission import Permission, log_refusal, make_refusal
from coordinator.storage import inquiries as stored
from coordinator.storage.counts import Refusal
from coordinator.storage.database import Database
from coordinator.storage.inquiries import StoredInquiry
from governance.inquiries import KEYS, InquiryError, check_inquiry, days_of
from governance.log.entries import InquiryRefusalEntry, as_claimed
from governance.log.evidence import intent_entry
from governance.messages.inquiry import Inquiry, OpenInquiry
from governance.messages.policy import InquiryRule
from governance.messages.problems import RequestError
from governance.policy import requests
from governance.policy.decision import Decision

SECONDS_PER_DAY = 86_400
BOUNDS_RULE = "inquiry-bounds"
BUDGET_RULE = "inquiry-budget"


class Admission:
    """Decides on inquiries one at a time: its caller holds the lock of all inquiries."""

    def __init__(
        self,
        database: Database,
        log: GovernanceLog,
        consortium: Consortium,
        permission: Permission,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._log = log
        self._consortium = consortium
        self._permission = permission
        self._clock = clock

    def permit(self, identifier: bytes, inquiry: Inquiry, message: OpenInquiry) -> StoredInquiry:
        """The stored inquiry with its logged intent, or the refusal as an exception."""
        with self._database.read() as connection:
            before = stored.find_refused(connection, identifier)
        if before is not None:
            rule_id, reason = before
            self._permission.refuse(self._refusal(inquiry, reason, rule_id))
            raise RequestError(
                "refused", f"this inquiry was refused before: {reason} (rule {rule_id})", inquiry.requester
            )
        self._check_versions(inquiry)
        decision = self._consortium.decider.decide(
            requests.inquire(
                inquiry.requester,
                inquiry.template,
                inquiry.dataset,
                inquiry.purpose,
                inquiry.cells,
                days_of(inquiry),
                self._consortium.cohort,
                inquiry.privacy,
                inquiry.mode,
            )
        )
        if not decision.permitted:
            self._refuse(identifier, inquiry, decision.reason, decision.rule)
            decision.require()
        try:
            rule = check_inquiry(
                inquiry,
                bundle=self._consortium.policy,
                roll=self._consortium.roll,
                context=message.context,
                now=int(self._clock()),
            )
        except InquiryError as error:
            self._refuse(identifier, inquiry, error.reason, BOUNDS_RULE)
            raise
        with self._log.transaction() as transaction:
            known = self._reserve(transaction, identifier, inquiry, message, rule, decision)
        if known is None:
            raise RequestError(
                "budget-exceeded",
                f"{rule.max_per_requester_per_day} inquiries of this kind a day are permitted",
                inquiry.requester,
            )
        return known

    def _check_versions(self, inquiry: Inquiry) -> None:
        """What is merely out of date is no refusal: the requester synchronises and signs anew."""
        roll, policy = self._consortium.roll, self._consortium.policy
        if inquiry.roll_version != roll.version:
            raise RequestError(
                "membership",
                f"the inquiry names roll version {inquiry.roll_version}, in force is {roll.version}",
                inquiry.requester,
            )
        if inquiry.policy_epoch != policy.policy_epoch:
            raise RequestError(
                "stale-policy",
                f"the inquiry names policy epoch {inquiry.policy_epoch}, in force is {policy.policy_epoch}",
                inquiry.requester,
            )

    def _reserve(
        self,
        transaction: LogTransaction,
        identifier: bytes,
        inquiry: Inquiry,
        message: OpenInquiry,
        rule: InquiryRule,
        decision: Decision,
    ) -> StoredInquiry | None:
        """Spend the budget and log the intent, or log that the budget is spent and return None."""
        connection = transaction.connection
        key = (inquiry.requester, inquiry.template, inquiry.dataset, transaction.at // SECONDS_PER_DAY)
        if stored.spent_budget(connection, *key) >= rule.max_per_requester_per_day:
            spent = self._refusal(inquiry, "the daily budget is spent", BUDGET_RULE)
            self._log_refusal(transaction, identifier, inquiry, spent)
            return None
        stored.reserve_budget(connection, *key)
        intent = intent_entry(
            message.inquiry, at=transaction.at, cohort=self._consortium.cohort, rule=decision.rule
        )
        known = StoredInquiry(
            inquiry_id=identifier,
            requester=inquiry.requester,
            signed=message.inquiry,
            context=message.context,
            cohort=self._consortium.cohort,
            state=KEYS,
            opened_at=transaction.at,
            deadline=inquiry.created_at + rule.lifetime_seconds,
            intent_index=transaction.append(intent),
        )
        stored.add_inquiry(connection, known)
        return known

    def _refuse(self, identifier: bytes, inquiry: Inquiry, reason: str, rule: str) -> None:
        refusal = self._refusal(inquiry, reason, rule)
        if not self._permission.is_repeated(refusal):
            with self._log.transaction() as transaction:
                self._log_refusal(transaction, identifier, inquiry, refusal)

    def _refusal(self, inquiry: Inquiry, reason: str, rule: str) -> Refusal:
        asked = requests.statistic_id(inquiry.template, inquiry.dataset)
        return make_refusal(
            inquiry.requester,
            "inquire",
            f"{requests.STATISTIC}/{asked}",
            inquiry.purpose,
            reason,
            rule,
            self._consortium.policy.policy_epoch,
        )

    def _log_refusal(
        self, transaction: LogTransaction, identifier: bytes, inquiry: Inquiry, refusal: Refusal
    ) -> None:
        """Log a refusal and remember it, or count it if it is a repetition; that inquiry may be asked again."""
        entry = InquiryRefusalEntry(
            at=transaction.at,
            parties=[inquiry.requester],
            inquiry_id=identifier.hex(),
            requester=inquiry.requester,
            template=as_claimed(inquiry.template),
            dataset=as_claimed(inquiry.dataset),
            purpose=refusal.purpose,
            reason=refusal.reason,
            rule=refusal.rule,
            policy_epoch=refusal.policy_epoch,
        )
        if log_refusal(transaction, refusal, entry):
            stored.add_refused(transaction.connection, identifier, refusal.rule, refusal.reason)
