"""The brake: a rule that declines too great a share of events is stopped until a person releases it.

Each live version has a window of its own over the events it judged. It is counted in :data:`PANES` panes of event time,
so it reaches back between 59 and 60 panes from the newest event; all counts are integers, and what the brake does
depends on the order of the events only, never on how they are cut into batches or on a clock.

A rule trips at the event that takes its share of challenges, of reviews or of blocks above what its limits allow: from
that very row on it acts as in shadow, its hits are still reported and give no verdict. Late events count in the pane of
their own time, those older than the window nowhere. A trip holds for the rule's key (its id, condition, verdict and
evidence), also in versions deployed later, until the deployment's release count for the key has grown; its counts
then begin anew.

One customer cannot trip a rule for everybody: while a customer has ``k`` declines that count in a rule's window
(``most_counted``), a further one is as if the rule had not seen the event, so it neither adds to the declines nor thins
them out. A rule trips when (declines that count) > share * (events - declines that do not). Events without a customer
count each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.brake_customers import PANES, BrakeStateError, CustomerDeclines, counts, most_counted
from scoring.compiled import compiled
from scoring.rules.deployment import Deployment, DeploymentJudgement
from scoring.rules.evaluation import Judgement, RuleSet, decide
from scoring.verdicts import Verdict

__all__ = ["PANES", "Brake", "BrakeAlarm", "BrakeCount", "BrakeStateError"]

# The form of a saved state; before this one customers were not told apart.
_FORM = 2
_LEVELS = (Verdict.CHALLENGE, Verdict.REVIEW, Verdict.BLOCK)


@dataclass(frozen=True)
class BrakeAlarm:
    """A rule tripped at the event of ``time_us`` (row ``row`` of its batch): ``declines`` with ``verdict`` of
    ``events`` in the window are above ``share``. ``release`` counts the releases of the rule before."""

    version: int
    rule: str
    key: str
    release: int
    verdict: Verdict
    row: int
    time_us: int
    declines: int
    events: int
    share: float


@dataclass(frozen=True)
class BrakeCount:
    """What the window holds for one rule now: events it judged, its declines by verdict, whether it is stopped."""

    version: int
    rule: str
    key: str
    braked: bool
    events: int
    challenge: int
    review: int
    block: int


class Brake:
    """The brake of one stream. Not thread safe: a stream has one order."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        # Rule key -> releases there had been when it tripped.
        self._tripped: dict[str, int] = {}
        self._aligned: Deployment | None = None

    def apply(
        self,
        deployment: Deployment,
        judged: DeploymentJudgement,
        time_us: NDArray[np.int64],
        customer: NDArray[np.uint64] | None = None,
    ) -> tuple[DeploymentJudgement, list[BrakeAlarm]]:
        """Count a judged batch (``time_us`` int64 [n] in row order) and take stopped rules' verdicts out of it.

        ``customer`` uint64 [n]: whose each row is, 0 where that is not known (None: of none). Gives the judgement that
        stands, the given one where no rule is stopped, and the trips of this batch.
        """
        if deployment is not self._aligned:
            self._align(deployment)
        if not len(time_us):
            return judged, []
        live = judged.live
        # Only rows with a verdict are written to.
        effective = live.effective.T
        spoke = int(np.count_nonzero(live.verdict))
        if spoke:
            effective = effective.copy()
        whose = np.zeros(len(time_us), np.uint64) if customer is None else customer
        muted = np.zeros(len(time_us), np.bool_)
        alarms: list[BrakeAlarm] = []
        first = 0
        for ruleset in deployment.live:
            own = effective[first : first + len(ruleset.rules)]
            first += len(ruleset.rules)
            lane = self._lanes[ruleset.version]
            alarms += lane.count(time_us, whose, judged.version, live.verdict, own, muted, spoke)
        for alarm in alarms:
            self._tripped[alarm.key] = alarm.release
        if not np.count_nonzero(muted):
            return judged, alarms
        verdict, rule = live.verdict.copy(), live.rule.copy()
        rows = np.flatnonzero(muted)
        verdict[rows], rule[rows] = decide(effective[:, rows].T)
        stands = Judgement(verdict, rule, live.hits, effective.T, live.errors, live.exempted)
        return replace(judged, live=stands), alarms

    @property
    def stopped(self) -> frozenset[str]:
        """Keys (``Rule.key``) of the rules that are stopped."""
        return frozenset(self._tripped)

    def counts(self) -> list[BrakeCount]:
        """The windows of all live rules."""
        return [count for lane in self._lanes.values() for count in lane.report()]

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that decides what the brake will do, as arrays to be saved."""
        saved: dict[str, NDArray[Any]] = {
            "tripped": np.array(list(self._tripped), dtype=np.str_),
            "tripped_releases": np.array(list(self._tripped.values()), np.int64),
            "versions": np.array(list(self._lanes), np.int64),
            "form": np.array([_FORM], np.int64),
        }
        for version, lane in self._lanes.items():
            saved |= {f"{version}.{name}": values for name, values in lane.state().items()}
        return saved

    def restore(self, arrays: Mapping[str, NDArray[Any]], deployment: Deployment) -> None:
        """Take up a saved state; raises BrakeStateError when it is none.

        Under the same live versions the brake goes on to the bit. Under others its windows begin anew, and stopped
        rules stay stopped. Out of a state of before customers were counted the windows are taken as they are, and
        nobody's declines have been counted yet.
        """
        try:
            old = "form" not in arrays
            if not old and arrays["form"].tolist() != [_FORM]:
                raise BrakeStateError(f"the brake's state has form {arrays['form'].tolist()}, not {_FORM}")
            tripped = dict(zip(arrays["tripped"].tolist(), arrays["tripped_releases"].tolist(), strict=True))
            if arrays["versions"].tolist() != [each.version for each in deployment.live]:
                self._tripped, self._lanes = tripped, {}
                self._align(deployment)
                return
            lanes: dict[int, _Lane] = {}
            for ruleset in deployment.live:
                prefix = f"{ruleset.version}."
                own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
                lanes[ruleset.version] = _Lane(ruleset, own, old=old)
        except KeyError as error:
            raise BrakeStateError(f"the brake's state lacks {error}") from error
        self._tripped, self._lanes, self._aligned = tripped, lanes, deployment

    def _align(self, deployment: Deployment) -> None:
        """Take up a changed deployment: windows of new versions begin empty, releases take effect.

        Only here does a rule that tripped in one version stop in another that holds it too: inside a deployment that
        would depend on which rows came in one batch.
        """
        self._lanes = {each.version: self._lanes.get(each.version) or _Lane(each) for each in deployment.live}
        for lane in self._lanes.values():
            lane.take_releases(deployment.releases)
        self._tripped = {
            key: count for key, count in self._tripped.items() if count == deployment.releases.get(key, 0)
        }
        for lane in self._lanes.values():
            lane.mark(self._tripped)
        self._aligned = deployment


class _Lane:
    """The window of one version: counts by pane (row ``pane % PANES``), rule and verdict."""

    def __init__(
        self, ruleset: RuleSet, saved: Mapping[str, NDArray[Any]] | None = None, *, old: bool = False
    ) -> None:
        rules = len(ruleset.rules)
        self.ruleset = ruleset
        self._keys = [rule.key for rule in ruleset.rules]
        # Never zero, so that a window of less than a minute still has panes of a second or less.
        self._pane_us = max(1, ruleset.brake.window_us // PANES)
        shares = np.array(
            [[rule.max_share or ruleset.brake.share(level) for level in _LEVELS] for rule in ruleset.rules]
        ).reshape(rules, len(_LEVELS))
        self._shares = np.concatenate([shares, most_counted(shares, ruleset.brake)], axis=1)
        self.braked = np.zeros(rules, np.bool_)
        self._newest = np.full(1, -1, np.int64)
        self._events = np.zeros(PANES, np.int64)
        self._declines = np.zeros((PANES, rules, len(_LEVELS)), np.int64)
        # Events that count for the others and not for a rule: before its release, or a customer's declines too many.
        self._before = np.zeros((PANES, rules), np.int64)
        self._releases = np.zeros(rules, np.int64)
        self._customers = CustomerDeclines()
        # By rule the row, level, declines and events at which it trips in a batch; -1 between batches.
        self._trips = np.full((rules, 4), -1, np.int64)
        if saved is not None:
            for name, held in self._held().items():
                if saved[name].shape != held.shape:
                    raise BrakeStateError(
                        f"{name} of version {ruleset.version} has shape {saved[name].shape}"
                    )
                held[...] = saved[name]
            if not old:
                self._customers = CustomerDeclines(saved["counted"], rules)
        self._recount()

    def _held(self) -> dict[str, NDArray[Any]]:
        return {
            "newest": self._newest,
            "events": self._events,
            "declines": self._declines,
            "before": self._before,
            "releases": self._releases,
            "braked": self.braked,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: held.copy() for name, held in self._held().items()} | {
            "counted": self._customers.rows(int(self._newest[0]))
        }

    def take_releases(self, releases: Mapping[str, int]) -> None:
        for index, key in enumerate(self._keys):
            count = releases.get(key, 0)
            if count != self._releases[index]:
                self._releases[index] = count
                self._declines[:, index] = 0
                self._before[:, index] = self._events
                self._customers.forget(index, int(self._newest[0]))
        self._recount()

    def mark(self, tripped: Mapping[str, int]) -> None:
        self.braked[:] = [key in tripped for key in self._keys]

    def count(
        self,
        time_us: NDArray[np.int64],
        customer: NDArray[np.uint64],
        version: NDArray[np.int16],
        verdict: NDArray[np.uint8],
        effective: NDArray[np.uint8],
        muted: NDArray[np.bool_],
        spoke: int,
    ) -> list[BrakeAlarm]:
        """Count the rows of this version; clears verdicts of stopped rules in ``effective`` and marks their rows.

        ``spoke``: rows of the batch with a verdict.
        """
        trips = self._trips
        time_us, version, verdict = _own(time_us), _own(version), _own(verdict)
        customer = _own(customer)
        # Their number at most; counting them costs as much as all the rest.
        if spoke and not self._customers.has_room(spoke * len(self._keys)):
            self._customers.reserve(int(np.count_nonzero(effective)), int(self._newest[0]))
        _count(
            time_us, customer, version, np.int16(self.ruleset.version), verdict, effective, self._pane_us,
            self.ruleset.brake.min_events, self._shares, self._newest, self._events, self._declines, self._before,
            self._seen, self._total, self._earlier, self._customers.array, self.braked, muted, trips,
        )  # fmt: skip
        if not np.count_nonzero(muted):
            return []
        alarms = []
        for index in np.flatnonzero(trips[:, 0] >= 0):
            row, level, declines, events = trips[index].tolist()
            trips[index] = -1
            rule = self.ruleset.rules[index]
            alarms.append(
                BrakeAlarm(
                    self.ruleset.version,
                    rule.id,
                    rule.key,
                    int(self._releases[index]),
                    _LEVELS[level],
                    row,
                    int(time_us[row]),
                    declines,
                    events,
                    float(self._shares[index, level]),
                )
            )
        return sorted(alarms, key=lambda alarm: alarm.row)

    def _recount(self) -> None:
        """Sums over the panes, which :func:`_count` carries along: adding them up would be most of a single event."""
        self._seen = np.array([self._events.sum()], np.int64)
        self._total = self._declines.sum(axis=0)
        self._earlier = self._before.sum(axis=0)

    def report(self) -> list[BrakeCount]:
        declines = self._declines.sum(axis=0).tolist()
        events = (int(self._events.sum()) - self._before.sum(axis=0)).tolist()
        return [
            BrakeCount(self.ruleset.version, rule.id, rule.key, bool(self.braked[i]), events[i], *declines[i])
            for i, rule in enumerate(self.ruleset.rules)
        ]


def _own(column: NDArray[Any]) -> NDArray[Any]:
    """As compiled loops expect it: read-only columns are another type to Numba, compiled anew in mid-batch."""
    flags = column.flags
    return column if flags.c_contiguous and flags.writeable else column.copy()


@compiled
def _count(
    time_us: NDArray[np.int64],
    customer: NDArray[np.uint64],
    version: NDArray[np.int16],
    own: np.int16,
    verdict: NDArray[np.uint8],
    effective: NDArray[np.uint8],
    pane_us: int,
    min_events: int,
    shares: NDArray[np.float64],
    newest: NDArray[np.int64],
    events: NDArray[np.int64],
    declines: NDArray[np.int64],
    before: NDArray[np.int64],
    seen: NDArray[np.int64],
    total: NDArray[np.int64],
    earlier: NDArray[np.int64],
    table: NDArray[np.int64],
    braked: NDArray[np.bool_],
    muted: NDArray[np.bool_],
    trips: NDArray[np.int64],
) -> None:
    """Rows in their order; ``trips`` gets (row, level, declines, events) of each rule that trips."""
    rules = len(braked)
    for row in range(len(time_us)):
        if version[row] != own:
            continue
        pane = time_us[row] // pane_us
        if pane > newest[0]:
            for leaving in range(max(newest[0] + 1, pane - PANES + 1), pane + 1):
                slot = leaving % PANES
                seen[0] -= events[slot]
                events[slot] = 0
                for rule in range(rules):
                    earlier[rule] -= before[slot, rule]
                    before[slot, rule] = 0
                    for level in range(3):
                        total[rule, level] -= declines[slot, rule, level]
                        declines[slot, rule, level] = 0
            newest[0] = pane
        counted = pane > newest[0] - PANES
        slot = pane % PANES
        if counted:
            events[slot] += 1
            seen[0] += 1
        if verdict[row] == 0:
            continue
        for rule in range(rules):
            given = effective[rule, row]
            if given == 0:
                continue
            if not braked[rule] and counted:
                level = given - 1
                most = int(shares[rule, 3 + level])
                if customer[row] == 0 or counts(table, customer[row], rule, most, pane, newest[0]):
                    declines[slot, rule, level] += 1
                    total[rule, level] += 1
                else:
                    before[slot, rule] += 1
                    earlier[rule] += 1
                judged = seen[0] - earlier[rule]
                if judged >= min_events and total[rule, level] > shares[rule, level] * judged:
                    braked[rule] = True
                    trips[rule, 0] = row
                    trips[rule, 1] = level
                    trips[rule, 2] = total[rule, level]
                    trips[rule, 3] = judged
            if braked[rule]:
                effective[rule, row] = 0
                muted[row] = True
