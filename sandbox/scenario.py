"""Plays a stream through the consortium day by day, as the banks' own calendars would.

Each day has three parts, and every bank finishes one before any bank starts the next, so that a run has one result:
confirm (frauds whose label delay is over become outcomes, and indicators where the evidence suffices), share (mirror
the index, ask the joint statistic), score (the day's own transactions in time order).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from member_node.client.desk import BankDesk, BankUnreachableError
from member_node.streams.mapping import StreamMapping
from sandbox.faults import Kill
from sandbox.parties import Party
from sandbox.streams import EPOCH_DAY, day_start_ms

KILL_AFTER_SECONDS = 0.05
OPEN_INQUIRY_SECONDS = 3.0
POLL_SECONDS = 0.005
DEATH_SECONDS = 2.0


class Processes(Protocol):
    """The running parties, as a scenario needs them (see :class:`~sandbox.cluster.Cluster`)."""

    @property
    def members(self) -> Sequence[Party]: ...

    def is_alive(self, party: Party) -> bool: ...

    def kill(self, party: Party) -> None: ...

    def restart(self, party: Party) -> None: ...

    def tail(self, party: Party) -> str: ...

    def inquiries_owed(self, party: Party) -> int: ...


@dataclass
class Incident:
    """A member that stopped answering: on which day, in which part, and how it came back.

    ``killed``: by the sandbox, as it was asked to. ``inquiries_owed``: open inquiries that waited for it at that
    moment (-1: nobody looked).
    """

    party: str
    day: dt.date
    part: str
    reason: str
    recovered_seconds: float
    killed: bool = False
    inquiries_owed: int = -1

    def sentence(self) -> str:
        """For the report."""
        waiting = (
            f", with {self.inquiries_owed} open inquiries waiting for it," if self.inquiries_owed > 0 else ""
        )
        end = f"was killed by the sandbox{waiting}" if self.killed else f"died{waiting}"
        return (
            f"{self.party} {end} in the middle of {self.part} on {self.day}; it was back after"
            f" {self.recovered_seconds:.1f} s and caught up"
        )


@dataclass
class Played:
    """What a run did: per part the wall-clock seconds of each day, answers of the banks, and incidents."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, dict[str, list[dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    incidents: list[Incident] = field(default_factory=list)


class _Killing:
    """One kill under way, in a thread of its own, while the part that it interrupts is being asked for."""

    def __init__(self, processes: Processes, bank: Party, part: str) -> None:
        self.inquiries_owed = -1
        self._processes = processes
        self._bank = bank
        self._part = part
        self._thread = threading.Thread(target=self._run, name=f"kill-{bank.party}")
        self._thread.start()

    def wait(self) -> None:
        """Return when the member is dead."""
        self._thread.join()

    def _run(self) -> None:
        if self._part == "share":
            # The moment that hurts: others wait for this member's part of their sums.
            deadline = time.monotonic() + OPEN_INQUIRY_SECONDS
            while not self._processes.inquiries_owed(self._bank) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        else:
            time.sleep(KILL_AFTER_SECONDS)
        self._processes.kill(self._bank)
        self.inquiries_owed = self._processes.inquiries_owed(self._bank)


class Scenario:
    """Drives the banks' desks; ``announce`` is told of each incident."""

    def __init__(
        self, processes: Processes, *, kills: Iterable[Kill] = (), announce: Callable[[str], None]
    ) -> None:
        self._processes = processes
        self._kills = {(kill.party, kill.day, kill.part) for kill in kills}
        require_members(self._kills_parties(), [bank.party for bank in processes.members])
        self._announce = announce
        self.played = Played()

    def _kills_parties(self) -> set[str]:
        return {party for party, _, _ in self._kills}

    def play(
        self, first: dt.date, last: dt.date, mapping: StreamMapping, *, on_day: Callable[[dt.date], None]
    ) -> Played:
        """Play every day from ``first`` to ``last``, both included, in the zone of ``mapping``."""
        desks = {
            bank.party: BankDesk(bank.party, bank.url, bank.directory) for bank in self._processes.members
        }
        try:
            with ThreadPoolExecutor(len(desks)) as pool:
                for number in range((last - first).days + 1):
                    day = first + dt.timedelta(days=number)
                    for part, body in (
                        ("confirm", {"until_ms": day_start_ms(mapping, day)}),
                        ("share", {"day": (day - EPOCH_DAY).days}),
                        ("score", {"until_ms": day_start_ms(mapping, day + dt.timedelta(days=1))}),
                    ):
                        self._part(pool, desks, number + 1, day, part, body)
                    on_day(day)
        finally:
            for desk in desks.values():
                desk.close()
        return self.played

    def _part(
        self,
        pool: ThreadPoolExecutor,
        desks: dict[str, BankDesk],
        number: int,
        day: dt.date,
        part: str,
        body: dict[str, int],
    ) -> None:
        began = time.perf_counter()

        def one(bank: Party) -> None:
            planned = (bank.party, number, part) in self._kills
            killing = _Killing(self._processes, bank, part) if planned else None
            try:
                answer = desks[bank.party].post(f"replay/{part}", **body)
                reason = "it had just answered"
            except BankUnreachableError as error:
                answer, reason = None, str(error)
            if killing is not None:
                killing.wait()
            if killing is not None or answer is None:
                self._recover(bank, day, part, reason, killing)
                answer = desks[bank.party].post(f"replay/{part}", **body)
            self.played.answers[bank.party][part].append(answer)

        list(pool.map(one, self._processes.members))
        self.played.seconds[part].append(time.perf_counter() - began)

    def _recover(self, bank: Party, day: dt.date, part: str, reason: str, killing: _Killing | None) -> None:
        """Report a dead member by name and start it again; one that lives but does not answer is an error."""
        # A connection breaks a moment before the process is gone.
        deadline = time.monotonic() + DEATH_SECONDS
        while self._processes.is_alive(bank):
            if time.monotonic() > deadline:
                raise BankUnreachableError(f"{reason}\n{self._processes.tail(bank)}")
            time.sleep(POLL_SECONDS)
        self._announce(f"{bank.party} died in the middle of {part} on {day}: starting it again")
        began = time.perf_counter()
        self._processes.restart(bank)
        took = time.perf_counter() - began
        self._announce(f"{bank.party} is back after {took:.1f} s and catches up")
        self.played.incidents.append(
            Incident(
                party=bank.party,
                day=day,
                part=part,
                reason=reason,
                recovered_seconds=took,
                killed=killing is not None,
                inquiries_owed=-1 if killing is None else killing.inquiries_owed,
            )
        )


def require_members(named: Iterable[str], members: Sequence[str]) -> None:
    """Raise ``ValueError`` if a fault names a party that is no member of the run."""
    for party in sorted(set(named) - set(members)):
        raise ValueError(f"{party} is not a member of this sandbox; it has {', '.join(sorted(members))}")
