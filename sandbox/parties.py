"""The parties of a sandbox: their ids, folders and loopback ports."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
MAX_MEMBERS = 12


@dataclass(frozen=True)
class Party:
    """One process of the sandbox: ``directory`` holds its data, ``log`` what it printed."""

    party: str
    name: str
    directory: Path
    log: Path
    port: int

    @property
    def url(self) -> str:
        """Where the process listens."""
        return f"http://{HOST}:{self.port}"


def bank_id(position: int) -> str:
    """The party id of the bank at ``position`` (from 0): ``bank-a``, ``bank-b``, ..."""
    return f"bank-{chr(ord('a') + position)}"


def free_ports(count: int) -> list[int]:
    """``count`` loopback ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def lay_out(out: Path, members: int) -> tuple[Party, list[Party]]:
    """Name the coordinator and ``members`` banks below ``out`` and give each a port."""
    if not 1 <= members <= MAX_MEMBERS:
        raise ValueError(f"a sandbox has 1 to {MAX_MEMBERS} members, not {members}")
    ports = free_ports(members + 1)
    ids = ["coordinator"] + [bank_id(i) for i in range(members)]
    parties = [
        Party(
            party=party,
            name=party.replace("-", " ").title(),
            directory=out / "parties" / party,
            log=out / "logs" / f"{party}.log",
            port=port,
        )
        for party, port in zip(ids, ports, strict=True)
    ]
    return parties[0], parties[1:]
