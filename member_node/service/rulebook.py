"""The bank's rulebook while the node runs: versions and their life, what judges the next batch, and who did what.

Every change is on disk with its trail entry before it takes effect; then one reference is swapped, so that the next
batch is judged by the new deployment as a whole. Versions are compiled when they are saved or first deployed (some
milliseconds), never while a batch waits.

Two persons: whoever saved a version cannot approve it, and the operator token, which names nobody, is neither of the
two. The exception is the rule file a stream is opened with for the first time: it becomes version 1, author
``operator``, active at once (there is nothing yet that could judge), and the trail says so.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from member_node.service.staff import OPERATOR, Role, SamePersonError, Staff, check_two_persons
from member_node.storage.rulebook import NO_CHAIN, AuditDraft, AuditRow, RulebookStore, VersionRow, next_chain
from scoring.brake import BrakeAlarm
from scoring.rules.columns import Column, ColumnSchema, ColumnType
from scoring.rules.deployment import Deployment
from scoring.rules.ruleset import RuleSet, RuleSetError, load_ruleset
from scoring.rules.versions import Action, Book, Code, Deployed, LifecycleError, State, Version

MAX_WHY = 500
BRAKE = "brake"
_ANYONE = frozenset({Role.ANALYST, Role.APPROVER})
_APPROVERS = frozenset({Role.APPROVER})
# Entries of the trail that end with the digest of the text they brought.
_SAVING = ("bootstrap", "save")
PERMITTED: Mapping[Action, frozenset[Role]] = {
    Action.PROPOSE: _ANYONE,
    Action.APPROVE: _APPROVERS,
    Action.REJECT: _APPROVERS,
    Action.SHADOW: _ANYONE,
    Action.HOLD: _ANYONE,
    Action.ROLLOUT: _APPROVERS,
    Action.ACTIVATE: _APPROVERS,
    Action.ROLLBACK: _APPROVERS,
    Action.RETIRE: _APPROVERS,
}


class RulebookError(Exception):
    """The rulebook cannot be used as it is; the text says what to do."""


class NotPermittedError(RulebookError):
    """A person lacks the role for an act."""


class Rulebook:
    """All versions of one bank's rules. Thread safe."""

    def __init__(
        self,
        store: RulebookStore,
        schema: Callable[[], ColumnSchema],
        clock_ms: Callable[[], int],
        added_by: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """``schema`` gives the columns rules may read at the moment; it is asked when a version is saved or compiled.
        ``added_by``: who gave out whose token (see ``check_two_persons``).

        Raises RulebookError if what is stored contradicts itself.
        """
        self._store = store
        self._schema = schema
        self._clock_ms = clock_ms
        self._added_by = added_by
        self._lock = threading.RLock()
        self._rows: dict[int, VersionRow] = {row.number: row for row in store.versions()}
        self._compiled: dict[int, RuleSet] = {}
        self._current: Deployment | None = None
        self._alarms: set[tuple[object, ...]] = set()
        for entry in store.audit():
            if entry.action == BRAKE:
                self._alarms.add(_alarm_identity(json.loads(entry.detail)))
        versions = {
            row.number: Version(row.number, row.author, State(row.state), row.decided_by)
            for row in self._rows.values()
        }
        newest = store.deployment()
        self._book = Book(versions, Deployed() if newest is None else _deployed(*newest))
        _check_deployed(self._book)

    @property
    def empty(self) -> bool:
        """Whether there is no version yet."""
        return not self._rows

    @property
    def deployed(self) -> Deployed:
        """What is deployed, by version numbers."""
        return self._book.deployed

    def deployment(self) -> Deployment:
        """What judges the next batch: the same object until something changes. Raises RulebookError if nothing does."""
        current = self._current
        if current is None:
            with self._lock:
                current = self._current = self._build(self._book.deployed)
        return current

    def deployment_at(self, number: int) -> Deployment:
        """An earlier deployment, to judge again what it judged. Raises RulebookError if there was none."""
        with self._lock:
            if number == self._book.deployed.number:
                return self.deployment()
            stored = self._store.deployment(number)
            if stored is None:
                raise RulebookError(f"there was no deployment {number}")
            return self._build(_deployed(*stored))

    def versions(self) -> list[VersionRow]:
        """All versions by number."""
        with self._lock:
            return [self._rows[number] for number in sorted(self._rows)]

    def version(self, number: int) -> VersionRow:
        """One version. Raises LifecycleError (unknown-version)."""
        row = self._rows.get(number)
        if row is None:
            raise LifecycleError(Code.UNKNOWN_VERSION, f"there is no version {number}")
        return row

    def columns(self) -> ColumnSchema:
        """The columns rules may read now."""
        return self._schema()

    def check(self, text: str) -> RuleSet:
        """Compile a text against the columns of now without saving it. Raises RuleSetError."""
        return load_ruleset(text, self._schema(), version=1)

    def bootstrap(self, text: str) -> bool:
        """Take the stream's first rule file as version 1, active; False if there are versions already.

        Raises RuleSetError.
        """
        with self._lock:
            if not self.empty:
                return False
            ruleset = load_ruleset(text, self._schema(), version=1)
            book = self._book.bootstrap(OPERATOR)
            row = self._row(1, text, ruleset, OPERATOR, "the rule file the stream was first opened with")
            row = replace(row, state=State.ACTIVE.value)
            self._compiled[1] = ruleset
            self._commit(book, OPERATOR, "bootstrap", 1, "without a second person: nothing was active", row)
            return True

    def save(self, text: str, staff: Staff, why: str) -> int:
        """Save a text as a new draft; its number. Raises RuleSetError with the place, and what ``act`` raises."""
        _check_why(why)
        _check_role(staff, "save a version", _ANYONE)
        with self._lock:
            book, number = self._book.save(staff.name)
            ruleset = load_ruleset(text, self._schema(), version=number)
            row = self._row(number, text, ruleset, staff.name, why)
            self._compiled[number] = ruleset
            self._commit(book, staff.name, "save", number, why, row)
            return number

    def act(
        self,
        action: Action,
        number: int,
        staff: Staff,
        why: str,
        *,
        seen: int | None = None,
        percent: float = 0.0,
    ) -> Deployed:
        """Carry out ``action`` on a version; what is deployed after it.

        ``seen``: number of the deployment the person decided upon, needed where that changes. An author may withdraw
        (reject) what is theirs. Raises LifecycleError with a code, NotPermittedError, ValueError without a reason.
        """
        _check_why(why)
        if action not in PERMITTED:
            raise LifecycleError(
                Code.WRONG_STATE, f"{action} follows from other acts and is nobody's own act"
            )
        withdrawn = action is Action.REJECT and self.version(number).author == staff.name
        if not withdrawn:
            _check_role(staff, f"{action} a version", PERMITTED[action])
        with self._lock:
            if number == self._book.deployed.rollout:
                # Whatever is done to it changes what decides for some customers.
                _check_role(staff, f"{action} a version that is being rolled out", _APPROVERS)
            book = self._book.act(action, number, staff.name, seen=seen, percent=percent)
            if action is Action.APPROVE:
                self._check_person(staff, self.version(number))
            detail = f"{percent:g} percent: {why}" if action is Action.ROLLOUT else why
            self._commit(book, staff.name, action.value, number, detail)
            return self._book.deployed

    def release(self, rule: str, staff: Staff, why: str, *, seen: int | None) -> Deployed:
        """Release a live rule from the brake, with the next batch; its window begins anew.

        Raises LifecycleError (unknown-rule, stale), NotPermittedError, ValueError for a missing reason.
        """
        _check_why(why)
        _check_role(staff, "release a rule", _APPROVERS)
        with self._lock:
            keys = {each.key for each in self.deployment().rules if each.id == rule}
            if not keys:
                raise LifecycleError(Code.UNKNOWN_RULE, f"no live version has a rule {rule!r}")
            book = self._book
            for position, key in enumerate(sorted(keys)):
                book = book.release(key, seen=seen if position == 0 else book.deployed.number)
            # One change, whatever it releases.
            after = replace(book.deployed, number=self._book.deployed.number + 1)
            self._commit(replace(book, deployed=after), staff.name, "release", 0, f"{rule}: {why}")
            return self._book.deployed

    def record_alarm(self, alarm: BrakeAlarm) -> bool:
        """Write a trip of the brake into the trail; False if it is there already (a restart judges again)."""
        told = asdict(alarm) | {"verdict": alarm.verdict.label}
        del told["row"]
        with self._lock:
            if _alarm_identity(told) in self._alarms:
                return False
            number = self._book.deployed.number
            at = self._clock_ms()
            self._store.commit(AuditDraft(at, BRAKE, BRAKE, alarm.version, number, json.dumps(told)))
            self._alarms.add(_alarm_identity(told))
            return True

    def audit(self, after: int = 0, limit: int | None = None) -> list[AuditRow]:
        """Entries of the trail behind sequence ``after``, oldest first."""
        return self._store.audit(after, limit)

    def trail_is_whole(self) -> bool:
        """Whether every entry of the trail is as it was written, none is missing before the last, and every version's
        text is the one that was saved."""
        before = NO_CHAIN
        texts = {row.number: _digest(row.text) for row in self._store.versions()}
        for place, row in enumerate(self._store.audit(), start=1):
            if row.sequence != place or next_chain(before, place, row) != row.chain:
                return False
            if row.action in _SAVING and not row.detail.endswith(_text_told(texts.pop(row.version, ""))):
                return False
            before = row.chain
        return not texts

    def _row(self, number: int, text: str, ruleset: RuleSet, author: str, why: str) -> VersionRow:
        schema = self._schema()
        read = [asdict(schema[name]) for name in sorted(ruleset.columns)]
        return VersionRow(
            number, text, _digest(text), json.dumps(read), author, why, self._clock_ms(), State.DRAFT.value
        )

    def _commit(
        self, book: Book, actor: str, action: str, number: int, detail: str, saved: VersionRow | None = None
    ) -> None:
        """Store the step from the current book to ``book``, then take it up. Called with the lock held."""
        now = self._clock_ms()
        if saved is not None:
            detail += _text_told(saved.digest)
        moved = []
        for version in book.versions.values():
            row = self._rows.get(version.number)
            if row is None or (row.state, row.decided_by) == (version.state, version.decided_by):
                continue
            row = replace(row, state=version.state.value)
            if version.decided_by != row.decided_by:
                row = replace(row, decided_by=version.decided_by, decided_at_ms=now, decision=detail)
            moved.append(row)
        changed = book.deployed != self._book.deployed
        # Compiled before anything is written: a version that cannot judge is not deployed.
        deployment = self._build(book.deployed) if changed else self._current
        self._store.commit(
            AuditDraft(now, actor, action, number, book.deployed.number, detail),
            saved=saved,
            moved=moved,
            deployment=_content(book.deployed) if changed else None,
        )
        self._rows |= {row.number: row for row in ([saved] if saved else []) + moved}
        self._book = book
        self._current = deployment

    def _build(self, deployed: Deployed) -> Deployment:
        if not deployed.active:
            raise RulebookError("no version of the rules is active: have one approved, then activate it")
        rollout = (self._ruleset(deployed.rollout), deployed.percent) if deployed.rollout else None
        shadows = tuple(map(self._ruleset, deployed.shadows))
        return Deployment(
            deployed.number, self._ruleset(deployed.active), rollout, shadows, deployed.releases
        )

    def _check_person(self, staff: Staff, row: VersionRow) -> None:
        try:
            check_two_persons(f"version {row.number}", row.author, staff.name, self._added_by())
        except SamePersonError as error:
            raise LifecycleError(Code.SAME_PERSON, str(error)) from error

    def _ruleset(self, number: int) -> RuleSet:
        ruleset = self._compiled.get(number)
        if ruleset is None:
            row = self.version(number)
            if _digest(row.text) != row.digest:
                raise RulebookError(f"the text of version {number} is not the one that was saved: restore it")
            try:
                ruleset = load_ruleset(row.text, self._schema_of(row), version=number)
            except RuleSetError as error:
                raise RulebookError(f"version {number} does not fit the stream's columns: {error}") from error
            self._compiled[number] = ruleset
        return ruleset

    def _schema_of(self, row: VersionRow) -> ColumnSchema:
        """Today's columns and those gone since: a rule that reads one is in error, and does not stop the rest."""
        return self._schema().with_gone(columns_of(json.loads(row.columns)))


def columns_of(told: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Columns as they are stored and told."""
    return [Column(each["name"], ColumnType(each["type"]), each["evidence"]) for each in told]


def _check_why(why: str) -> None:
    if not why.strip() or len(why) > MAX_WHY:
        raise ValueError(f"say why, in at most {MAX_WHY} characters")


def _check_role(staff: Staff, what: str, wanted: frozenset[Role]) -> None:
    if not staff.has(*wanted):
        raise NotPermittedError(f"to {what} takes the role {' or '.join(sorted(wanted))}")


def _check_deployed(book: Book) -> None:
    """Raise RulebookError unless every version that is deployed is there and in the state that says so."""
    deployed = book.deployed
    wanted = [(deployed.active, State.ACTIVE), (deployed.rollout, State.ROLLOUT)]
    wanted += [(number, State.SHADOW) for number in deployed.shadows]
    for number, state in wanted:
        if not number:
            continue
        version = book.versions.get(number)
        if version is None:
            raise RulebookError(f"version {number} is deployed and its text is missing: restore the database")
        if version.state is not state or (number > 1 and version.decided_by in ("", version.author)):
            raise RulebookError(
                f"version {number} is deployed, {version.state}, and was approved by "
                f"{version.decided_by or 'nobody'}: the database was changed, restore it"
            )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_told(digest: str) -> str:
    return f" (text {digest})"


def _content(deployed: Deployed) -> str:
    values: dict[str, Any] = asdict(deployed)
    del values["number"]
    return json.dumps(values, sort_keys=True)


def _deployed(number: int, content: str) -> Deployed:
    values = json.loads(content)
    return Deployed(
        number,
        values["active"],
        values["rollout"],
        values["percent"],
        tuple(values["shadows"]),
        tuple(values["before"]),
        values["releases"],
    )


def _alarm_identity(told: Mapping[str, Any]) -> tuple[object, ...]:
    return told["version"], told["key"], told["release"], told["time_us"]
