"""The key holder: evaluates blinded elements under its shares, for those the policy permits and within their budget.

Order: shape, fresh checkpoint, policy epoch, key, decision, budget and count in one durable transaction, and only
then the multiplication. What is refused is counted too and goes into the signed totals, so nobody asks unseen.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from crypto import group
from crypto.signing import SigningKey
from crypto.threshold import KeyShare, PublicKeySet, ShareEvaluation, evaluate_share
from governance.budgets import BudgetExceededError, BudgetState, spend
from governance.indicators import ALL_KIND_GROUPS
from governance.messages.codec import MalformedError, encode
from governance.messages.lookup import MAX_ELEMENTS, EvaluateRequest, EvaluateResponse
from governance.messages.problems import RequestError
from governance.messages.signed import Signed, sign_message
from governance.policy import requests
from governance.policy.parameters import budget_for
from governance.purposes import Purpose, Quota
from member_node.client.ports import Clock, Random
from member_node.service.policy import Consortium
from member_node.storage.evaluations import CountKey, EvaluationStore

REQUEST_ID_SIZE = 16
REMEMBERED_ANSWERS = 32


class HolderService:
    """Evaluates for other members (:meth:`evaluate`) and, without a proof, for its own bank (:meth:`evaluate_own`)."""

    def __init__(
        self,
        key: SigningKey,
        consortium: Consortium,
        shares: Sequence[KeyShare],
        store: EvaluationStore,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self._party = consortium.anchors.party
        self._key = key
        self._consortium = consortium
        # Shares of the next generation are installed before the roll names it, so several may be held at once.
        self._shares = {(share.epoch, share.kind_group, share.generation): share for share in shares}
        self._store = store
        self._clock = clock
        self._random = random
        self._answers: OrderedDict[tuple[str, bytes], tuple[bytes, Signed]] = OrderedDict()
        self._lock = threading.Lock()

    def holds(self, keys: PublicKeySet) -> bool:
        """Whether this member has a share of that key, in its generation."""
        return (keys.epoch, keys.kind_group, keys.generation) in self._shares

    def evaluate(self, caller: str, request: EvaluateRequest) -> Signed:
        """A signed :class:`~governance.messages.lookup.EvaluateResponse` for ``caller`` (verified by the HTTP layer).

        Raises :class:`MalformedError`, :class:`RequestError` (stale checkpoint, stale epoch, conflict),
        :class:`~governance.policy.decision.RefusedError`, :class:`~governance.budgets.BudgetExceededError` or
        :class:`~crypto.errors.CryptoError`; only the last one after the budget was spent, since a caller that sends
        elements that are none has used the holder's time.
        """
        blinded = _check_shape(request)
        self._consortium.require_fresh()
        digest = hashlib.sha256(encode(request)).digest()
        remembered = self._remembered(caller, request.request_id, digest)
        if remembered is not None:
            return remembered
        key = CountKey(caller, request.kind_group, request.purpose, request.quota)
        share = self._share_for(key, request, len(blinded))
        decision = self._consortium.decide(
            requests.lookup(caller, request.kind_group, request.purpose, request.quota, len(blinded))
        )
        if not decision.permitted:
            self._count_refusal(key, decision.rule, len(blinded))
            decision.require()
        self._spend(key, request.epoch, len(blinded))
        # In this process always: another bank's request must not make this bank start its workers.
        evaluation = evaluate_share(share, blinded, self._random)
        response = EvaluateResponse(
            request_id=request.request_id,
            request_digest=digest,
            epoch=request.epoch,
            kind_group=request.kind_group,
            generation=request.generation,
            share_index=evaluation.index,
            elements=b"".join(evaluation.elements),
            proof=evaluation.proof,
        )
        signed = sign_message(response, self._party, self._key)
        with self._lock:
            self._answers[caller, request.request_id] = (digest, signed)
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)
        return signed

    def evaluate_own(
        self, keys: PublicKeySet, blinded: Sequence[bytes], *, purpose: str, quota: str
    ) -> ShareEvaluation:
        """This bank's own share of its own lookup: counted in the totals, but it needs no proof to itself."""
        share = self._shares[keys.epoch, keys.kind_group, keys.generation]
        self._store.count(CountKey(self._party, keys.kind_group, purpose, quota), len(blinded))
        return ShareEvaluation(share.index, tuple(group.multiply_each(share.secret, blinded)), b"")

    def _remembered(self, caller: str, request_id: bytes, digest: bytes) -> Signed | None:
        with self._lock:
            found = self._answers.get((caller, request_id))
        if found is None:
            return None
        if found[0] != digest:
            raise RequestError("conflict", "this request id was used for another request", caller)
        return found[1]

    def _share_for(self, key: CountKey, request: EvaluateRequest, elements: int) -> KeyShare:
        share = self._shares.get((request.epoch, request.kind_group, request.generation))
        keys = self._consortium.key_set(request.kind_group)
        if share is None or (request.epoch, request.generation) != (keys.epoch, keys.generation):
            self._count_refusal(key, "stale-epoch", elements)
            raise RequestError(
                "stale-epoch",
                f"{request.kind_group}: asked for epoch {request.epoch} generation {request.generation}, "
                f"in force is epoch {keys.epoch} generation {keys.generation}",
                key.caller,
            )
        return share

    def _spend(self, key: CountKey, epoch: int, elements: int) -> None:
        limits = budget_for(self._consortium.policy, key.kind_group)
        now = self._clock()

        def step(stored: bytes | None) -> bytes:
            state = BudgetState() if stored is None else msgspec.msgpack.decode(stored, type=BudgetState)
            new = spend(state, elements, limits, now, quota=key.quota, epoch=epoch, party=key.caller)
            return msgspec.msgpack.encode(new)

        try:
            self._store.spend(key, elements, step)
        except BudgetExceededError:
            self._count_refusal(key, "budget-exceeded", elements)
            raise

    def _count_refusal(self, key: CountKey, reason: str, elements: int) -> None:
        refused = CountKey(key.caller, key.kind_group, key.purpose, key.quota, reason)
        self._store.count(refused, elements)


def _check_shape(request: EvaluateRequest) -> list[bytes]:
    """The blinded elements, or :class:`MalformedError`: nothing a caller can write freely reaches the counts."""
    if len(request.request_id) != REQUEST_ID_SIZE:
        raise MalformedError(f"EvaluateRequest: a request id has {REQUEST_ID_SIZE} bytes")
    if request.kind_group not in ALL_KIND_GROUPS:
        raise MalformedError("EvaluateRequest: unknown kind group")
    if request.purpose not in Purpose._value2member_map_ or request.quota not in Quota._value2member_map_:
        raise MalformedError("EvaluateRequest: unknown purpose or quota")
    count, rest = divmod(len(request.elements), group.ELEMENT_SIZE)
    if rest or not 1 <= count <= MAX_ELEMENTS:
        raise MalformedError(
            f"EvaluateRequest: 1 to {MAX_ELEMENTS} elements of {group.ELEMENT_SIZE} bytes are accepted"
        )
    return group.split(request.elements)
