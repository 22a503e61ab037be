"""Private lookup, the asking side: values to tags and label keys, with the help of t key holders (DESIGN 5.1).

Values are normalised, blinded in batches of up to 4096, evaluated by t holders in parallel, verified against each
holder's public share, and combined. Holders see uniformly random points. A wrong answer is attributed: the holder
is recorded with what it signed, asked no more, and another one is asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from crypto.oprf.client import PendingBatch
from crypto.threshold import (
    PublicKeySet,
    ShareEvaluation,
    blind,
    derive_label_key,
    derive_tag,
    finalize,
)
from governance.indicators import InvalidIndicatorError, NormalForm, kind_group, normalise_batch, oprf_input
from governance.messages.lookup import MAX_ELEMENTS
from governance.policy import requests
from governance.purposes import Purpose, Quota
from member_node.client.ports import (
    DEFAULT_PATIENCE,
    Clock,
    KeyHolderPort,
    MapChunks,
    Patience,
    Random,
    map_in_turn,
)
from member_node.latencies import Latencies
from member_node.service.evaluation import ConsortiumUnavailableError, EvaluationRounds, StaleBeliefError
from member_node.service.holder import HolderService
from member_node.service.policy import Consortium
from member_node.service.tag_cache import CachedTag, TagCache
from member_node.storage.trust import FaultStore

BATCHES_IN_FLIGHT = 3
MIN_BATCH = 512
# About eight seconds of this bank's own multiplications: from here on its other processes are worth starting.
SPREAD_FROM = 16_384
CHUNK = 512


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
        patience: Patience = DEFAULT_PATIENCE,
        latencies: Latencies | None = None,
    ) -> None:
        """``holders``: ports of the other key holders by party id; looked up at each call, so it may be a live view.

        ``map_chunks`` is used for :data:`SPREAD_FROM` new values a call and more.
        """
        self._consortium = consortium
        self._cache = cache
        self._random = random
        self._map_chunks = map_chunks
        self._rounds = EvaluationRounds(
            consortium, holder, holders, faults, clock=clock, random=random, patience=patience
        )
        self._latencies = latencies or Latencies()
        self._batches = ThreadPoolExecutor(BATCHES_IN_FLIGHT, thread_name_prefix="lookup-batch")

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self._batches.shutdown(cancel_futures=True)
        self._rounds.close()

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
        began = time.perf_counter()
        report = self._tags(kind, values, purpose, quota)
        seconds = time.perf_counter() - began
        self._latencies.hit_rate.count(report.cached, report.cached + report.evaluated)
        if report.evaluated:
            self._latencies.record("lookup cold", seconds, report.evaluated)
            self._latencies.record("lookup cold, per new value", seconds / report.evaluated)
        elif report.cached:
            self._latencies.record("lookup warm", seconds, report.cached)
        return report

    def _tags(self, kind: str, values: Sequence[str], purpose: str, quota: str) -> LookupReport:
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
        return self._rounds.excluded()

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
        except StaleBeliefError:
            self._consortium.refresh()
            self._cache.use_epoch(self._consortium.roll.epoch)
            try:
                self._evaluate_once(group_name, forms, purpose, quota, spread)
            except StaleBeliefError as error:
                raise ConsortiumUnavailableError(error.needed, error.reasons) from error

    def _evaluate_once(
        self, group_name: str, forms: Sequence[NormalForm], purpose: str, quota: str, spread: MapChunks
    ) -> None:
        keys = self._consortium.key_set(group_name)
        parts = [forms[start : start + CHUNK] for start in range(0, len(forms), CHUNK)]
        pieces = spread(_blind, [([oprf_input(form) for form in part], self._random) for part in parts])
        blinded = tuple(element for _, elements in pieces for element in elements)
        evaluations = self._rounds.gather(keys, blinded, purpose, quota)
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


__all__ = ["ConsortiumUnavailableError", "LookupReport", "LookupService"]
