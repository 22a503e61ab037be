"""Whether an inquiry may be asked at all: versions, policy, bounds, budget; and the intent that says so.

Reserving the budget and appending the intent are one transaction. Refusals are logged before the requester hears
of them, except that what is merely out of date is no refusal.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog, LogTransaction
from coordinator.storage import inquiries as stored
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
MAX_REASON = 500
BOUNDS_RULE = "inquiry-bounds"
BUDGET_RULE = "inquiry-budget"


class Admission:
    """Decides on inquiries one at a time: its caller holds the lock of all inquiries."""

    def __init__(
        self, database: Database, log: GovernanceLog, consortium: Consortium, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._log = log
        self._consortium = consortium
        self._clock = clock

    def permit(self, identifier: bytes, inquiry: Inquiry, message: OpenInquiry) -> StoredInquiry:
        """The stored inquiry with its logged intent, or the refusal as an exception."""
        with self._database.read() as connection:
            before = stored.find_refused(connection, identifier)
        if before is not None:
            rule_id, reason = before
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
            with self._log.transaction() as transaction:
                self._log_refusal(transaction, identifier, inquiry, decision.reason, decision.rule)
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
            with self._log.transaction() as transaction:
                self._log_refusal(transaction, identifier, inquiry, error.reason, BOUNDS_RULE)
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
            self._log_refusal(transaction, identifier, inquiry, "the daily budget is spent", BUDGET_RULE)
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

    def _log_refusal(
        self, transaction: LogTransaction, identifier: bytes, inquiry: Inquiry, reason: str, rule: str
    ) -> None:
        stored.add_refused(transaction.connection, identifier, rule, reason)
        transaction.append(
            InquiryRefusalEntry(
                at=transaction.at,
                parties=[inquiry.requester],
                inquiry_id=identifier.hex(),
                requester=inquiry.requester,
                template=as_claimed(inquiry.template),
                dataset=as_claimed(inquiry.dataset),
                purpose=as_claimed(inquiry.purpose),
                reason=reason[:MAX_REASON],
                rule=rule,
                policy_epoch=self._consortium.policy.policy_epoch,
            )
        )
