"""Encrypted aggregation against bare TenSEAL on the same vector: the bar is 1.5 (run with ``--benchmark-enable``).

Ours counts, for four members: masks, checks, encryption, serialisation, and on the requester's side transport to
the child process, parsing, adding, decrypting. Bare is TenSEAL's own encrypt, add, decrypt with the parameters it
chooses by default, nothing serialised. The ratio is one of processor time, the best of five each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import tenseal

from crypto.he.contexts import RequesterKey, load_public_context
from crypto.he.contributions import encrypt_vector
from crypto.he.parameters import RING, P
from crypto.masks import MaskSecret, mask_vector
from member_node.compute.decryption import DecryptionChild

MEMBERS = ["bank-a", "bank-b", "bank-c", "bank-d"]
BAR = 1.5


def bare(rows: list[list[int]]) -> Callable[[], list[int]]:
    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, RING, P, n_threads=1)

    def run() -> list[int]:
        result: list[int] = []
        for first in range(0, len(rows[0]), RING):
            encrypted = [tenseal.bfv_vector(context, row[first : first + RING]) for row in rows]
            total = encrypted[0]
            for other in encrypted[1:]:
                total = total + other
            result += total.decrypt()
        return result

    return run


def ours(rows: dict[str, np.ndarray], child: DecryptionChild) -> Callable[[], np.ndarray]:
    key = RequesterKey.generate()
    public = load_public_context(key.public_context())
    stored = key.to_bytes()
    secrets = {name: MaskSecret(hashlib.sha256(name.encode()).digest()) for name in rows}
    keys = {name: secret.public_key for name, secret in secrets.items()}
    cells = len(next(iter(rows.values())))

    def contribute(name: str) -> list[bytes]:
        peers = {peer: public_key for peer, public_key in keys.items() if peer != name}
        masked = mask_vector(secrets[name], name, peers, binding=b"bench", length=cells, modulus=P)
        masked += rows[name]
        masked %= P
        return encrypt_vector(public, masked)

    def run() -> np.ndarray:
        contributions = {name: contribute(name) for name in rows}
        return child.decrypt_sum(stored, contributions, cells, bound=4 * 10_000)

    return run


def processor_seconds(child: DecryptionChild) -> float:
    """Processor time so far of this process and the child: waiting for other programs is not counted."""
    ours = time.process_time()
    if child.process_id is None:
        return ours
    spent = psutil.Process(child.process_id).cpu_times()
    return ours + float(spent.user + spent.system)


def cost(run: Callable[[], object], child: DecryptionChild, rounds: int) -> float:
    start = processor_seconds(child)
    for _ in range(rounds):
        run()
    return processor_seconds(child) - start


@pytest.mark.parametrize("cells", [10_000, 100_000])
def test_aggregation(benchmark: Any, cells: int) -> None:
    chance = np.random.default_rng(7)
    rows = {name: chance.integers(0, 10_000, cells) for name in MEMBERS}
    with DecryptionChild() as child:
        run = ours(rows, child)
        expected = sum(rows.values())
        assert (benchmark.pedantic(run, rounds=3) == expected).all()
        peer = bare([row.tolist() for row in rows.values()])
        assert peer() == expected.tolist()
        if benchmark.disabled:
            return
        # Alternate, so that a noisy neighbour disturbs both alike; the child's time has a resolution of 10 ms.
        rounds = 300_000 // cells
        pairs = [(cost(run, child, rounds), cost(peer, child, rounds)) for _ in range(5)]
        ratio = min(mine for mine, _ in pairs) / min(bare for _, bare in pairs)
        benchmark.extra_info["ratio_to_bare_tenseal"] = ratio
        assert ratio <= BAR
