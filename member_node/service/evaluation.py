"""Asking key holders: t verified evaluations of one blinded batch, whoever is silent, refuses or lies.

The bank's own share comes first; the others are asked in turn and in parallel. A wrong answer is attributed: the holder
is recorded with what it signed, asked no more in this epoch, and another one is asked. A late one is only helped out:
another holder is asked as well, whoever answers first counts, and the late one is asked last for a while.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from crypto import group
from crypto.errors import CryptoError, InvalidShareError
from crypto.threshold import PublicKeySet, ShareEvaluation, verify_evaluation
from governance.members import key_holders
from governance.messages.codec import MalformedError, encode
from governance.messages.lookup import EvaluateRequest, EvaluateResponse
from governance.messages.problems import ProblemError
from governance.messages.signed import Signed, open_signed
from member_node.client.ports import (
    DEFAULT_PATIENCE,
    Clock,
    KeyHolderPort,
    PartyUnreachableError,
    Patience,
    Random,
)
from member_node.service.holder import REQUEST_ID_SIZE, HolderService
from member_node.service.policy import Consortium
from member_node.storage.trust import Fault, FaultStore

# Three batches at a time to ten holders each, and some that are late.
REQUESTS_IN_FLIGHT = 48
SILENT_SECONDS = 30.0
STALE_PROBLEMS = frozenset({"stale-epoch", "stale-policy"})


class ConsortiumUnavailableError(Exception):
    """Fewer than t key holders answered correctly; ``reasons`` says why by party."""

    def __init__(self, needed: int, reasons: Mapping[str, str]) -> None:
        told = "; ".join(f"{party}: {reason}" for party, reason in sorted(reasons.items()))
        super().__init__(f"{needed} more key holders are needed to answer ({told or 'none is left to ask'})")
        self.reasons = dict(reasons)


class StaleBeliefError(Exception):
    """Holders refused because our roll or policy is not theirs: refresh, and ask once more."""

    def __init__(self, needed: int, reasons: Mapping[str, str]) -> None:
        super().__init__("roll or policy is stale")
        self.needed = needed
        self.reasons = dict(reasons)


class _WrongAnswerError(Exception):
    """A holder's answer is wrong; it has been recorded."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class _Asked:
    """One holder that has been asked at ``since`` (of ``time.monotonic``)."""

    party: str
    since: float
    late: bool = False


class EvaluationRounds:
    """Collects evaluations. Thread safe."""

    def __init__(
        self,
        consortium: Consortium,
        own: HolderService,
        holders: Mapping[str, KeyHolderPort],
        faults: FaultStore,
        *,
        clock: Clock,
        random: Random,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        """``holders``: ports of the other key holders by party id; looked up at each call, so it may be a live view.

        A holder's answer is late as ``patience`` says; giving up is the port's own affair.
        """
        self._patience = patience
        self._consortium = consortium
        self._own = own
        self._holders = holders
        self._faults = faults
        self._clock = clock
        self._random = random
        self._requests = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="lookup-request")
        self._lock = threading.Lock()
        self._excluded: dict[tuple[int, str], str] = {}
        self._silent: dict[str, float] = {}
        self._turn = 0

    def close(self) -> None:
        """Stop the threads after what they are doing."""
        self._requests.shutdown(cancel_futures=True)

    def excluded(self) -> dict[str, str]:
        """Key holders that answered wrongly in this epoch, and how."""
        return {party: reason for (_, party), reason in self._excluded.items()}

    def gather(
        self, keys: PublicKeySet, blinded: tuple[bytes, ...], purpose: str, quota: str
    ) -> list[ShareEvaluation]:
        """``threshold`` verified evaluations of ``blinded``, the bank's own first if it holds a share.

        Raises :class:`ConsortiumUnavailableError` or :class:`StaleBeliefError`.
        """
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
        running: dict[Future[ShareEvaluation], _Asked] = {}
        good: list[ShareEvaluation] = []
        own = self._own.holds(keys)
        needed = keys.threshold - own
        late_after = self._patience.late(len(blinded))
        while len(good) < needed:
            in_time = sum(not each.late for each in running.values())
            while waiting and in_time + len(good) < needed:
                party, index = waiting.pop(0)
                future = self._requests.submit(self._ask, party, index, keys, request, blinded)
                running[future] = _Asked(party, time.monotonic())
                in_time += 1
            if not running:
                missing = needed - len(good)
                if stale:
                    raise StaleBeliefError(missing, reasons)
                raise ConsortiumUnavailableError(missing, reasons)
            done = self._await(running, late_after)
            for future in done:
                party = running.pop(future).party
                try:
                    good.append(future.result())
                except PartyUnreachableError as error:
                    reasons[party] = error.reason
                    self._silent[party] = time.monotonic()
                except CancelledError as error:
                    raise ConsortiumUnavailableError(needed - len(good), reasons) from error
                except ProblemError as error:
                    reasons[party] = f"{error.problem.name}: {error.problem.detail}"
                    stale = stale or error.problem.name in STALE_PROBLEMS
                except _WrongAnswerError as error:
                    reasons[party] = error.reason
        # Two may have come at once after one was late.
        del good[needed:]
        if own:
            good.insert(0, self._own.evaluate_own(keys, blinded, purpose=purpose, quota=quota))
        return good

    def _await(
        self, running: Mapping[Future[ShareEvaluation], _Asked], late_after: float
    ) -> set[Future[ShareEvaluation]]:
        """Wait until one has answered or the next becomes late; who is late is marked, here and for other batches."""
        in_time = [each for each in running.values() if not each.late]
        timeout = None
        if in_time:
            timeout = max(0.0, min(each.since for each in in_time) + late_after - time.monotonic())
        done, _ = wait(running, timeout, return_when=FIRST_COMPLETED)
        now = time.monotonic()
        for future, asked in running.items():
            if future not in done and not asked.late and now - asked.since >= late_after:
                asked.late = True
                self._silent[asked.party] = now
        return done

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
        except KeyError as error:
            raise PartyUnreachableError(party, "is no longer on the roll") from error
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
