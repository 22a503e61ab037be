"""Private lookup against the bare libsodium operations it is made of (DESIGN 8).

``pytest tests/bench/test_lookup_bench.py --benchmark-enable`` measures and holds the bars; without the option each case
runs once and only its results are checked. ``extra_info`` carries items/s, the limit and the ratio.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import rbcl
from pytest_benchmark.fixture import BenchmarkFixture

from crypto import threshold
from crypto.errors import InvalidShareError
from crypto.threshold import KeyShare, PendingBatch, PublicKeySet, ShareEvaluation

BATCH = 1024
THRESHOLD, HOLDERS = 3, 4


@dataclass(frozen=True)
class Prepared:
    keys: PublicKeySet
    shares: list[KeyShare]
    inputs: list[bytes]
    pending: PendingBatch
    blinded: tuple[bytes, ...]
    answers: list[ShareEvaluation]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    keys, shares = threshold.deal(
        epoch=1, kind_group="accounts", threshold=THRESHOLD, holders=HOLDERS, random=secrets.token_bytes
    )
    keys.verify()
    inputs = [f"account-{number}".encode() for number in range(BATCH)]
    pending, blinded = threshold.blind(inputs, secrets.token_bytes)
    answers = [threshold.evaluate_share(share, blinded, secrets.token_bytes) for share in shares[:THRESHOLD]]
    return Prepared(keys, shares, inputs, pending, blinded, answers)


def _best(function: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of the fastest of a few rounds: noise only adds."""
    durations = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return min(durations)


def _multiplications(prepared: Prepared) -> None:
    secret = prepared.shares[0].secret
    for element in prepared.blinded:
        rbcl.crypto_scalarmult_ristretto255(secret, element)


def _base_multiplications(prepared: Prepared) -> None:
    secret = prepared.shares[0].secret
    for _ in prepared.blinded:
        rbcl.crypto_scalarmult_ristretto255_base(secret)


def _hashes_to_group(prepared: Prepared) -> None:
    uniform = secrets.token_bytes(64)
    for _ in prepared.blinded:
        rbcl.crypto_core_ristretto255_from_hash(uniform)


def _record(benchmark: BenchmarkFixture, limit_seconds: float, items: int = BATCH) -> float | None:
    """Store items/s and the share of the limit reached; None when benchmarks are disabled."""
    if benchmark.stats is None:
        return None
    seconds = float(benchmark.stats.stats.min)
    benchmark.extra_info.update(
        per_second=round(items / seconds),
        limit_per_second=round(items / limit_seconds),
        ratio=round(limit_seconds / seconds, 3),
    )
    return limit_seconds / seconds


def test_evaluate_with_batch_proof(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    limit = _best(lambda: _multiplications(prepared))
    answer = benchmark(threshold.evaluate_share, prepared.shares[0], prepared.blinded, secrets.token_bytes)
    threshold.verify_evaluation(prepared.keys, prepared.blinded, answer)
    ratio = _record(benchmark, limit)
    assert ratio is None or ratio >= 0.40, (
        f"evaluation reached {ratio:.0%} of bare multiplications, the bar is 40 %"
    )


def test_blind(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    limit = _best(lambda: _multiplications(prepared)) + _best(lambda: _hashes_to_group(prepared))
    pending, blinded = benchmark(threshold.blind, prepared.inputs, secrets.token_bytes)
    assert len(pending) == len(set(blinded)) == BATCH
    _record(benchmark, limit)


def test_verify_one_holders_answer(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    limit = 2 * _best(lambda: _multiplications(prepared))
    benchmark(threshold.verify_evaluation, prepared.keys, prepared.blinded, prepared.answers[0])
    _record(benchmark, limit)
    with pytest.raises(InvalidShareError):
        threshold.verify_evaluation(prepared.keys, prepared.blinded[::-1], prepared.answers[0])


def test_finalize(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    limit = THRESHOLD * _best(lambda: _multiplications(prepared))
    outputs = benchmark(
        threshold.finalize, prepared.keys, prepared.pending, prepared.blinded, prepared.answers
    )
    assert len(set(outputs)) == BATCH
    _record(benchmark, limit)


def test_tags_and_label_keys(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    outputs = threshold.finalize(prepared.keys, prepared.pending, prepared.blinded, prepared.answers)

    def derive() -> list[tuple[bytes, bytes]]:
        return [(threshold.derive_tag(output), threshold.derive_label_key(output)) for output in outputs]

    assert len(set(benchmark(derive))) == BATCH


def test_cold_lookup(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    """All work of a cold lookup on one core: the caller's and that of t key holders one after the other.

    Its group operations an item, done one by one: one hash to the group and 1 (blind) + 2t (evaluate, prove) +
    2t (verify) + t (combine, unblind) multiplications.
    """

    def lookup() -> list[bytes]:
        pending, blinded = threshold.blind(prepared.inputs, secrets.token_bytes)
        answers = []
        for share in prepared.shares[:THRESHOLD]:
            answer = threshold.evaluate_share(share, blinded, secrets.token_bytes)
            threshold.verify_evaluation(prepared.keys, blinded, answer)
            answers.append(answer)
        return [
            threshold.derive_tag(output)
            for output in threshold.finalize(prepared.keys, pending, blinded, answers)
        ]

    limit = (1 + 5 * THRESHOLD) * _best(lambda: _multiplications(prepared))
    limit += _best(lambda: _hashes_to_group(prepared))
    assert len(set(benchmark(lookup))) == BATCH
    ratio = _record(benchmark, limit)
    assert ratio is None or 1 / ratio <= 2.5, f"a cold lookup took {1 / ratio:.2f} times its group operations"


def test_one_cold_lookup(benchmark: BenchmarkFixture, prepared: Prepared) -> None:
    """A batch of one, where the proof's fixed operations show: 1 + 4t + 5t + 1 multiplications, 3t of the base."""

    def lookup() -> bytes:
        pending, blinded = threshold.blind(prepared.inputs[:1], secrets.token_bytes)
        answers = []
        for share in prepared.shares[:THRESHOLD]:
            answer = threshold.evaluate_share(share, blinded, secrets.token_bytes)
            threshold.verify_evaluation(prepared.keys, blinded, answer)
            answers.append(answer)
        return threshold.derive_tag(threshold.finalize(prepared.keys, pending, blinded, answers)[0])

    tag = benchmark(lookup)
    outputs = threshold.finalize(prepared.keys, prepared.pending, prepared.blinded, prepared.answers)
    assert tag == threshold.derive_tag(outputs[0])
    limit = (2 + 9 * THRESHOLD) * _best(lambda: _multiplications(prepared)) / BATCH
    limit += 3 * THRESHOLD * _best(lambda: _base_multiplications(prepared)) / BATCH
    limit += _best(lambda: _hashes_to_group(prepared)) / BATCH
    ratio = _record(benchmark, limit, items=1)
    assert ratio is None or 1 / ratio <= 2.5, f"one lookup took {1 / ratio:.2f} times its group operations"
