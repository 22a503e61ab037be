"""A consortium of real processes on loopback: set up, started, watched, killed, restarted and stopped."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import coordinator.setup as coordinator_setup
import member_node.setup as member_setup
from governance.indicators import KIND_GROUPS
from governance.messages.roll import Directory, PartyCard
from governance.policy.default import default_bundle
from sandbox.coordinator_view import inquiries_owed
from sandbox.dealer import deal_keys
from sandbox.parties import HOST, Party, lay_out

ORIGIN = "sandbox.subrosa.example/log"
EPOCH = 1
START_SECONDS = 90.0
STOP_SECONDS = 20.0


class ProcessDiedError(RuntimeError):
    """A process of the sandbox ended when it should serve; the text names the party and ends with its last output."""


class Cluster:
    """One coordinator and its member nodes, each a process with its own data folder."""

    def __init__(self, out: Path, members: int) -> None:
        self.out = out
        self.coordinator, self.members = lay_out(out, members)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def set_up(self, directory_file: Path, dataset: str, *, capture: Path | None = None) -> None:
        """Create all data folders with embedded defaults; deals the OPRF key shares (see :mod:`sandbox.dealer`)."""
        holders = range(1, len(self.members) + 1)
        chair = self.coordinator
        coordinator_card, log_key = coordinator_setup.init_coordinator(
            chair.directory, party=chair.party, host=HOST, port=chair.port, origin=ORIGIN
        )
        public, private = deal_keys(
            sorted(set(KIND_GROUPS.values())), len(self.members), epoch=EPOCH, random=secrets.token_bytes
        )
        directory: Directory | None = None
        cards: list[PartyCard] = []
        for bank, index, shares in zip(self.members, holders, private, strict=True):
            card = member_setup.init_member(
                bank.directory,
                party=bank.party,
                name=bank.name,
                host=HOST,
                port=bank.port,
                coordinator_url=chair.url,
                capture_directory=None if capture is None else capture / bank.party,
            )
            member_setup.trust(bank.directory, coordinator_card, log_key, ORIGIN)
            member_setup.install_key_shares(bank.directory, shares)
            directory = member_setup.install_directory(bank.directory, directory_file, dataset=dataset)
            coordinator_setup.admit(chair.directory, card, index)
            cards.append(card)
        for bank in self.members:
            for card in cards:
                if card.party != bank.party:
                    member_setup.pin_party(bank.directory, card)
        coordinator_setup.install_group_keys(chair.directory, public)
        if directory is not None:
            coordinator_setup.install_directory(chair.directory, directory)
        coordinator_setup.install_policy(chair.directory, default_bundle())

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """Start everything, and stop everything that was started, whatever happens between."""
        try:
            self.start(self.coordinator, "coordinator")
            self.wait_until_ready(self.coordinator)
            for bank in self.members:
                self.start(bank, "member_node")
            for bank in self.members:
                self.wait_until_ready(bank)
            yield self
        finally:
            self.stop_all()

    def start(self, party: Party, module: str) -> None:
        """Start ``python -m module`` on the party's folder; its output goes to the party's log file."""
        party.log.parent.mkdir(parents=True, exist_ok=True)
        with party.log.open("ab") as log:
            self._processes[party.party] = subprocess.Popen(
                [sys.executable, "-m", module, "--directory", str(party.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "1",
                    "POLARS_MAX_THREADS": "2",
                },
            )

    def wait_until_ready(self, party: Party) -> None:
        """Poll the party's ``/ready`` until it answers, or raise :class:`ProcessDiedError`."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive(party)
            try:
                if httpx.get(f"{party.url}/ready", timeout=5.0, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise ProcessDiedError(
            f"{party.party} did not become ready in {START_SECONDS:.0f} s.\n{self.tail(party)}"
        )

    def check_alive(self, party: Party) -> None:
        """Raise :class:`ProcessDiedError` if the party's process has ended."""
        code = self._processes[party.party].poll()
        if code is not None:
            raise ProcessDiedError(f"{party.party} ended with code {code}.\n{self.tail(party)}")

    def is_alive(self, party: Party) -> bool:
        """Whether the party's process runs."""
        return self._processes[party.party].poll() is None

    def inquiries_owed(self, party: Party) -> int:
        """How many open inquiries wait for the member's contribution."""
        return inquiries_owed(self.coordinator.directory, party.party)

    def kill(self, party: Party) -> None:
        """End the party's process as a power cut would (SIGKILL)."""
        process = self._processes[party.party]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def restart(self, party: Party) -> None:
        """Start a member node again on its folder and wait until it serves."""
        self.start(party, "member_node")
        self.wait_until_ready(party)

    def stop_all(self) -> None:
        """Ask every process to end, members first; insist after :data:`STOP_SECONDS`."""
        order = [bank.party for bank in self.members] + [self.coordinator.party]
        running = [self._processes[party] for party in order if party in self._processes]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tail(self, party: Party, lines: int = 15) -> str:
        """The last lines of what the party printed."""
        if not party.log.exists():
            return "(it printed nothing)"
        return "\n".join(party.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
