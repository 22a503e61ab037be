"""Batch cryptography's places of work, and shards joined to what one engine gives (without Ray)."""

import secrets
import threading

import numpy as np
import pytest

from member_node.compute.batch import BatchCrypto
from member_node.compute.ray_cluster import RayClusterError
from scoring.features.engine import FeatureEngine, join_shards
from scoring.features.spec import parse_spec
from scoring.schema import OutcomeBatch, transaction_batch

SPEC = parse_spec(
    """
[[feature]]
name = "n"
entity = "customer"
aggregation = "count"
window = "1h"
[[feature]]
name = "risk"
entity = "terminal"
aggregation = "rate"
window = "1d"
delay = "1h"
"""
)


class Elsewhere:
    def __init__(self):
        self.batches = []
        self.stopped = False

    def map(self, function, chunks):
        self.batches.append(len(chunks))
        return [function(chunk) for chunk in chunks]

    def stop(self):
        self.stopped = True


def double(chunk):
    return [value * 2 for value in chunk]


def refuse(chunk):
    raise ValueError(f"chunk {chunk}")


def test_small_batches_stay_here_and_large_ones_go_to_the_cluster():
    elsewhere = Elsewhere()
    crypto = BatchCrypto(elsewhere, ray_bytes=2000)
    chunks = [[number] for number in range(6)]
    assert crypto.map(double, []) == []
    assert crypto.map(double, chunks[:1]) == [[0]]
    assert crypto.map(double, chunks) == [[0], [2], [4], [6], [8], [10]]
    assert elsewhere.batches == []
    assert crypto.map(double, [[bytes(2000)]]) == [[bytes(4000)]]
    assert crypto.map(double, [[bytes(500)]] * 5) == [[bytes(1000)]] * 5
    # Identical chunks pickle to one and a reference: what counts is what would travel.
    assert elsewhere.batches == [1]
    assert crypto.map(double, [[secrets.token_bytes(500)] for _ in range(5)])
    assert elsewhere.batches == [1, 5]
    crypto.close()
    assert elsewhere.stopped


def test_when_the_cluster_is_lost_the_work_is_done_here(caplog):
    class Lost(Elsewhere):
        def map(self, function, chunks):
            self.batches.append(len(chunks))
            raise RayClusterError("raylet is gone")

    elsewhere = Lost()
    crypto = BatchCrypto(elsewhere, ray_bytes=1)
    assert crypto.map(double, [[1], [2]]) == [[2], [4]]
    assert crypto.map(double, [[1], [2]]) == [[2], [4]]
    assert elsewhere.batches == [2]
    assert "raylet is gone" in caplog.text
    crypto.close()


def test_errors_come_through_and_without_a_cluster_nothing_leaves():
    crypto = BatchCrypto(ray_bytes=1)
    with pytest.raises(ValueError, match="chunk 1"):
        crypto.map(refuse, [1, 2, 3])
    barrier = threading.Barrier(2, timeout=10)
    assert crypto.map(lambda _: barrier.wait() >= 0, [0, 1]) == [True, True]
    crypto.close()
    with pytest.raises(ValueError, match="at least 1"):
        BatchCrypto(threads=0)


@pytest.mark.parametrize("shards", [2, 3])
def test_joined_shards_equal_one_engine(shards):
    random = np.random.default_rng(shards)
    one = FeatureEngine(SPEC)
    parts = [FeatureEngine(SPEC, shard=shard, shards=shards) for shard in range(shards)]
    start = 0
    for _ in range(5):
        ids = np.arange(start, start + 200)
        batch = transaction_batch(
            event_id=ids,
            time_us=np.sort(random.integers(start * 10**7, (start + 200) * 10**7, 200)),
            amount=random.random(200),
            channel="card",
            entities={"customer": random.integers(0, 30, 200), "terminal": random.integers(0, 9, 200)},
        )
        outcomes = OutcomeBatch(
            event_id=ids, fraud=random.random(200) < 0.2, known_at_us=batch.time_us + 3_600_000_000
        )
        wanted = one.update(batch, outcomes)
        joined = join_shards([part.update(batch, outcomes) for part in parts], SPEC, batch)
        assert np.array_equal(joined.values, wanted.values, equal_nan=True)
        start += 200
