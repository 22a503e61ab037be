"""A day's exchange with the consortium: mirror the index, and ask for the counts of the days that have matured."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from crypto.errors import CryptoError
from governance.log.follow import LogFollowError
from governance.members import MembershipError
from governance.messages.codec import MalformedError
from governance.messages.problems import ProblemError, RequestError
from governance.policy.decision import RefusedError
from member_node.client.ports import NotMaturedError, PartyUnreachableError
from member_node.service.counts import ConsortiumCounts
from member_node.service.index import FeedError, SyncReport
from member_node.service.inquiry import InquiryFailedError
from member_node.service.lookup import ConsortiumUnavailableError
from member_node.service.outcomes import OutcomeStatistic
from member_node.service.policy import NotJoinedError
from member_node.service.stream_parts import Asker, ShareReport, StreamParts
from member_node.streams.mapping import StreamMapping

LOGGER = logging.getLogger(__name__)
INQUIRY_ATTEMPTS = 2
DAY_US = 86_400_000_000
# What leaves the mirror or the counts behind until the next day's share; scoring goes on, marked as degraded.
OUTAGES = (
    ConsortiumUnavailableError,
    InquiryFailedError,
    NotJoinedError,
    NotMaturedError,
    PartyUnreachableError,
    ProblemError,
    RefusedError,
    RequestError,
)
# The same, but no outage: what the coordinator serves contradicts its log, its keys or the protocol.
CONTRADICTIONS = (CryptoError, FeedError, LogFollowError, MalformedError, MembershipError)


def statistic_of(parts: StreamParts) -> OutcomeStatistic:
    """The bank's own part of joint statistics over its public directory."""
    return OutcomeStatistic(parts.outcomes, parts.stream, len(parts.public_ids))


def share_day(
    parts: StreamParts, mapping: StreamMapping, counts: ConsortiumCounts | None, day: int
) -> ShareReport:
    """Bring mirror and counts to what is known at the start of ``day``; what fails is reported and caught up later."""
    report = SyncReport(0, 0, (), (), 0)
    reason, distrust, before = "", "", _held_until(counts)
    try:
        report = parts.mirror.sync(_day_start_ms(mapping, day))
        distrust = _kept_back(report)
        if counts is not None:
            _ask_matured(parts, mapping, counts, day)
    except (*OUTAGES, *CONTRADICTIONS) as error:
        LOGGER.warning("%s: sharing on day %d is incomplete: %s", parts.party, day, error)
        if _is_contradiction(error):
            distrust = "; ".join(filter(None, (distrust, str(error))))
        else:
            reason = str(error)
    until = _held_until(counts)
    asked = until - before if before >= 0 else 0
    return ShareReport(report.deltas, report.labels, len(report.matches), asked, until, reason, distrust)


def _kept_back(report: SyncReport) -> str:
    """What a sync that went through says of the coordinator all the same; empty if nothing."""
    texts = []
    if report.behind:
        texts.append(f"the feed withholds {report.behind} deltas that the log shows")
    if report.overdue_receipts:
        texts.append(f"{report.overdue_receipts} batches of ours were not merged as promised")
    return "; ".join(texts)


def _is_contradiction(error: Exception) -> bool:
    if isinstance(error, RequestError):
        return error.name == "invalid-proof"
    return isinstance(error, CONTRADICTIONS)


def _held_until(counts: ConsortiumCounts | None) -> int:
    return -1 if counts is None or counts.next_day is None else counts.next_day - 1


def _ask_matured(parts: StreamParts, mapping: StreamMapping, counts: ConsortiumCounts, day: int) -> None:
    """Ask for every matured day not held yet, as many days an inquiry as the policy allows."""
    first = counts.next_day
    spans = [rule.max_days for rule in parts.policy().inquiries if rule.dataset == counts.dataset]
    if first is None or not spans:
        return
    last = day - mapping.label_delay_days - 1
    while first <= last:
        until = min(last, first + max(spans) - 1)
        aggregate = _ask(parts.asker, parts.party, first, until)
        counts.add(first, aggregate, statistic_of(parts).counts(first, until))
        first = until + 1


def _ask(asker: Asker, party: str, first: int, last: int) -> NDArray[np.int64]:
    """Ask; a cohort that lost a member once may be whole again, so a failed inquiry is asked a second time."""
    for attempt in range(1, INQUIRY_ATTEMPTS):
        try:
            return asker.ask(first, last)
        except InquiryFailedError as error:
            LOGGER.warning("%s: inquiry attempt %d failed: %s", party, attempt, error)
    return asker.ask(first, last)


def _day_start_ms(mapping: StreamMapping, day: int) -> int:
    start = np.array([day * DAY_US], dtype=np.int64)
    return int((start - mapping.offset_us(start))[0]) // 1000
