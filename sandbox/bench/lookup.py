"""Private lookup: one caller and t of n holders in one process, against the bare group operations it needs."""

from __future__ import annotations

import secrets

from crypto import group
from crypto.threshold import ShareEvaluation, blind, deal, evaluate_share, finalize, verify_evaluation
from sandbox.bench.result import Bar, BenchResult, repeat

HOLDERS, THRESHOLD = 4, 3


def bench_lookup(size: int, times: int) -> BenchResult:
    """A cold lookup of ``size`` values: blind, ``t`` evaluations with proofs, verification, combination."""
    random = secrets.token_bytes
    keys, shares = deal(epoch=1, kind_group="terminals", threshold=THRESHOLD, holders=HOLDERS, random=random)
    inputs = [b"terminal-%d" % number for number in range(size)]

    def cold() -> list[bytes]:
        pending, blinded = blind(inputs, random)
        answers: list[ShareEvaluation] = []
        for share in shares[:THRESHOLD]:
            answer = evaluate_share(share, blinded, random)
            verify_evaluation(keys, blinded, answer)
            answers.append(answer)
        return finalize(keys, pending, blinded, answers)

    elements = [group.multiply_base(group.random_scalar(random)) for _ in range(size)]
    scalar = group.random_scalar(random)
    whole = repeat(cold, items=size, times=times)
    multiplication = repeat(lambda: group.multiply_each(scalar, elements), items=size, times=times)
    hashing = repeat(
        lambda: [group.hash_to_element(b"%064d" % number) for number in range(size)], items=size, times=times
    )
    evaluation = repeat(lambda: evaluate_share(shares[0], elements, random), items=size, times=times)
    # Blinding, per holder evaluation + proof + verification (1 + 1 + 2), and per holder one to combine.
    multiplications = 1 + THRESHOLD * 4 + THRESHOLD
    own_operations = 1 / (multiplications / multiplication.per_second + 1 / hashing.per_second)
    return BenchResult(
        name="lookup",
        size=size,
        timing=whole,
        limits={
            f"own group operations ({multiplications} multiplications, 1 hash)": own_operations,
            "one multiplication": multiplication.per_second,
        },
        bars=(
            Bar(
                "cold lookup / its own group operations (time)",
                own_operations / whole.per_second,
                2.5,
                at_most=True,
            ),
            Bar(
                "evaluate with proof / raw multiplications",
                evaluation.per_second / multiplication.per_second,
                0.4,
            ),
        ),
        notes={"peers": "a threshold VOPRF to compare with is not known to us", "network": "not included"},
    )
