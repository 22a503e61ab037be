"""A whole consortium in one process: the real applications on loopback ports, each served by a thread."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import coordinator.setup as coordinator_setup
import member_node.setup as member_setup
from coordinator.app import create_app as create_coordinator
from crypto.threshold import deal, least_threshold
from governance.indicators import ALL_KIND_GROUPS
from governance.messages.roll import GroupKey, PublicShare
from governance.policy.default import default_bundle
from member_node.app import build_app
from member_node.client.desk import BankDesk
from member_node.client.ports import NotMaturedError
from member_node.node import MemberNode
from member_node.settings import load_settings

HOST = "127.0.0.1"
ORIGIN = "test.subrosa.example/log"
TERMINALS = [f"TERM{number:05d}" for number in range(60)]


class FixedStatistic:
    """A bank's counts as a test chooses them; days after ``matured`` are not complete."""

    def __init__(self, seed: int, cells: int, matured: int = 10**6) -> None:
        self.seed = seed
        self.cells = cells
        self.matured = matured
        self.asked: list[tuple[int, int]] = []

    def counts(self, first_day: int, last_day: int) -> np.ndarray:
        if last_day > self.matured:
            raise NotMaturedError(self.matured)
        self.asked.append((first_day, last_day))
        days = [
            np.random.default_rng([self.seed, day]).integers(0, 4, self.cells)
            for day in range(first_day, last_day + 1)
        ]
        return np.array(days, dtype=np.int64)


class Served:
    """One application served by a thread."""

    def __init__(self, app: Any, port: int) -> None:
        config = uvicorn.Config(app, host=HOST, port=port, log_level="error", access_log=False, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the server did not start"
            assert self._thread.is_alive(), "the server ended"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"


class Consortium:
    """Coordinator and members with their data below ``path``."""

    def __init__(self, path: Path, members: int, *, capture: bool = False) -> None:
        self.path = path
        self.names = [f"bank-{chr(ord('a') + number)}" for number in range(members)]
        self.ports = dict(zip([*self.names, "coordinator"], _free_ports(members + 1), strict=True))
        self.nodes: dict[str, MemberNode] = {}
        self.statistics: dict[str, FixedStatistic] = {}
        self._served: dict[str, Served] = {}
        self._desks: dict[str, BankDesk] = {}
        self._set_up(capture)

    def _set_up(self, capture: bool) -> None:
        directory_file = self.path / "public.txt"
        directory_file.write_text("".join(f"{each}\n" for each in TERMINALS))
        chair = self.path / "coordinator"
        anchors = coordinator_setup.init_coordinator(chair, port=self.ports["coordinator"], origin=ORIGIN)
        public, dealt = [], []
        for kind_group in ALL_KIND_GROUPS:
            keys, shares = deal(
                epoch=1,
                kind_group=kind_group,
                threshold=least_threshold(len(self.names)),
                holders=len(self.names),
                random=secrets.token_bytes,
            )
            dealt.append(shares)
            public.append(
                GroupKey(
                    epoch=1,
                    kind_group=kind_group,
                    generation=keys.generation,
                    threshold=keys.threshold,
                    public_key=keys.public_key,
                    public_shares=[
                        PublicShare(share_index=i, element=e) for i, e in sorted(keys.public_shares.items())
                    ],
                )
            )
        cards = []
        for number, name in enumerate(self.names):
            home = self.path / name
            card = member_setup.init_member(
                home,
                party=name,
                name=name.title(),
                host=HOST,
                port=self.ports[name],
                coordinator_url=f"http://{HOST}:{self.ports['coordinator']}",
                capture_directory=self.path / "capture" / name if capture else None,
            )
            member_setup.trust(home, anchors.card, anchors.log_verifier_key, ORIGIN)
            member_setup.install_key_shares(home, [shares[number] for shares in dealt])
            directory = member_setup.install_directory(home, directory_file)
            coordinator_setup.admit(chair, card, number + 1)
            cards.append(card)
        for name in self.names:
            for card in cards:
                if card.party != name:
                    member_setup.pin_party(self.path / name, card)
        coordinator_setup.install_group_keys(chair, public)
        coordinator_setup.install_directory(chair, directory)
        coordinator_setup.install_policy(chair, default_bundle())

    def start(self) -> None:
        """Serve everybody, and wait until every member is ready."""
        app = create_coordinator(self.path / "coordinator")
        self._served["coordinator"] = Served(app, self.ports["coordinator"])
        for name in self.names:
            self.start_member(name)

    def start_member(self, name: str) -> None:
        node = MemberNode(load_settings(self.path / name))
        statistic = self.statistics.setdefault(name, FixedStatistic(self.names.index(name), len(TERMINALS)))
        app = build_app(node)
        node.local_statistic = statistic
        self.nodes[name] = node
        self._served[name] = Served(app, self.ports[name])
        deadline = time.monotonic() + 20
        while not node.is_ready():
            assert time.monotonic() < deadline, node.status()["threads"]
            time.sleep(0.02)

    def stop_member(self, name: str) -> None:
        self._served.pop(name).stop()

    def stop(self) -> None:
        for desk in self._desks.values():
            desk.close()
        for name in [*self.names, "coordinator"]:
            if name in self._served:
                self._served.pop(name).stop()

    def desk(self, name: str) -> BankDesk:
        """The bank-internal API of a member; closed with the consortium."""
        if name not in self._desks:
            self._desks[name] = BankDesk(
                name, f"http://{HOST}:{self.ports[name]}", self.path / name, timeout=60
            )
        return self._desks[name]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def served_consortium(path: Path, members: int, *, capture: bool = False) -> Iterator[Consortium]:
    consortium = Consortium(path, members, capture=capture)
    try:
        consortium.start()
        yield consortium
    finally:
        consortium.stop()


@pytest.fixture(scope="module")
def three_banks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A consortium of three, shared by the tests of one module; every byte is captured."""
    with served_consortium(tmp_path_factory.mktemp("three"), 3, capture=True) as consortium:
        yield consortium
