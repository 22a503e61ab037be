"""Plays a stream through the consortium day by day, as the banks' own calendars would.

Each day has three parts, and every bank finishes one before any bank starts the next, so that a run has one result:
confirm (frauds whose label delay is over become outcomes, and indicators where the evidence suffices), share (mirror
the index, ask the joint statistic), score (the day's own transactions in time order).
"""

from __future__ import annotations

import datetime as dt
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from member_node.client.desk import BankDesk, BankUnreachableError
from sandbox.cluster import Cluster
from sandbox.faults import Kill
from sandbox.parties import Party

EPOCH_DAY = dt.date(1970, 1, 1)
DAY_MS = 86_400_000


@dataclass
class Incident:
    """A member that stopped answering: on which day, in which part, and how it came back."""

    party: str
    day: dt.date
    part: str
    reason: str
    recovered_seconds: float


@dataclass
class Played:
    """What a run did: per part the wall-clock seconds of each day, answers of the banks, and incidents."""

    days: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, dict[str, list[dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    incidents: list[Incident] = field(default_factory=list)


class Scenario:
    """Drives the banks' desks; ``announce`` is told of each day and of each incident."""

    def __init__(
        self, cluster: Cluster, *, kills: Iterable[Kill] = (), announce: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._kills = list(kills)
        known = {bank.party for bank in cluster.members}
        for kill in self._kills:
            if kill.party not in known:
                raise ValueError(
                    f"{kill.party} is not a member of this sandbox; it has {', '.join(sorted(known))}"
                )
        self._announce = announce
        self.played = Played()

    def play(self, first: dt.date, last: dt.date, *, on_day: Callable[[dt.date], None]) -> Played:
        """Play every day from ``first`` to ``last``, both included."""
        desks = {bank.party: BankDesk(bank.party, bank.url, bank.directory) for bank in self._cluster.members}
        try:
            with ThreadPoolExecutor(len(desks)) as pool:
                for number in range((last - first).days + 1):
                    day = first + dt.timedelta(days=number)
                    for kill in self._kills:
                        if kill.day == number + 1:
                            self._cluster.kill(
                                next(b for b in self._cluster.members if b.party == kill.party)
                            )
                    start_ms = (day - EPOCH_DAY).days * DAY_MS
                    for part, body in (
                        ("confirm", {"until_ms": start_ms}),
                        ("share", {"day": (day - EPOCH_DAY).days}),
                        ("score", {"until_ms": start_ms + DAY_MS}),
                    ):
                        self._part(pool, desks, day, part, body)
                    self.played.days += 1
                    on_day(day)
        finally:
            for desk in desks.values():
                desk.close()
        return self.played

    def _part(
        self,
        pool: ThreadPoolExecutor,
        desks: dict[str, BankDesk],
        day: dt.date,
        part: str,
        body: dict[str, int],
    ) -> None:
        began = time.perf_counter()

        def one(bank: Party) -> None:
            try:
                answer = desks[bank.party].post(f"replay/{part}", **body)
            except BankUnreachableError as error:
                self._recover(bank, day, part, str(error))
                answer = desks[bank.party].post(f"replay/{part}", **body)
            self.played.answers[bank.party][part].append(answer)

        list(pool.map(one, self._cluster.members))
        self.played.seconds[part].append(time.perf_counter() - began)

    def _recover(self, bank: Party, day: dt.date, part: str, reason: str) -> None:
        """Report a dead member by name and start it again; one that lives but does not answer is an error."""
        if self._cluster.is_alive(bank):
            raise BankUnreachableError(f"{reason}\n{self._cluster.tail(bank)}")
        self._announce(f"{bank.party} died before it could {part} {day}: starting it again")
        began = time.perf_counter()
        self._cluster.restart(bank)
        took = time.perf_counter() - began
        self._announce(f"{bank.party} is back after {took:.1f} s and catches up")
        self.played.incidents.append(
            Incident(party=bank.party, day=day, part=part, reason=reason, recovered_seconds=took)
        )
