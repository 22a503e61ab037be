"""What a source is told of each row: disposition and verdict, or the code and field it was refused for.

An event that was scored before is answered with the verdict it had then, from memory or from the history: whoever did
not get the first answer may send the event again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TypeAlias, cast

import msgspec
import pyarrow as pa

from member_node.service.scoring import ScoredBatch
from member_node.streams.sources.deliveries import REFUSED, Answer, EventId, ToldReason
from member_node.streams.sources.rows import RowRefusal
from scoring.features.admission import Disposition
from scoring.verdicts import VERDICT_LABELS

LOGGER = logging.getLogger(__name__)
RECENT = 100_000
_DISPOSITIONS = [each.text for each in Disposition]


_JUDGED = (Disposition.APPLIED.text, Disposition.CORRECTED.text)
_KIND = attrgetter("disposition", "verdict", "code")
# The first answers of events that are no longer in memory, by event id as text.
Finder: TypeAlias = Callable[[Sequence[str]], Mapping[str, Answer]]


def refusal_answer(refusal: RowRefusal) -> Answer:
    """The answer for a row that did not reach the engine."""
    return Answer(refusal.event_id, REFUSED, code=refusal.code.text, field=refusal.field)


def tally(answers: Sequence[Answer]) -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
    """How many answers there are by disposition (of rows that reached the engine), verdict newly given, code."""
    dispositions: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    # Few kinds of many answers: one pass to count the kinds.
    for (disposition, verdict, code), count in Counter(map(_KIND, answers)).items():
        if isinstance(code, str):
            codes[code] += count
            continue
        dispositions[disposition] += count
        if disposition in _JUDGED and isinstance(verdict, str):
            verdicts[verdict] += count
    return dispositions, verdicts, codes


class Originals:
    """First answers by event id: the newest in memory (between ``recent`` and twice as many), older ones found.

    Used by one thread at a time.
    """

    def __init__(self, find: Finder, recent: int = RECENT) -> None:
        self._find = find
        self._recent = recent
        self._new: dict[EventId, Answer] = {}
        self._old: dict[EventId, Answer] = {}

    def keep(self, answers: Mapping[EventId, Answer]) -> None:
        """Remember answers of judged rows; a correction's takes the place of the one it corrects."""
        self._new.update(answers)
        if len(self._new) > self._recent:
            self._old, self._new = self._new, {}

    def of(self, ids: Sequence[EventId]) -> Mapping[EventId, Answer]:
        """The first answers of these events as far as there are any."""
        found: dict[EventId, Answer] = {}
        unknown: list[EventId] = []
        for each in ids:
            answer = self._new.get(each) or self._old.get(each)
            if answer is None:
                unknown.append(each)
            else:
                found[each] = answer
        if unknown:
            try:
                kept = self._find([str(each) for each in unknown])
            except Exception:
                # The batch around them is accepted and must be answered; these say "duplicate" without the verdict.
                LOGGER.warning("first answers of %d events cannot be found", len(unknown), exc_info=True)
                return found
            again = {each: kept[str(each)] for each in unknown if str(each) in kept}
            self.keep(again)
            found |= again
        return found


def answers_to(batch: ScoredBatch, ids: Sequence[EventId], originals: Originals) -> list[Answer]:
    """One answer for each event as it was given (``ids`` in that order), judged or not."""
    judged = _judged(batch)
    codes: list[int] = batch.disposition.tolist()
    answers: list[Answer | None] = []
    kept: dict[EventId, Answer] = {}
    for each, code in zip(ids, codes, strict=True):
        if code > Disposition.CORRECTED:
            answers.append(None)
            continue
        verdict, degraded, reasons, version = next(judged)
        answer = Answer(each, _DISPOSITIONS[code], verdict, degraded, reasons, version)
        kept[each] = answer
        answers.append(answer)
    originals.keep(kept)
    if len(kept) == len(ids):
        return cast(list[Answer], answers)
    repeated = [each for each, code in zip(ids, codes, strict=True) if code == Disposition.DUPLICATE]
    first = originals.of(repeated) if repeated else {}
    return [
        answer or _without_judgement(each, Disposition(code), first)
        for answer, each, code in zip(answers, ids, codes, strict=True)
    ]


def _judged(batch: ScoredBatch) -> Iterator[tuple[str, bool, tuple[ToldReason, ...], int]]:
    """What is told of each judged row in turn."""
    reasons = {
        row: tuple(ToldReason(each.rule, each.verdict.label, each.text) for each in given)
        for row, given in batch.reasons.items()
    }
    degraded = batch.degraded
    verdicts, versions = batch.live.verdict.tolist(), batch.scored.version.tolist()
    for row, (verdict, version) in enumerate(zip(verdicts, versions, strict=True)):
        yield VERDICT_LABELS[verdict], degraded, reasons.get(row, ()), version


def _without_judgement(
    event_id: EventId, disposition: Disposition, first: Mapping[EventId, Answer]
) -> Answer:
    original = first.get(event_id) if disposition is Disposition.DUPLICATE else None
    if original is None:
        return Answer(event_id, disposition.text)
    return msgspec.structs.replace(original, disposition=disposition.text)


def history_finder(find: Callable[[Sequence[str], Sequence[str]], pa.Table]) -> Finder:
    """A finder over the history (``HistoryStore.find``): the reasons are kept there as they were told."""

    def first_answers(ids: Sequence[str]) -> Mapping[str, Answer]:
        found: dict[str, Answer] = {}
        for row in find(ids, ["verdict", "degraded", "reasons", "rule_version"]).to_pylist():
            reasons = (
                msgspec.json.decode(row["reasons"], type=tuple[ToldReason, ...]) if row["reasons"] else ()
            )
            found[str(row["event_id"])] = Answer(
                row["event_id"],
                _DISPOSITIONS[Disposition.APPLIED],
                row["verdict"],
                row["degraded"],
                reasons,
                row["rule_version"],
            )
        return found

    return first_answers
