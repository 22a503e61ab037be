"""The tree against a direct transcription of RFC 6962's recursive definitions, and proofs that must fail."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto.errors import InvalidEncodingError, InvalidProofError, OutOfRangeError
from crypto.merkle import (
    MerkleTree,
    leaf_hash,
    node_hash,
    root_from_inclusion,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [leaf_hash(index.to_bytes(4, "big")) for index in range(130)]


def split(count: int) -> int:
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def mth(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], complete: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


@given(st.integers(1, 130), st.data())
@settings(max_examples=60, deadline=None)
def test_roots_and_proofs_equal_the_definitions(size: int, data: st.DataObject) -> None:
    tree = MerkleTree(LEAVES)
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size))
    assert tree.root(size) == mth(LEAVES[:size])
    assert tree.inclusion_proof(index, size) == path(index, LEAVES[:size])
    assert tree.consistency_proof(first, size) == subproof(first, LEAVES[:size], True)
    verify_inclusion(LEAVES[index], index, size, tree.inclusion_proof(index, size), tree.root(size))
    verify_consistency(first, size, tree.consistency_proof(first, size), tree.root(first), tree.root(size))


@given(st.lists(st.integers(0, 17), max_size=8))
@settings(deadline=None)
def test_extending_in_any_steps_gives_the_same_tree(steps: list[int]) -> None:
    one_by_one, batched = MerkleTree(), MerkleTree()
    taken = 0
    for step in steps:
        batch = LEAVES[taken : taken + step]
        taken += len(batch)
        batched.extend(batch)
        for leaf in batch:
            one_by_one.append(leaf)
        assert batched.root() == one_by_one.root()
        assert batched.size == one_by_one.size == taken


@given(st.integers(2, 130), st.data())
@settings(max_examples=60, deadline=None)
def test_changed_proofs_are_refused(size: int, data: st.DataObject) -> None:
    tree = MerkleTree(LEAVES)
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size)
    place = data.draw(st.integers(0, len(proof) - 1))
    bit = data.draw(st.integers(0, 255))
    broken = (int.from_bytes(proof[place], "big") ^ (1 << bit)).to_bytes(32, "big")
    for wrong in (
        [*proof[:place], broken, *proof[place + 1 :]],
        proof[:-1],
        [*proof, bytes(32)],
        [*proof[:place], proof[place][:31], *proof[place + 1 :]],
    ):
        with pytest.raises(InvalidProofError):
            verify_inclusion(LEAVES[index], index, size, wrong, tree.root(size))
    first = data.draw(st.integers(1, size - 1))
    growth = tree.consistency_proof(first, size)
    for wrong in (growth[:-1], [*growth, bytes(32)], [bytes(32), *growth], [node[:31] for node in growth]):
        with pytest.raises(InvalidProofError):
            verify_consistency(first, size, wrong, tree.root(first), tree.root(size))
    with pytest.raises(InvalidProofError):
        verify_consistency(first, size, growth, tree.root(size), tree.root(size))


def test_a_rewritten_leaf_breaks_consistency() -> None:
    honest = MerkleTree(LEAVES[:40])
    rewritten = MerkleTree([*LEAVES[:7], leaf_hash(b"rewritten"), *LEAVES[8:40]])
    with pytest.raises(InvalidProofError):
        verify_consistency(20, 40, rewritten.consistency_proof(20, 40), honest.root(20), rewritten.root(40))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_hashes_of_another_length_are_refused(length: int) -> None:
    tree = MerkleTree(LEAVES[:5])
    with pytest.raises(InvalidEncodingError):
        tree.append(bytes(length))
    with pytest.raises(InvalidEncodingError):
        tree.extend([LEAVES[0], bytes(length)])
    assert tree.size == 5
    with pytest.raises(InvalidProofError):
        verify_inclusion(bytes(length), 0, 1, [], bytes(32))
    with pytest.raises(InvalidProofError):
        verify_inclusion(LEAVES[0], 0, 1, [], bytes(length))
    with pytest.raises(InvalidProofError):
        verify_consistency(1, 2, [LEAVES[1]], bytes(length), tree.root(2))


def test_sizes_that_say_nothing_are_refused() -> None:
    tree = MerkleTree(LEAVES[:5])
    for first, second in ((0, 5), (0, 0), (6, 5), (-1, 5), (1, 2**63)):
        with pytest.raises(InvalidProofError):
            verify_consistency(first, second, [], tree.root(), tree.root())
    for index, size in ((0, 0), (5, 5), (-1, 5), (0, 2**63)):
        with pytest.raises(InvalidProofError):
            root_from_inclusion(LEAVES[0], index, size, [])
    for call in (
        lambda: tree.root(6),
        lambda: tree.leaf(5),
        lambda: tree.inclusion_proof(5),
        lambda: tree.inclusion_proof(-1),
        lambda: tree.consistency_proof(0),
        lambda: tree.consistency_proof(4, 6),
    ):
        with pytest.raises(OutOfRangeError):
            call()
