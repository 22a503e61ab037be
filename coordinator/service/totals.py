"""The key holders' signed accounts of what they were asked: one after the other, none missing, into the log."""

from __future__ import annotations

import hashlib

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog
from coordinator.storage import budgets
from coordinator.storage import totals as stored
from governance.log.evidence import totals_entry
from governance.members import find_party
from governance.messages.log import CheckpointUpdate
from governance.messages.lookup import EvaluationTotals
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, open_signed

MAX_COUNTS = 1024
SECONDS_PER_HOUR = 3600
# One a minute on average. A holder sends one an hour, more when it is told to, and what it could not send before.
ACCOUNTS_PER_HOUR = 60
ACCOUNTS_BUDGET = "accounts"


class TotalsService:
    """Accepts the next account of each holder; the last one again changes nothing."""

    def __init__(self, log: GovernanceLog, consortium: Consortium) -> None:
        self._log = log
        self._consortium = consortium

    def submit(self, caller: str, envelope: Signed) -> CheckpointUpdate:
        """Log the account and return a checkpoint that covers it."""
        totals = open_signed(EvaluationTotals, envelope, self._consortium.keys)
        self._check(caller, envelope, totals)
        digest = hashlib.sha256(envelope.payload).digest()
        with self._log.transaction() as transaction:
            last = stored.last_totals(transaction.connection, caller)
            if totals.sequence == last.sequence:
                if digest != last.digest:
                    raise RequestError(
                        "conflict", f"another account {totals.sequence} was accepted before", caller
                    )
            elif totals.sequence != last.sequence + 1:
                raise RequestError(
                    "out-of-order",
                    f"account {totals.sequence} does not follow account {last.sequence}",
                    caller,
                )
            elif totals.period_start < last.period_end:
                raise RequestError(
                    "conflict", f"the period begins before {last.period_end}, already accounted for", caller
                )
            elif not budgets.spend(
                transaction.connection,
                caller,
                ACCOUNTS_BUDGET,
                period=transaction.at // SECONDS_PER_HOUR,
                amount=1,
                limit=ACCOUNTS_PER_HOUR,
            ):
                raise RequestError(
                    "budget-exceeded", f"{ACCOUNTS_PER_HOUR} accounts an hour are accepted", caller
                )
            else:
                transaction.append(totals_entry(envelope, at=transaction.at))
                stored.add_totals(transaction.connection, totals, digest, envelope)
        return self._log.update(0)

    def _check(self, caller: str, envelope: Signed, totals: EvaluationTotals) -> None:
        if (envelope.signer, totals.holder) != (caller, caller):
            raise RequestError("refused", f"the account is of {totals.holder}, not of the caller", caller)
        if not find_party(self._consortium.roll, caller).share_index:
            raise RequestError("membership", "holds no key share, so it has nothing to account for", caller)
        if totals.period_end <= totals.period_start:
            raise RequestError("malformed", "the period ends before it begins", caller)
        if len(totals.counts) > MAX_COUNTS:
            raise RequestError("too-large", f"{len(totals.counts)} counts, at most {MAX_COUNTS}", caller)
        for count in totals.counts:
            if min(count.requests, count.elements) < 0:
                raise RequestError("malformed", "a count is negative", caller)
