"""A day's exchange with the consortium: mirror the index, and ask for the counts of the days that have matured."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from governance.log.follow import LogFollowError
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
SHARE_FAILURES = (
    ConsortiumUnavailableError,
    FeedError,
    InquiryFailedError,
    LogFollowError,
    MalformedError,
    NotJoinedError,
    NotMaturedError,
    PartyUnreachableError,
    ProblemError,
    RefusedError,
    RequestError,
)


def statistic_of(parts: StreamParts) -> OutcomeStatistic:
    """The bank's own part of joint statistics over its public directory."""
    return OutcomeStatistic(parts.outcomes, parts.stream, len(parts.public_ids))


def share_day(
    parts: StreamParts, mapping: StreamMapping, counts: ConsortiumCounts | None, day: int
) -> ShareReport:
    """Bring mirror and counts to what is known at the start of ``day``; what fails is reported and caught up later."""
    report = SyncReport(0, 0, (), (), 0)
    reason, before = "", _held_until(counts)
    try:
        report = parts.mirror.sync(_day_start_ms(mapping, day))
        if counts is not None:
            _ask_matured(parts, mapping, counts, day)
    except SHARE_FAILURES as error:
        LOGGER.warning("%s: sharing on day %d is incomplete: %s", parts.party, day, error)
        reason = str(error)
    until = _held_until(counts)
    asked = until - before if before >= 0 else 0
    return ShareReport(report.deltas, report.labels, len(report.matches), asked, until, reason)


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
