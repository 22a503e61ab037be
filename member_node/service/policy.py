"""What this member believes of the consortium, verified: roll, policy, log. Every decision of the member starts here.

The coordinator is trusted for availability only. Its key, the log's key and the cards of all other parties are pinned
by the bank's operator; roll and policy must be signed by the coordinator, may not go back, and may not differ under
one version; a roll may neither add a party whose card is not pinned nor give a known one another key, and its OPRF
keys must be those of this bank's own key shares; the log may only grow. Whatever cannot be verified leaves the old
belief in place and raises; a belief that is too old denies.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from crypto.threshold import PublicKeySet
from governance.log.entries import MembershipEntry, PolicyEntry
from governance.log.follow import LogFollowError, StaleCheckpointError, TrustedLog
from governance.members import (
    MembershipError,
    PinnedParty,
    Role,
    check_newcomers,
    check_roll,
    check_successor,
    coordinator,
    find_party,
    key_set,
    verify_keys,
)
from governance.messages.codec import decode, encode
from governance.messages.log import CheckpointUpdate
from governance.messages.policy import KindRule, PolicyBundle
from governance.messages.problems import ProblemError, RequestError
from governance.messages.roll import MembershipRoll
from governance.messages.signed import Signed, open_signed
from governance.policy.decider import Decider
from governance.policy.decision import AccessRequest, Decision
from member_node.client.ports import Clock, CoordinatorPort, PartyUnreachableError
from member_node.storage.trust import TrustStore

T = TypeVar("T")

# Before the first policy is known there is no consortium rule on freshness; this bounds the very first steps.
FIRST_MAX_AGE_SECONDS = 300
LOG_PAGE = 100


class NotJoinedError(Exception):
    """The member has not yet verified a roll and a policy: it can neither ask nor answer."""


@dataclass(frozen=True)
class Anchors:
    """What was agreed out of band: who we are, the coordinator's verify key (32 bytes), the log's verifier key."""

    party: str
    verify_key: bytes
    coordinator: str
    coordinator_key: bytes
    log_verifier_key: str


@dataclass(frozen=True)
class OwnShare:
    """The public side of a key share this member holds: ``element`` = share * generator (32 bytes)."""

    epoch: int
    kind_group: str
    generation: int
    index: int
    element: bytes


@dataclass(frozen=True)
class _Belief:
    roll: MembershipRoll
    policy: PolicyBundle
    decider: Decider
    verify_keys: Mapping[str, bytes]
    key_sets: Mapping[str, PublicKeySet]


class Consortium:
    """Roll, policy and log as verified so far. Thread safe; properties give one consistent value each."""

    def __init__(
        self,
        anchors: Anchors,
        port: CoordinatorPort,
        store: TrustStore,
        clock: Clock,
        own_shares: Sequence[OwnShare] = (),
        pinned: Callable[[], Mapping[str, PinnedParty]] = dict,
    ) -> None:
        """Resume from what ``store`` holds; nothing is fetched yet.

        ``pinned``: the cards of other parties that this bank's operator has pinned; read again for each new roll.
        Raises :class:`~governance.members.MembershipError` if the stored roll is not of ``own_shares``.
        """
        self._own_shares = {(own.epoch, own.kind_group, own.generation): own for own in own_shares}
        self._pinned = pinned
        self.anchors = anchors
        self._port = port
        self._store = store
        self._clock = clock
        self._log_lock = threading.RLock()
        self._refresh_lock = threading.Lock()
        note = store.load("checkpoint")
        self._log = TrustedLog.resume(anchors.log_verifier_key, (note or b"").decode())
        self._belief: _Belief | None = None
        roll, policy = store.load("roll"), store.load("policy")
        if roll is not None and policy is not None:
            self._belief = self._form_belief(decode(Signed, roll), decode(Signed, policy))

    # ---- beliefs

    @property
    def joined(self) -> bool:
        """Whether a roll and a policy have been verified."""
        return self._belief is not None

    @property
    def roll(self) -> MembershipRoll:
        """The newest verified roll."""
        return self._require_belief().roll

    @property
    def policy(self) -> PolicyBundle:
        """The newest verified policy bundle: kinds, tiers, budgets, inquiry rules."""
        return self._require_belief().policy

    @property
    def decider(self) -> Decider:
        """Decides by the newest policy and roll."""
        return self._require_belief().decider

    def verify_keys(self) -> Mapping[str, bytes]:
        """Ed25519 verify keys by party; only the pinned coordinator's before the first roll."""
        if self._belief is None:
            return {self.anchors.coordinator: self.anchors.coordinator_key}
        return self._belief.verify_keys

    def policy_epoch(self) -> int:
        """Epoch of the policy in force here, 0 before the first."""
        return 0 if self._belief is None else self._belief.policy.policy_epoch

    def key_set(self, kind_group: str) -> PublicKeySet:
        """The verified public key set of ``kind_group``; raises :class:`~governance.members.MembershipError`."""
        keys = self._require_belief().key_sets.get(kind_group)
        if keys is None:
            raise MembershipError("", f"the roll has no key for the kind group {kind_group!r}")
        return keys

    def kind_rule(self, kind: str) -> KindRule:
        """The policy's rule for an indicator kind; :class:`RequestError` if the policy has none."""
        for rule in self.policy.kinds:
            if rule.kind == kind:
                return rule
        raise RequestError("refused", f"the policy has no rule for the kind {kind!r}", self.anchors.party)

    def decide(self, request: AccessRequest) -> Decision:
        """This member's own decision, by the same signed bytes as everyone's."""
        return self.decider.decide(request)

    # ---- the log

    @property
    def log_size(self) -> int:
        """Entries of the log this member has verified."""
        return self._log.size

    def checkpoint_age(self) -> int | None:
        """Seconds since the newest verified checkpoint was signed; None before the first."""
        checkpoint = self._log.checkpoint
        return None if checkpoint is None else self._clock() - checkpoint.time

    def follow(
        self, fetch: Callable[[int], T], checkpoint_of: Callable[[T], CheckpointUpdate]
    ) -> tuple[T, TrustedLog]:
        """``fetch(since)`` something that comes with a checkpoint, advance to it, and return both.

        One at a time, so that the proof starts from the size held. Keep ``fetch`` short. Raises
        :class:`~governance.log.follow.LogFollowError`, and then the old state stays.
        """
        with self._log_lock:
            fetched = fetch(self._log.size)
            return fetched, self._advance(checkpoint_of(fetched))

    def follow_received(self, update: CheckpointUpdate) -> TrustedLog:
        """Advance to a checkpoint that arrived with something else, or catch up if it starts from another size.

        Catching up proves the log, not the update: the caller must then fetch again what came with it, which is
        what :class:`~governance.log.follow.UnprovenGrowthError` says.
        """
        with self._log_lock:
            return self._advance(update)

    def catch_up(self) -> TrustedLog:
        """Fetch and verify the newest checkpoint."""
        return self.follow(self._port.checkpoint, lambda update: update)[1]

    def require_fresh(self) -> TrustedLog:
        """The log under a checkpoint no older than the policy allows, else :class:`RequestError` ``stale-checkpoint``.

        From half of the allowed age on, a new checkpoint is fetched first; one that contradicts what was seen before
        raises :class:`RequestError` ``invalid-proof``.
        """
        max_age = self._max_age()
        age = self.checkpoint_age()
        reason = ""
        if age is None or age > max_age // 2:
            try:
                return self.catch_up()
            except (PartyUnreachableError, ProblemError, StaleCheckpointError) as error:
                reason = f" ({error})"
            except LogFollowError as error:
                # A fork, a rollback, a note nobody signed: not a matter of age, so the old belief does not help.
                raise RequestError("invalid-proof", str(error), self.anchors.coordinator) from error
        log = self._log
        try:
            log.require_fresh(now=self._clock(), max_age=max_age)
        except StaleCheckpointError as error:
            raise RequestError("stale-checkpoint", f"{error}{reason}", self.anchors.coordinator) from error
        return log

    # ---- learning

    def refresh(self) -> None:
        """Fetch roll, policy and checkpoint, verify all, and only then believe them.

        Raises what the port raises, :class:`~crypto.errors.CryptoError`, :class:`~governance.members.MembershipError`,
        :class:`~governance.policy.decision.PolicyError` or :class:`~governance.log.follow.LogFollowError`.
        """
        with self._refresh_lock:
            before = self._log.size
            roll, policy = self._port.membership(), self._port.policy()
            belief = self._belief
            known = belief is not None and (encode(roll), encode(policy)) == (
                self._store.load("roll"),
                self._store.load("policy"),
            )
            if not known:
                new = self._form_belief(roll, policy)
                self._check_change(belief, new)
                self._require_logged(roll, policy)
                self._store.save("roll", new.roll.version, encode(roll))
                self._store.save("policy", new.policy.policy_epoch, encode(policy))
                self._store.save("searched", before, before.to_bytes(8, "big"))
                self._belief = new
        self.catch_up()

    def _require_logged(self, roll: Signed, policy: Signed) -> None:
        """Every document that is new to us must be in the log: what is shown to one member is shown to all.

        The search starts where the log ended when the previous documents were still in force.
        """
        missing = {
            hashlib.sha256(signed.payload).hexdigest(): kind
            for kind, name, signed in (("membership roll", "roll", roll), ("policy", "policy", policy))
            if self._store.load(name) != encode(signed)
        }
        first = int.from_bytes(self._store.load("searched") or b"", "big")
        while missing:
            page, log = self.follow(
                partial(self._port.log, first, LOG_PAGE), lambda fetched: fetched.checkpoint
            )
            for logged in page.entries:
                entry = log.verify_entry(logged)
                if isinstance(entry, MembershipEntry | PolicyEntry):
                    missing.pop(entry.digest, None)
            if len(page.entries) < LOG_PAGE:
                break
            first = page.entries[-1].index + 1
        if missing:
            what = " and a ".join(sorted(missing.values()))
            raise MembershipError(self.anchors.coordinator, f"serves a {what} that is not in the log")

    def _form_belief(self, signed_roll: Signed, signed_policy: Signed) -> _Belief:
        anchors = self.anchors
        trusted = {anchors.coordinator: anchors.coordinator_key}
        roll = open_signed(MembershipRoll, signed_roll, trusted)
        policy = open_signed(PolicyBundle, signed_policy, trusted)
        check_roll(roll)
        if (
            coordinator(roll).party != anchors.coordinator
            or coordinator(roll).verify_key != anchors.coordinator_key
        ):
            raise MembershipError(
                anchors.coordinator, "the roll names another coordinator than the one we trust"
            )
        if find_party(roll, anchors.party).verify_key != anchors.verify_key:
            raise MembershipError(
                anchors.coordinator, f"the roll has another verify key for us ({anchors.party})"
            )
        key_sets = {key.kind_group: key_set(roll, key.kind_group) for key in roll.group_keys}
        self._check_own_shares(roll, key_sets)
        return _Belief(
            roll=roll,
            policy=policy,
            decider=Decider(policy, roll),
            verify_keys=verify_keys(roll),
            key_sets=key_sets,
        )

    def _check_change(self, old: _Belief | None, new: _Belief) -> None:
        """What ``new`` may not change of what was believed before, and whom it may add."""
        anchors = self.anchors
        if old is not None:
            check_successor(old.roll, new.roll)
            self._check_keys_stay(old.roll, new.roll)
            if new.policy.policy_epoch < old.policy.policy_epoch:
                raise MembershipError(anchors.coordinator, "serves an older policy than it did before")
            if new.policy.policy_epoch == old.policy.policy_epoch and new.policy != old.policy:
                raise MembershipError(
                    anchors.coordinator, f"serves two policies of epoch {new.policy.policy_epoch}"
                )
        agreed = {
            anchors.coordinator: PinnedParty(Role.COORDINATOR, anchors.coordinator_key),
            anchors.party: PinnedParty(Role.MEMBER, anchors.verify_key),
        }
        check_newcomers(None if old is None else old.roll, new.roll, {**self._pinned(), **agreed})

    def _check_own_shares(self, roll: MembershipRoll, key_sets: Mapping[str, PublicKeySet]) -> None:
        """Every OPRF key of the roll must be the one whose share this bank holds.

        Under a key that somebody else chose our lookups would show the values to that party, and nothing but the own
        share tells: no group key is pinned anywhere, so without a share no key is believed.
        """
        index = find_party(roll, self.anchors.party).share_index
        for keys in key_sets.values():
            name = f"the key of {keys.kind_group!r}, epoch {keys.epoch}, generation {keys.generation}"
            if not index:
                raise MembershipError(
                    self.anchors.coordinator,
                    f"{name}, cannot be checked: the roll gives us ({self.anchors.party}) no key share",
                )
            own = self._own_shares.get((keys.epoch, keys.kind_group, keys.generation))
            if own is None:
                raise MembershipError(
                    self.anchors.coordinator,
                    f"{name}, is not one we hold a share of: install our share before the roll that names it",
                )
            if own.index != index or keys.public_shares.get(index) != own.element:
                raise MembershipError(
                    self.anchors.coordinator,
                    f"the roll's public share {index} of {keys.kind_group!r} is not the one of our key share",
                )

    def _check_keys_stay(self, old: MembershipRoll, new: MembershipRoll) -> None:
        """Within an epoch a group key is one point: a re-sharing changes the shares only."""
        before = {key.kind_group: key for key in old.group_keys}
        for key in new.group_keys:
            known = before.get(key.kind_group)
            if known is None or key.epoch != known.epoch:
                continue
            if key.public_key != known.public_key or key.generation < known.generation:
                raise MembershipError(
                    self.anchors.coordinator,
                    f"changes the key of {key.kind_group!r} within epoch {key.epoch}",
                )

    def _advance(self, update: CheckpointUpdate) -> TrustedLog:
        new = self._log.advance(update, now=self._clock(), max_age=self._max_age())
        if new.note != self._log.note:
            self._store.save("checkpoint", new.size, new.note.encode())
            self._log = new
        return new

    def _max_age(self) -> int:
        return (
            FIRST_MAX_AGE_SECONDS if self._belief is None else self._belief.policy.max_checkpoint_age_seconds
        )

    def _require_belief(self) -> _Belief:
        if self._belief is None:
            raise NotJoinedError(
                f"{self.anchors.party} has not yet verified a membership roll and a policy: synchronise"
            )
        return self._belief
