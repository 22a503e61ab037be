"""A follower against honest growth, rollback, forks, staleness and forged entries."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.merkle import MerkleTree, leaf_hash
from crypto.signing import SigningKey
from governance.log.follow import (
    ForkError,
    RollbackError,
    StaleCheckpointError,
    TrustedLog,
    UnprovenEntryError,
    UnprovenGrowthError,
    UntrustedCheckpointError,
)
from governance.log.notes import Checkpoint, sign_checkpoint, verifier_key
from governance.messages.log import CheckpointUpdate, LoggedEntry

KEY = SigningKey(b"\x07" * 32)
ORIGIN = "subrosa.example/follow"
START = TrustedLog.start(verifier_key(ORIGIN, KEY.verify_key))
LEAVES = [leaf_hash(b"%d" % index) for index in range(40)]
TREE = MerkleTree(LEAVES)
FORK = MerkleTree([*LEAVES[:5], leaf_hash(b"forked"), *LEAVES[6:]])


def update(
    since: int, size: int, *, time: int = 1000, tree: MerkleTree = TREE, key: SigningKey = KEY
) -> CheckpointUpdate:
    note = sign_checkpoint(Checkpoint(ORIGIN, size, tree.root(size), time), key)
    proof = tree.consistency_proof(since, size) if 0 < since < size else []
    return CheckpointUpdate(note=note, first_size=since, consistency=proof)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_honest_growth_is_followed(sizes: list[int]) -> None:
    state = START
    for step, size in enumerate(sorted(sizes)):
        time = 1000 + step
        state = state.advance(update(state.size, size, time=time), now=time, max_age=0)
        assert state.size == size
        assert TrustedLog.resume(state.verify_key, state.note) == state


def test_size_does_not_go_back_and_states_are_values() -> None:
    state = START.advance(update(0, 20), now=1000, max_age=10)
    with pytest.raises(RollbackError):
        state.advance(update(0, 19), now=1000, max_age=10)
    with pytest.raises(RollbackError):
        state.advance(update(20, 20, time=999), now=1000, max_age=10)
    assert state.size == 20
    assert START.size == 0


def test_forks_carry_both_notes() -> None:
    state = START.advance(update(0, 20), now=1000, max_age=10)
    for forked in (update(20, 20, tree=FORK), update(20, 30, tree=FORK)):
        with pytest.raises(ForkError) as caught:
            state.advance(forked, now=1000, max_age=10)
        assert caught.value.notes == (state.note, forked.note)


def test_growth_must_be_proven_from_what_is_held() -> None:
    state = START.advance(update(0, 20), now=1000, max_age=10)
    for since in (0, 19):
        with pytest.raises(UnprovenGrowthError, match="since 20"):
            state.advance(update(since, 30), now=1000, max_age=10)
    # The same size needs no proof, only a fresher time.
    assert state.advance(update(0, 20, time=1005), now=1005, max_age=1).checkpoint is not None


def test_freshness() -> None:
    with pytest.raises(StaleCheckpointError):
        START.advance(update(0, 5, time=1000), now=1011, max_age=10)
    with pytest.raises(StaleCheckpointError, match="future"):
        START.advance(update(0, 5, time=1100), now=1000, max_age=10)
    with pytest.raises(StaleCheckpointError, match="no checkpoint"):
        START.require_fresh(now=1000, max_age=10)
    state = START.advance(update(0, 5), now=1010, max_age=10)
    assert state.require_fresh(now=1010, max_age=10) == state.checkpoint
    with pytest.raises(StaleCheckpointError):
        state.require_fresh(now=1011, max_age=10)
    with pytest.raises(StaleCheckpointError):
        state.require_fresh(now=900, max_age=10)


def test_only_the_trusted_key_signs() -> None:
    with pytest.raises(UntrustedCheckpointError):
        START.advance(update(0, 5, key=SigningKey(b"\x08" * 32)), now=1000, max_age=10)
    for note in ("", "gossip", update(0, 5).note + "x"):
        with pytest.raises(UntrustedCheckpointError):
            START.advance(CheckpointUpdate(note=note, first_size=0, consistency=[]), now=1000, max_age=10)
        if note:
            with pytest.raises(UntrustedCheckpointError):
                TrustedLog.resume(START.verify_key, note)


def test_an_empty_log_has_the_empty_root() -> None:
    note = sign_checkpoint(Checkpoint(ORIGIN, 0, bytes(32), 1000), KEY)
    with pytest.raises(UntrustedCheckpointError, match="empty log"):
        START.advance(CheckpointUpdate(note=note, first_size=0, consistency=[]), now=1000, max_age=10)


def logged(sample: Any, index: int) -> LoggedEntry:
    salt, body = sample.leaves()[index]
    return LoggedEntry(index=index, salt=salt, body=body, inclusion=sample.tree().inclusion_proof(index))


def follow(sample: Any) -> tuple[TrustedLog, CheckpointUpdate]:
    current = CheckpointUpdate(note=sample.note(time=1000), first_size=0, consistency=[])
    return TrustedLog.start(sample.verifier).advance(current, now=1000, max_age=10), current


def test_entries_are_proven(sample_log: Any) -> None:
    state, _ = follow(sample_log)
    for index, entry in enumerate(sample_log.entries):
        assert state.verify_entry(logged(sample_log, index)) == entry


def test_forged_entries_are_refused(sample_log: Any) -> None:
    state, _ = follow(sample_log)
    good = logged(sample_log, 3)
    other = logged(sample_log, 4)
    forgeries = [
        LoggedEntry(index=4, salt=good.salt, body=good.body, inclusion=good.inclusion),
        LoggedEntry(index=3, salt=other.salt, body=good.body, inclusion=good.inclusion),
        LoggedEntry(index=3, salt=good.salt, body=other.body, inclusion=good.inclusion),
        LoggedEntry(index=3, salt=good.salt, body=good.body, inclusion=good.inclusion[:-1]),
        LoggedEntry(index=3, salt=b"", body=good.body, inclusion=good.inclusion),
        LoggedEntry(index=-1, salt=good.salt, body=good.body, inclusion=good.inclusion),
        LoggedEntry(index=3, salt=good.salt, body=good.body, inclusion=[b"", *good.inclusion[1:]]),
    ]
    for forged in forgeries:
        with pytest.raises(UnprovenEntryError):
            state.verify_entry(forged)
    with pytest.raises(UnprovenEntryError, match="no checkpoint"):
        TrustedLog.start(sample_log.verifier).verify_entry(good)
