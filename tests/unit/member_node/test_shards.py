"""Batch cryptography's places of work, and shards joined to what one engine gives (without Ray)."""

import secrets
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest

from member_node.compute.batch import BatchCrypto
from member_node.compute.ray_cluster import OWNER_FILE, PREFIX, RayClusterError, remove_abandoned
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
        self.running = False

    def map(self, function, chunks):
        self.batches.append(len(chunks))
        self.running = True
        return [function(chunk) for chunk in chunks]

    def stop(self):
        self.stopped = True


def double(chunk):
    return [value * 2 for value in chunk]


def refuse(chunk):
    raise ValueError(f"chunk {chunk}")


def test_small_batches_stay_here_and_large_ones_go_to_the_cluster():
    elsewhere = Elsewhere()
    crypto = BatchCrypto(elsewhere, start_bytes=2000, use_bytes=600)
    chunks = [[number] for number in range(6)]
    assert crypto.map(double, []) == []
    assert crypto.map(double, chunks[:1]) == [[0]]
    assert crypto.map(double, chunks) == [[0], [2], [4], [6], [8], [10]]
    assert elsewhere.batches == []
    assert crypto.map(double, [[bytes(1000)]]) == [[bytes(2000)]]
    assert elsewhere.batches == []
    assert crypto.map(double, [[bytes(2000)]]) == [[bytes(4000)]]
    assert crypto.map(double, [[bytes(500)]]) == [[bytes(1000)]]
    # Once it runs less is enough.
    assert crypto.map(double, [[secrets.token_bytes(200)] for _ in range(5)])
    assert elsewhere.batches == [1, 5]
    crypto.close()
    assert elsewhere.stopped


def test_when_the_cluster_is_lost_the_work_is_done_here(caplog):
    class Lost(Elsewhere):
        def map(self, function, chunks):
            self.batches.append(len(chunks))
            raise RayClusterError("raylet is gone")

    elsewhere = Lost()
    crypto = BatchCrypto(elsewhere, start_bytes=1, use_bytes=1)
    assert crypto.map(double, [[1], [2]]) == [[2], [4]]
    assert crypto.map(double, [[1], [2]]) == [[2], [4]]
    assert elsewhere.batches == [2]
    assert "raylet is gone" in caplog.text
    crypto.close()


def test_errors_come_through_and_without_a_cluster_nothing_leaves():
    crypto = BatchCrypto(start_bytes=1, use_bytes=1)
    with pytest.raises(ValueError, match="chunk 1"):
        crypto.map(refuse, [1, 2, 3])
    barrier = threading.Barrier(2, timeout=10)
    assert crypto.map(lambda _: barrier.wait() >= 0, [0, 1]) == [True, True]
    crypto.close()
    with pytest.raises(ValueError, match="threads >= 1"):
        BatchCrypto(threads=0)
    with pytest.raises(ValueError, match="use_bytes <= start_bytes"):
        BatchCrypto(start_bytes=5, use_bytes=6)


def test_folders_of_dead_owners_are_removed_and_no_others(tmp_path):
    own, dead, reborn, foreign = (
        tmp_path / f"{PREFIX}{name}" for name in ("own", "dead", "reborn", "foreign")
    )
    for folder in (own, dead, reborn, foreign):
        (folder / "r").mkdir(parents=True)
    myself = psutil.Process()
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    (own / OWNER_FILE).write_text(f"{myself.pid} {myself.create_time()}")
    (dead / OWNER_FILE).write_text(f"{child.pid} 1700000000.0")
    (reborn / OWNER_FILE).write_text(f"{myself.pid} 1700000000.0")
    assert sorted(remove_abandoned(tmp_path)) == [dead, reborn]
    assert own.exists()
    assert foreign.exists()
    assert not dead.exists()


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
