"""A joint statistic of four members: masks, encryption, child process, addition, decryption, against bare TenSEAL.

Bare is TenSEAL's own encrypt, add and decrypt on the same vectors with nothing serialised, checked or masked.
"""

from __future__ import annotations

import secrets

import numpy as np
import tenseal

from crypto.he.contexts import RequesterKey, load_public_context
from crypto.he.contributions import encrypt_vector
from crypto.he.parameters import RING, P
from crypto.masks import generate_mask_key, mask_vector
from member_node.compute.decryption import DecryptionChild
from sandbox.bench.result import Bar, BenchResult, repeat

MEMBERS = ("bank-a", "bank-b", "bank-c", "bank-d")
LARGEST = 10_000


def bench_aggregate(size: int, times: int) -> BenchResult:
    """``size`` cells; every member's part and the requester's, one after the other, wall-clock time."""
    random = np.random.default_rng(1)
    rows = {name: random.integers(0, LARGEST, size) for name in MEMBERS}
    own = {name: generate_mask_key(secrets.token_bytes) for name in MEMBERS}
    public = {name: key.public_key for name, key in own.items()}
    requester = RequesterKey.generate()
    context = load_public_context(requester.public_context())
    stored = requester.to_bytes()

    def contribute(name: str) -> list[bytes]:
        peers = {peer: key for peer, key in public.items() if peer != name}
        masks = mask_vector(own[name], name, peers, binding=b"bench", length=size, modulus=P)
        return encrypt_vector(context, (rows[name] + masks) % P)

    with DecryptionChild() as child:
        bound = len(MEMBERS) * LARGEST

        def whole() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return child.decrypt_sum(stored, {name: contribute(name) for name in MEMBERS}, size, bound=bound)

        if not np.array_equal(whole(), sum(rows.values())):
            raise RuntimeError("the aggregate is not the sum: this build must not be used")
        ours = repeat(whole, items=size, times=times)
    bare_context = tenseal.context(tenseal.SCHEME_TYPE.BFV, RING, P, n_threads=1)
    plain = [row.tolist() for row in rows.values()]

    def bare() -> None:
        for first in range(0, size, RING):
            encrypted = [tenseal.bfv_vector(bare_context, row[first : first + RING]) for row in plain]
            total = encrypted[0]
            for other in encrypted[1:]:
                total = total + other
            total.decrypt()

    limit = repeat(bare, items=size, times=times)
    return BenchResult(
        name="aggregate",
        size=size,
        timing=ours,
        limits={"bare TenSEAL": limit.per_second},
        bars=(Bar("time / bare TenSEAL's", limit.per_second / ours.per_second, 1.5, at_most=True),),
        notes={"peers": "bare TenSEAL is the limit", "network": "not included"},
    )
