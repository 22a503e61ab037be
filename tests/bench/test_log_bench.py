"""Speed of the log's own work, without storage: the bars are 50,000 entries/s batched, 3,000/s one by one, and an
audit of 100,000 entries in 5 s (run with ``--benchmark-enable``)."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from crypto.merkle import MerkleTree
from crypto.signing import SigningKey
from governance.log.audit import verify_export
from governance.log.entries import DeltaEntry, KnownParty, MembershipEntry, encode_entry
from governance.log.export import write_export
from governance.log.leaves import entry_leaf_hash
from governance.log.notes import Checkpoint, sign_checkpoint, verifier_key

ORIGIN = "subrosa.example/bench"
KEY = SigningKey(b"\x05" * 32)
BANKS = ["bank-a", "bank-b", "bank-c", "bank-d"]
SALT = bytes(32)


def delta(number: int) -> DeltaEntry:
    return DeltaEntry(
        at=1_790_000_000,
        parties=BANKS,
        number=number,
        digest=hashlib.sha256(number.to_bytes(8, "big")).hexdigest(),
        contributor=BANKS[number % 4],
        purpose="indicator-sharing",
        labels=number % 50,
        kinds=["terminal"],
    )


def first_entry() -> MembershipEntry:
    known = [
        KnownParty(
            party=bank, role="member", verify_key=SigningKey(bank.encode() * 5 + b"__").verify_key.hex()
        )
        for bank in BANKS
    ]
    return MembershipEntry(at=1_790_000_000, parties=BANKS, version=1, epoch=1, digest="00" * 32, roll=known)


def append_batch(tree: MerkleTree, count: int) -> str:
    tree.extend([entry_leaf_hash(SALT, encode_entry(delta(number))) for number in range(1, count + 1)])
    return sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root(), 1_790_000_000), KEY)


def append_singly(tree: MerkleTree, count: int) -> None:
    for number in range(1, count + 1):
        tree.append(entry_leaf_hash(SALT, encode_entry(delta(number))))
        sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root(), 1_790_000_000), KEY)


def rate(count: int, seconds: float) -> float:
    return count / seconds


@pytest.mark.parametrize(("mode", "count", "bar"), [("batched", 20_000, 50_000), ("singly", 3_000, 3_000)])
def test_append(benchmark: pytest.FixtureRequest, mode: str, count: int, bar: int) -> None:
    count = 50 if benchmark.disabled else count  # type: ignore[attr-defined]
    run = append_batch if mode == "batched" else append_singly
    start = time.perf_counter()
    tree = MerkleTree()
    run(tree, count)
    per_second = rate(count, time.perf_counter() - start)
    assert tree.size == count
    if benchmark.disabled:  # type: ignore[attr-defined]
        return
    benchmark.extra_info["entries_per_second"] = per_second  # type: ignore[attr-defined]
    benchmark(lambda: run(MerkleTree(), count))  # type: ignore[operator]
    assert per_second >= bar


def test_audit(benchmark: pytest.FixtureRequest, tmp_path: Path) -> None:
    disabled = benchmark.disabled  # type: ignore[attr-defined]
    count = 200 if disabled else 100_000
    bodies = [encode_entry(first_entry()), *(encode_entry(delta(number)) for number in range(1, count))]
    tree = MerkleTree(entry_leaf_hash(SALT, body) for body in bodies)
    note = sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root(), 1_790_000_000), KEY)
    key = verifier_key(ORIGIN, KEY.verify_key)
    entries = ((SALT, body) for body in bodies)
    write_export(tmp_path / "export", note=note, origin=ORIGIN, verify_key=key, entries=entries)
    start = time.perf_counter()
    report = verify_export(tmp_path / "export", key)
    seconds = time.perf_counter() - start
    assert report.size == count
    if disabled:
        return
    benchmark.extra_info["audit_seconds"] = seconds  # type: ignore[attr-defined]
    benchmark.pedantic(verify_export, args=(tmp_path / "export", key), rounds=2)  # type: ignore[attr-defined]
    assert seconds < 5
