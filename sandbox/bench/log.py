"""The governance log: entries encoded, salted, hashed and appended, with a signed checkpoint a batch or an entry."""

from __future__ import annotations

import hashlib
import secrets

from crypto.merkle import MerkleTree
from crypto.signing import SigningKey
from governance.log.entries import RefusalEntry, encode_entry
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, sign_checkpoint
from sandbox.bench.result import Bar, BenchResult, repeat

ORIGIN = "bench.subrosa.example/log"
ONE_BY_ONE = 500


def _entry(number: int) -> bytes:
    return encode_entry(
        RefusalEntry(
            at=1_700_000_000 + number,
            parties=["bank-a"],
            party="bank-a",
            action="lookup",
            resource="terminals",
            purpose="fraud-prevention",
            reason="the daily budget is spent",
            rule="evaluation-budget",
            policy_epoch=1,
            since=1_700_000_000 + number,
            requests=1,
        )
    )


def bench_log(size: int, times: int) -> BenchResult:
    """Append ``size`` entries in one batch with one checkpoint, and a few hundred with one checkpoint each."""
    key = SigningKey(secrets.token_bytes(32))

    def signed(tree: MerkleTree) -> str:
        return sign_checkpoint(
            Checkpoint(origin=ORIGIN, size=tree.size, root=tree.root(), time=1_700_000_000), key
        )

    def batch() -> str:
        tree = MerkleTree()
        for number in range(size):
            tree.append(entry_leaf_hash(secrets.token_bytes(32), _entry(number)))
        return signed(tree)

    def one_by_one() -> None:
        tree = MerkleTree()
        for number in range(ONE_BY_ONE):
            tree.append(entry_leaf_hash(secrets.token_bytes(32), _entry(number)))
            signed(tree)

    whole = repeat(batch, items=size, times=times)
    single = repeat(one_by_one, items=ONE_BY_ONE, times=times)
    body = _entry(0)
    hashing = repeat(
        lambda: [hashlib.sha256(body).digest() for _ in range(3 * size)], items=size, times=times
    )
    return BenchResult(
        name="log",
        size=size,
        timing=whole,
        limits={"three SHA-256 an entry": hashing.per_second},
        bars=(
            Bar("entries a second, batched", whole.per_second, 50_000),
            Bar("entries a second, a signed checkpoint each", single.per_second, 3_000),
        ),
        notes={"storage": "in memory; the coordinator's database is measured by its own tests"},
    )
