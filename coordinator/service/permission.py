"""Asking the policy, and writing down what it decided: refusals before the caller hears of them, reads as totals.

Nobody can fill the log by asking: of refusals of one party, action and rule the first is an entry at once, and the
repetitions within a minute become one entry with their number. Permitted reads change nothing, so they become one
entry an hour. Counts wait in the database, not in memory; an export logs them all first (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.service.consortium import Consortium
from coordinator.service.log import GovernanceLog, LogTransaction
from coordinator.storage import counts
from coordinator.storage.counts import CountedReads, CountedRefusals, Read, Refusal
from coordinator.storage.database import Database
from governance.log.entries import InquiryRefusalEntry, ReadsEntry, RefusalEntry, as_claimed
from governance.policy.decision import AccessRequest, Decision

MAX_REASON = 500
REFUSAL_SECONDS = 60
READ_SECONDS = 3600


class Permission:
    """Decides with the bundle in force."""

    def __init__(
        self, database: Database, consortium: Consortium, log: GovernanceLog, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._consortium = consortium
        self._log = log
        self._clock = clock

    def require(self, request: AccessRequest, purpose: str) -> Decision:
        """The permitting decision; a refusal is logged or counted, and raised as RefusedError."""
        decision = self._consortium.decider.decide(request)
        if not decision.permitted:
            self.refuse(
                make_refusal(
                    request.principal,
                    request.action,
                    "/".join(request.resource),
                    purpose,
                    decision.reason,
                    decision.rule,
                    decision.policy_epoch,
                )
            )
        decision.require()
        return decision

    def require_read(self, request: AccessRequest, purpose: str) -> None:
        """As :meth:`require`, for what is read only: also a permitted request is counted."""
        decision = self.require(request, purpose)
        read = Read(request.principal, request.action, purpose, decision.rule, decision.policy_epoch)
        with self._database.write(wait_for_disk=False) as connection:
            counts.count_read(connection, read, int(self._clock()))

    def refuse(self, refusal: Refusal) -> None:
        """Log ``refusal``, or count it as a repetition."""
        if not self.is_repeated(refusal):
            with self._log.transaction() as transaction:
                log_refusal(transaction, refusal)

    def is_repeated(self, refusal: Refusal) -> bool:
        """Whether ``refusal`` repeats one of the last minute, and then it is counted; costs no checkpoint."""
        with self._database.write(wait_for_disk=False) as connection:
            return counts.repeat_refusal(connection, refusal, int(self._clock()))

    def close_due(self) -> None:
        """Log the counts whose time is over."""
        now = int(self._clock())
        with self._database.read() as connection:
            refused = counts.counted_refusals(connection, now)
            if not refused and not counts.counted_reads(connection, now - READ_SECONDS):
                return
        with self._log.transaction() as transaction:
            _close(transaction, now)

    def close_all(self) -> None:
        """Log all counts, for instance because the process ends."""
        with self._log.transaction() as transaction:
            close_counts(transaction)


def make_refusal(
    party: str, action: str, resource: str, purpose: str, reason: str, rule: str, policy_epoch: int
) -> Refusal:
    """A refusal whose texts, which the party may have written, are cut to what an entry may carry."""
    return Refusal(
        party=party,
        action=action,
        resource=as_claimed(resource),
        purpose=as_claimed(purpose),
        reason=reason.encode("utf-8", "replace").decode()[:MAX_REASON],
        rule=rule,
        policy_epoch=policy_epoch,
    )


def log_refusal(
    transaction: LogTransaction, refusal: Refusal, entry: InquiryRefusalEntry | None = None
) -> bool:
    """Append ``refusal`` and open a window for its repetitions, or count it in the one that is open."""
    connection, now = transaction.connection, transaction.at
    if counts.repeat_refusal(connection, refusal, now):
        return False
    before = counts.find_refusals(connection, refusal)
    if before is not None and before.requests:
        transaction.append(_refusal_entry(transaction, before.refusal, before.since, before.requests))
    transaction.append(entry or _refusal_entry(transaction, refusal, now, 1))
    counts.open_window(connection, refusal, since=now, until=now + REFUSAL_SECONDS)
    return True


def close_counts(transaction: LogTransaction) -> None:
    """Append everything that is counted, whether its time is over or not."""
    _close(transaction, None)


def _close(transaction: LogTransaction, due: int | None) -> None:
    """Append what is due at ``due`` (unix s); without it everything."""
    connection = transaction.connection
    for refused in counts.counted_refusals(connection, due):
        _close_refusals(transaction, refused)
    for reads in counts.counted_reads(connection, None if due is None else due - READ_SECONDS):
        transaction.append(_reads_entry(reads, transaction.at))
        counts.end_reads(connection, reads.read, transaction.at)


def _close_refusals(transaction: LogTransaction, refused: CountedRefusals) -> None:
    """One entry for what was counted; the party that goes on gets one a minute, not two."""
    if not refused.requests:
        if refused.until <= transaction.at:
            counts.drop_refusals(transaction.connection, refused.refusal)
        return
    transaction.append(_refusal_entry(transaction, refused.refusal, refused.since, refused.requests))
    counts.open_window(
        transaction.connection,
        refused.refusal,
        since=transaction.at,
        until=max(refused.until, transaction.at + REFUSAL_SECONDS),
    )


def _refusal_entry(transaction: LogTransaction, refusal: Refusal, since: int, requests: int) -> RefusalEntry:
    return RefusalEntry(
        at=transaction.at,
        parties=[refusal.party],
        party=refusal.party,
        action=refusal.action,
        resource=refusal.resource,
        purpose=refusal.purpose,
        reason=refusal.reason,
        rule=refusal.rule,
        policy_epoch=refusal.policy_epoch,
        since=since,
        requests=requests,
    )


def _reads_entry(counted: CountedReads, now: int) -> ReadsEntry:
    read = counted.read
    return ReadsEntry(
        at=now,
        parties=[read.party],
        party=read.party,
        action=read.action,
        purpose=read.purpose,
        rule=read.rule,
        policy_epoch=read.policy_epoch,
        period_start=min(counted.period_start, now),
        period_end=now,
        requests=counted.requests,
    )
