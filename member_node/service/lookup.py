"""Private lookup, the asking side: values to tags and label keys, with the help of t key holders (DESIGN 5.1).

Values are normalised, blinded in batches of up to 4096, evaluated by t holders in parallel, verified against each
holder's public share, and combined. Holders see uniformly random points. A wrong answer is attributed: the holder
is recorded with what it signed, asked no more, and another one is asked.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from crypto import group
from crypto.errors import CryptoError, InvalidShareError
from crypto.oprf.client import PendingBatch
from crypto.threshold import (
    PublicKeySet,
    ShareEvaluation,
    blind,
    derive_label_key,
    derive_tag,
    finalize,
    verify_evaluation,
)
from governance.indicators import InvalidIndicatorError, NormalForm, kind_group, normalise_batch, oprf_input
from governance.members import key_holders
from governance.messages.codec import MalformedError, encode
from governance.messages.lookup import MAX_ELEMENTS, EvaluateRequest, EvaluateResponse
from governance.messages.problems import ProblemError
from governance.messages.signed import Signed, open_signed
from governance.policy import requests
from governance.purposes import Purpose, Quota
from member_node.client.ports import (
    Clock,
    KeyHolderPort,
    MapChunks,
    PartyUnreachableError,
    Random,
    map_in_turn,
)
from member_node.service.holder import REQUEST_ID_SIZE, HolderService
from member_node.service.policy import Consortium
from member_node.service.tag_cache import CachedTag, TagCache
from member_node.storage.trust import Fault, FaultStore

BATCHES_IN_FLIGHT = 3
MIN_BATCH = 512
SILENT_SECONDS = 30.0
# About eight seconds of this bank's own multiplications: from here on its other processes are worth starting.
SPREAD_FROM = 16_384
CHUNK = 512
STALE_PROBLEMS = frozenset({"stale-epoch", "stale-policy"})


class ConsortiumUnavailableError(Exception):
    """Fewer than t key holders answered correctly; ``reasons`` says why by party."""

    def __init__(self, needed: int, reasons: Mapping[str, str]) -> None:
        told = "; ".join(f"{party}: {reason}" for party, reason in sorted(reasons.items()))
        super().__init__(f"{needed} more key holders are needed to answer ({told or 'none is left to ask'})")
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class LookupReport:
    """Of the values asked: ``cached`` were known, ``evaluated`` are new, ``invalid`` have no normal form (why)."""

    cached: int
    evaluated: int
    invalid: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class _Combine:
    """Work for one worker; it holds blinds and inputs, so it does not print."""

    keys: PublicKeySet
    pending: PendingBatch
    blinded: tuple[bytes, ...]
    evaluations: tuple[ShareEvaluation, ...]

    def __repr__(self) -> str:
        return "_Combine(...)"


def _blind(work: tuple[Sequence[bytes], Random]) -> tuple[PendingBatch, tuple[bytes, ...]]:
    return blind(*work)


def _combine(work: _Combine) -> list[tuple[bytes, bytes]]:
    outputs = finalize(work.keys, work.pending, work.blinded, work.evaluations)
    return [(derive_tag(output), derive_label_key(output)) for output in outputs]


def _cut(evaluation: ShareEvaluation, start: int, count: int) -> ShareEvaluation:
    """The part of a verified answer that belongs to one chunk; the proof was for all of it."""
    return ShareEvaluation(evaluation.index, evaluation.elements[start : start + count], evaluation.proof)


class LookupService:
    """Answers from the cache, and asks for what is new. Thread safe; blocking."""

    def __init__(
        self,
        consortium: Consortium,
        holder: HolderService,
        holders: Mapping[str, KeyHolderPort],
        cache: TagCache,
        faults: FaultStore,
        *,
        clock: Clock,
        random: Random,
        map_chunks: MapChunks = map_in_turn,
    ) -> None:
        """``holders``: ports of the other key holders by party id; looked up at each call, so it may be a live view.

        ``map_chunks`` is used for :data:`SPREAD_FROM` new values a call and more.
        """
        self._consortium = consortium
        self._own = holder
        self._holders = holders
        self._cache = cache
        self._faults = faults
        self._clock = clock
        self._random = random
        self._map_chunks = map_chunks
        self._batches = ThreadPoolExecutor(BATCHES_IN_FLIGHT, thread_name_prefix="lookup-batch")
        self._requests = ThreadPoolExecutor(BATCHES_IN_FLIGHT * 4, thread_name_prefix="lookup-request")
        self._lock = threading.Lock()
        self._excluded: dict[tuple[int, str], str] = {}
        self._silent: dict[str, float] = {}
        self._turn = 0

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self._batches.shutdown()
        self._requests.shutdown()

    def tags(
        self,
        kind: str,
        values: Sequence[str],
        *,
        purpose: str = Purpose.FRAUD_PREVENTION,
        quota: str = Quota.LOOKUP,
    ) -> LookupReport:
        """Ensure every valid value has its tag and label key in the cache of the current key epoch.

        ``kind``: an indicator kind; an unknown one raises :class:`~governance.indicators.InvalidIndicatorError`,
        while a single value without normal form is only reported. ``quota``: ``"lookup"`` or ``"enrolment"``.
        Raises :class:`ConsortiumUnavailableError` when fewer than t holders answer and
        :class:`~governance.policy.decision.RefusedError` when the member's own policy denies; what was evaluated
        before stays cached.
        """
        self._cache.use_epoch(self._consortium.roll.epoch)
        known = self._cache.values_of(kind)
        asked = list(dict.fromkeys(values))
        unseen = [value for value in asked if value not in known]
        spellings: dict[NormalForm, list[str]] = {}
        invalid: dict[str, str] = {}
        for value, form in zip(unseen, normalise_batch(kind, unseen), strict=True):
            if isinstance(form, InvalidIndicatorError):
                invalid[value] = form.reason
            elif (cached := self._cache.find_form(form)) is not None:
                self._cache.alias(kind, value, cached)
            else:
                spellings.setdefault(form, []).append(value)
        new = list(spellings)
        if new:
            self._evaluate_all(kind_group(kind), new, purpose, quota)
            for form, same in spellings.items():
                cached = self._cache.find_form(form)
                if cached is not None:
                    for value in same:
                        self._cache.alias(kind, value, cached)
        return LookupReport(len(asked) - len(invalid) - len(new), len(new), invalid)

    def tag_of(self, kind: str, value: str) -> bytes | None:
        """The tag of a value that is in the cache; never asks anybody."""
        cached = self._cache.find(kind, value)
        return None if cached is None else cached.tag

    def cached(self, kind: str, value: str) -> CachedTag | None:
        """Tag and label key of a value that is in the cache."""
        return self._cache.find(kind, value)

    def cached_count(self) -> int:
        """Indicators in the cache."""
        return len(self._cache)

    def excluded(self) -> dict[str, str]:
        """Key holders that answered wrongly in this epoch, and how."""
        return {party: reason for (_, party), reason in self._excluded.items()}

    def _evaluate_all(self, group_name: str, forms: Sequence[NormalForm], purpose: str, quota: str) -> None:
        size = min(MAX_ELEMENTS, max(MIN_BATCH, -(-len(forms) // BATCHES_IN_FLIGHT)))
        parts = [forms[start : start + size] for start in range(0, len(forms), size)]
        for part in parts:
            own = requests.lookup(self._consortium.anchors.party, group_name, purpose, quota, len(part))
            self._consortium.decide(own).require()
        spread = self._map_chunks if len(forms) >= SPREAD_FROM else map_in_turn
        if len(parts) == 1:
            self._evaluate(group_name, parts[0], purpose, quota, spread)
            return
        futures = [
            self._batches.submit(self._evaluate, group_name, part, purpose, quota, spread) for part in parts
        ]
        wait(futures)
        for future in futures:
            future.result()

    def _evaluate(
        self, group_name: str, forms: Sequence[NormalForm], purpose: str, quota: str, spread: MapChunks
    ) -> None:
        """One batch, from normal forms to cached tags; once more after a refresh if our beliefs were stale."""
        try:
            self._evaluate_once(group_name, forms, purpose, quota, spread)
        except _StaleBeliefError:
            self._consortium.refresh()
            self._cache.use_epoch(self._consortium.roll.epoch)
            try:
                self._evaluate_once(group_name, forms, purpose, quota, spread)
            except _StaleBeliefError as error:
                raise ConsortiumUnavailableError(error.needed, error.reasons) from error

    def _evaluate_once(
        self, group_name: str, forms: Sequence[NormalForm], purpose: str, quota: str, spread: MapChunks
    ) -> None:
        keys = self._consortium.key_set(group_name)
        parts = [forms[start : start + CHUNK] for start in range(0, len(forms), CHUNK)]
        pieces = spread(_blind, [([oprf_input(form) for form in part], self._random) for part in parts])
        blinded = tuple(element for _, elements in pieces for element in elements)
        evaluations = self._gather(keys, blinded, purpose, quota)
        work = [
            _Combine(
                keys,
                pending,
                elements,
                tuple(_cut(each, number * CHUNK, len(elements)) for each in evaluations),
            )
            for number, (pending, elements) in enumerate(pieces)
        ]
        results = [result for chunk in spread(_combine, work) for result in chunk]
        found = [
            CachedTag(form.kind.value, form.text, tag, label_key)
            for form, (tag, label_key) in zip(forms, results, strict=True)
        ]
        self._cache.add(keys.epoch, found)

    def _gather(
        self, keys: PublicKeySet, blinded: tuple[bytes, ...], purpose: str, quota: str
    ) -> list[ShareEvaluation]:
        """``threshold`` verified evaluations: the bank's own share first, then other holders in turn."""
        request = EvaluateRequest(
            request_id=self._random(REQUEST_ID_SIZE),
            epoch=keys.epoch,
            kind_group=keys.kind_group,
            generation=keys.generation,
            purpose=purpose,
            quota=quota,
            elements=b"".join(blinded),
        )
        waiting = self._order(keys)
        reasons = {party: f"excluded: {why}" for party, why in self.excluded().items()}
        stale = False
        running: dict[Future[ShareEvaluation], str] = {}
        good: list[ShareEvaluation] = []
        own = self._own.holds(keys.epoch, keys.kind_group)
        needed = keys.threshold - own
        while len(good) < needed:
            while waiting and len(running) + len(good) < needed:
                party, index = waiting.pop(0)
                running[self._requests.submit(self._ask, party, index, keys, request, blinded)] = party
            if not running:
                missing = needed - len(good)
                if stale:
                    raise _StaleBeliefError(missing, reasons)
                raise ConsortiumUnavailableError(missing, reasons)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                party = running.pop(future)
                try:
                    good.append(future.result())
                except PartyUnreachableError as error:
                    reasons[party] = error.reason
                    self._silent[party] = time.monotonic()
                except ProblemError as error:
                    reasons[party] = f"{error.problem.name}: {error.problem.detail}"
                    stale = stale or error.problem.name in STALE_PROBLEMS
                except _WrongAnswerError as error:
                    reasons[party] = error.reason
        if own:
            good.insert(
                0, self._own.evaluate_own(keys.epoch, keys.kind_group, blinded, purpose=purpose, quota=quota)
            )
        return good

    def _order(self, keys: PublicKeySet) -> list[tuple[str, int]]:
        """Other holders with their share indices: in turn, lately silent ones last, proven liars not at all."""
        with self._lock:
            self._turn += 1
            turn = self._turn
        me = self._consortium.anchors.party
        candidates = [
            (entry.party, index)
            for index, entry in key_holders(self._consortium.roll).items()
            if entry.party != me
            and (keys.epoch, entry.party) not in self._excluded
            and entry.party in self._holders
        ]
        if candidates:
            turn %= len(candidates)
            candidates = candidates[turn:] + candidates[:turn]
        now = time.monotonic()
        return sorted(
            candidates, key=lambda each: now - self._silent.get(each[0], -SILENT_SECONDS) < SILENT_SECONDS
        )

    def _ask(
        self, party: str, index: int, keys: PublicKeySet, request: EvaluateRequest, blinded: tuple[bytes, ...]
    ) -> ShareEvaluation:
        try:
            signed = self._holders[party].evaluate(request)
        except MalformedError as error:
            raise self._blame(party, keys, f"malformed answer: {error}", b"") from error
        try:
            evaluation = self._read_answer(party, index, request, signed)
        except (MalformedError, CryptoError) as error:
            raise self._blame(party, keys, str(error), encode(signed)) from error
        try:
            verify_evaluation(keys, blinded, evaluation)
        except InvalidShareError as error:
            raise self._blame(party, keys, f"wrong evaluation: {error.reason}", encode(signed)) from error
        return evaluation

    def _read_answer(
        self, party: str, index: int, request: EvaluateRequest, signed: Signed
    ) -> ShareEvaluation:
        """The evaluation in an answer that its holder signed and that names our request, else an error."""
        if signed.signer != party:
            raise MalformedError(f"EvaluateResponse: signed by {signed.signer!r}, not by {party!r}")
        answer = open_signed(EvaluateResponse, signed, self._consortium.verify_keys())
        expected = (
            request.request_id,
            hashlib.sha256(encode(request)).digest(),
            request.epoch,
            request.kind_group,
            request.generation,
            index,
            len(request.elements),
        )
        got = (
            answer.request_id,
            answer.request_digest,
            answer.epoch,
            answer.kind_group,
            answer.generation,
            answer.share_index,
            len(answer.elements),
        )
        if got != expected:
            raise MalformedError("EvaluateResponse: does not answer the request that was sent")
        return ShareEvaluation(index, tuple(group.split(answer.elements)), answer.proof)

    def _blame(self, party: str, keys: PublicKeySet, reason: str, evidence: bytes) -> _WrongAnswerError:
        self._excluded[keys.epoch, party] = reason
        self._faults.record(Fault(party, self._clock(), "evaluation", reason, evidence))
        return _WrongAnswerError(reason)


class _WrongAnswerError(Exception):
    """A holder's answer is wrong; it has been recorded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _StaleBeliefError(Exception):
    """Holders refused because our roll or policy is not theirs."""

    def __init__(self, needed: int, reasons: Mapping[str, str]) -> None:
        super().__init__("roll or policy is stale")
        self.needed = needed
        self.reasons = reasons
