"""The life of a rule set version: a table of states, two persons, and what is deployed.

Pure: :class:`Book` is a value, every act gives a new one or raises :class:`LifecycleError`. Who may do what (roles),
when it was and where it is written is for the caller.

A version is saved as a draft, proposed, and approved by **another person than its author**. Approved, it may run in
shadow (it judges everything and decides nothing), be rolled out to a percentage of customers, and become active. The
version it replaces can be brought back by one act. The one exception to two persons is :meth:`Book.bootstrap`: the rule
file a bank starts with becomes version 1 and active at once, when there is no version yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

MAX_VERSIONS = 32_767  # a version travels as int16
MAX_SHADOWS = 4


class State(StrEnum):
    """Where a version stands."""

    DRAFT = "draft"
    PROPOSED = "proposed"
    APPROVED = "approved"
    SHADOW = "shadow"
    ROLLOUT = "rollout"
    ACTIVE = "active"
    REPLACED = "replaced"
    REJECTED = "rejected"
    RETIRED = "retired"


class Action(StrEnum):
    """What is done to a version. ``DISPLACE`` and ``RESTORE`` are what an act on one version does to another."""

    PROPOSE = "propose"
    APPROVE = "approve"
    REJECT = "reject"
    SHADOW = "shadow"
    ROLLOUT = "rollout"
    HOLD = "hold"
    ACTIVATE = "activate"
    ROLLBACK = "rollback"
    RETIRE = "retire"
    DISPLACE = "displace"
    RESTORE = "restore"


# A missing pair is refused. docs/scoring/rules.md shows this table (tested).
NEXT: Mapping[tuple[State, Action], State] = {
    (State.DRAFT, Action.PROPOSE): State.PROPOSED,
    (State.DRAFT, Action.REJECT): State.REJECTED,
    (State.PROPOSED, Action.APPROVE): State.APPROVED,
    (State.PROPOSED, Action.REJECT): State.REJECTED,
    (State.APPROVED, Action.SHADOW): State.SHADOW,
    (State.APPROVED, Action.ROLLOUT): State.ROLLOUT,
    (State.APPROVED, Action.ACTIVATE): State.ACTIVE,
    (State.APPROVED, Action.RETIRE): State.RETIRED,
    (State.SHADOW, Action.HOLD): State.APPROVED,
    (State.SHADOW, Action.ROLLOUT): State.ROLLOUT,
    (State.SHADOW, Action.ACTIVATE): State.ACTIVE,
    (State.SHADOW, Action.RETIRE): State.RETIRED,
    (State.ROLLOUT, Action.HOLD): State.APPROVED,
    (State.ROLLOUT, Action.SHADOW): State.SHADOW,
    (State.ROLLOUT, Action.ROLLOUT): State.ROLLOUT,
    (State.ROLLOUT, Action.ACTIVATE): State.ACTIVE,
    (State.ROLLOUT, Action.RETIRE): State.RETIRED,
    (State.ROLLOUT, Action.DISPLACE): State.APPROVED,
    (State.ACTIVE, Action.ROLLBACK): State.REPLACED,
    (State.ACTIVE, Action.DISPLACE): State.REPLACED,
    (State.REPLACED, Action.RESTORE): State.ACTIVE,
    (State.APPROVED, Action.RESTORE): State.ACTIVE,
    (State.SHADOW, Action.RESTORE): State.ACTIVE,
    (State.REPLACED, Action.SHADOW): State.SHADOW,
    (State.REPLACED, Action.ROLLOUT): State.ROLLOUT,
    (State.REPLACED, Action.ACTIVATE): State.ACTIVE,
    (State.REPLACED, Action.RETIRE): State.RETIRED,
}
# These change what judges the next event, so their author says which deployment they have seen.
DEPLOYING = frozenset(
    {Action.SHADOW, Action.ROLLOUT, Action.HOLD, Action.ACTIVATE, Action.ROLLBACK, Action.RETIRE}
)


class Code(StrEnum):
    """Why an act is refused."""

    UNKNOWN_VERSION = "unknown-version"
    UNKNOWN_RULE = "unknown-rule"
    WRONG_STATE = "wrong-state"
    SAME_PERSON = "same-person"
    STALE = "stale"
    BAD_PERCENT = "bad-percent"
    NOTHING_BEFORE = "nothing-before"
    NOT_EMPTY = "not-empty"
    TOO_MANY = "too-many"


class LifecycleError(ValueError):
    """An act is refused; ``code`` says why and the text what to do."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Version:
    """One version: who saved it, who approved or rejected it ("" before)."""

    number: int
    author: str
    state: State
    decided_by: str = ""


@dataclass(frozen=True)
class Deployed:
    """What judges: the active version (0: none), one rolled out to ``percent`` of customers (0: none), shadows.

    ``number`` grows by one at every change. ``before`` are versions that were active, the latest last. ``releases``
    counts by rule key (``Rule.key``) how often a person has released it from the brake.
    """

    number: int = 0
    active: int = 0
    rollout: int = 0
    percent: float = 0.0
    shadows: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    releases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Book:
    """All versions by number, and what is deployed."""

    versions: Mapping[int, Version] = field(default_factory=dict)
    deployed: Deployed = field(default_factory=Deployed)

    def save(self, author: str) -> tuple[Book, int]:
        """A new draft; the book with it, and its number."""
        number = max(self.versions, default=0) + 1
        if number > MAX_VERSIONS:
            raise LifecycleError(Code.TOO_MANY, f"a rulebook holds at most {MAX_VERSIONS} versions")
        return self._with(Version(number, author, State.DRAFT)), number

    def bootstrap(self, author: str) -> Book:
        """Version 1, active at once without a second person; only in an empty book."""
        if self.versions:
            raise LifecycleError(
                Code.NOT_EMPTY, "there are versions already: propose a new one and have it approved"
            )
        first = Version(1, author, State.ACTIVE)
        return replace(self, versions={1: first}, deployed=Deployed(number=1, active=1))

    def act(
        self, action: Action, number: int, actor: str, *, seen: int | None = None, percent: float = 0.0
    ) -> Book:
        """The book after ``action`` on version ``number``.

        ``seen``: number of the deployment the actor decided upon, needed for acts that change it (``DEPLOYING``).
        ``percent``: of customers, for a rollout; above 0, at most 100. A rollback names the active version.
        """
        version = self.versions.get(number)
        if version is None:
            raise LifecycleError(Code.UNKNOWN_VERSION, f"there is no version {number}")
        if action in DEPLOYING:
            self._check_seen(seen)
        state = NEXT.get((version.state, action))
        if state is None or action in (Action.DISPLACE, Action.RESTORE):
            permitted = ", ".join(sorted(each for (was, each) in NEXT if was is version.state))
            raise LifecycleError(
                Code.WRONG_STATE,
                f"version {number} is {version.state}: {action} does not apply (what does: {permitted or 'nothing'})",
            )
        if action in (Action.APPROVE, Action.REJECT):
            return self._decide(version, action, state, actor)
        after = self._with(replace(version, state=state))
        if action not in DEPLOYING:
            return after
        return after._deploy(action, number, version.state, percent)

    def release(self, key: str, *, seen: int | None) -> Book:
        """Release the rule of this key from the brake, effective with the deployment that follows."""
        self._check_seen(seen)
        releases = {**self.deployed.releases, key: self.deployed.releases.get(key, 0) + 1}
        return self._change(replace(self.deployed, releases=releases))

    def _check_seen(self, seen: int | None) -> None:
        if seen != self.deployed.number:
            raise LifecycleError(
                Code.STALE,
                f"deployment {self.deployed.number} is in force, you decided upon {seen}: look at it and repeat",
            )

    def _decide(self, version: Version, action: Action, state: State, actor: str) -> Book:
        if action is Action.APPROVE and actor == version.author:
            raise LifecycleError(
                Code.SAME_PERSON, f"version {version.number} is {actor}'s own: another person must approve it"
            )
        return self._with(replace(version, state=state, decided_by=actor))

    def _deploy(self, action: Action, number: int, was: State, percent: float) -> Book:
        deployed = self.deployed
        shadows = tuple(each for each in deployed.shadows if each != number)
        if was is State.ROLLOUT:
            deployed = replace(deployed, rollout=0, percent=0.0)
        deployed = replace(deployed, shadows=shadows)
        match action:
            case Action.SHADOW:
                if len(shadows) >= MAX_SHADOWS:
                    raise LifecycleError(
                        Code.TOO_MANY, f"{MAX_SHADOWS} versions run in shadow: hold one first"
                    )
                deployed = replace(deployed, shadows=(*shadows, number))
            case Action.ROLLOUT:
                deployed = self._roll_out(deployed, number, percent)
            case Action.ACTIVATE:
                return self._activate(deployed, number)
            case Action.ROLLBACK:
                return self._roll_back(deployed)
            case Action.RETIRE:
                deployed = replace(deployed, before=tuple(each for each in deployed.before if each != number))
        return self._change(deployed)

    def _roll_out(self, deployed: Deployed, number: int, percent: float) -> Deployed:
        if not (math.isfinite(percent) and 0.0 < percent <= 100.0):
            raise LifecycleError(
                Code.BAD_PERCENT, f"a rollout is above 0 and at most 100 percent, not {percent}"
            )
        if not deployed.active:
            raise LifecycleError(Code.WRONG_STATE, "nothing is active for the other customers: activate it")
        if deployed.rollout:
            raise LifecycleError(
                Code.WRONG_STATE, f"version {deployed.rollout} is being rolled out: hold or activate it first"
            )
        return replace(deployed, rollout=number, percent=percent)

    def _activate(self, deployed: Deployed, number: int) -> Book:
        book, replaced = self, deployed.active
        before = tuple(each for each in deployed.before if each != number)
        if replaced:
            book = book._moved(replaced, Action.DISPLACE)
            before = (*before, replaced)
        if deployed.rollout:
            book = book._moved(deployed.rollout, Action.DISPLACE)
        return book._change(replace(deployed, active=number, rollout=0, percent=0.0, before=before))

    def _roll_back(self, deployed: Deployed) -> Book:
        if not deployed.before:
            raise LifecycleError(Code.NOTHING_BEFORE, "no earlier version was active: activate another one")
        *before, target = deployed.before
        book = self
        if deployed.rollout:
            book = book._moved(deployed.rollout, Action.DISPLACE)
        # It may run in shadow or be rolled out since: that ends here.
        book = book._moved(target, Action.RESTORE)
        shadows = tuple(each for each in deployed.shadows if each != target)
        return book._change(
            replace(deployed, active=target, rollout=0, percent=0.0, shadows=shadows, before=tuple(before))
        )

    def _moved(self, number: int, action: Action) -> Book:
        version = self.versions[number]
        return self._with(replace(version, state=NEXT[version.state, action]))

    def _with(self, version: Version) -> Book:
        return replace(self, versions={**self.versions, version.number: version})

    def _change(self, deployed: Deployed) -> Book:
        return replace(self, deployed=replace(deployed, number=self.deployed.number + 1))
