"""Speed of the log's own work, without storage: the bars are 50,000 entries/s batched, 3,000/s one by one, and an
audit of 100,000 entries in 5 s (run with ``--benchmark-enable``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

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


def append_batch(tree: MerkleTree, entries: list[DeltaEntry]) -> str:
    tree.extend([entry_leaf_hash(SALT, encode_entry(entry)) for entry in entries])
    return sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root(), 1_790_000_000), KEY)


def append_singly(tree: MerkleTree, entries: list[DeltaEntry]) -> None:
    for entry in entries:
        append_batch(tree, [entry])


@pytest.mark.parametrize(("mode", "count", "bar"), [("batched", 20_000, 50_000), ("singly", 3_000, 3_000)])
def test_append(benchmark: Any, mode: str, count: int, bar: int) -> None:
    entries = [delta(number) for number in range(1, 51 if benchmark.disabled else count + 1)]
    run = append_batch if mode == "batched" else append_singly

    def append() -> MerkleTree:
        tree = MerkleTree()
        run(tree, entries)
        return tree

    assert benchmark.pedantic(append, rounds=5).size == len(entries)
    if not benchmark.disabled:
        per_second = len(entries) / benchmark.stats.stats.min
        benchmark.extra_info["entries_per_second"] = per_second
        assert per_second >= bar


def test_audit(benchmark: Any, tmp_path: Path) -> None:
    count = 200 if benchmark.disabled else 100_000
    bodies = [encode_entry(first_entry()), *(encode_entry(delta(number)) for number in range(1, count))]
    tree = MerkleTree(entry_leaf_hash(SALT, body) for body in bodies)
    note = sign_checkpoint(Checkpoint(ORIGIN, tree.size, tree.root(), 1_790_000_000), KEY)
    key = verifier_key(ORIGIN, KEY.verify_key)
    entries = ((SALT, body) for body in bodies)
    write_export(tmp_path / "export", note=note, origin=ORIGIN, verify_key=key, entries=entries)
    report = benchmark.pedantic(verify_export, args=(tmp_path / "export", key), rounds=3)
    assert report.size == count
    assert benchmark.disabled or benchmark.stats.stats.min < 5
