"""Shards on a real Ray: the same features for 1, 2 and 4, and after kill -9 of an actor in the middle of the stream."""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest

from member_node.compute.ray_cluster import RayCluster, RayClusterError
from member_node.compute.shards import ShardedEngine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import OutcomeBatch, SchemaError, transaction_batch

pytestmark = pytest.mark.slow

SPEC = parse_spec(
    """
[[feature]]
name = "spent"
entity = "customer"
aggregation = "mean"
value = "amount"
window = "1d"
[[feature]]
name = "often"
entity = "customer"
aggregation = "count"
window = "2h"
[[feature]]
name = "risk"
entity = "terminal"
aggregation = "rate"
window = "1d"
delay = "1h"
[[feature]]
name = "fee"
entity = "customer"
aggregation = "mean"
value = "fee"
window = "1d"
[[feature]]
name = "night"
calendar = "night"
"""
)
ROWS, BATCHES = 400, 14


def stream(first=0, last=BATCHES):
    for number in range(first, last):
        random = np.random.default_rng([3, number])
        ids = np.arange(number * ROWS, (number + 1) * ROWS)
        if number % 3 == 2:
            ids[:5] -= ROWS  # sent a second time
        times = 20_000 * 86_400_000_000 + ids * 9_000_000 + random.integers(0, 60_000_000, ROWS)
        batch = transaction_batch(
            event_id=[f"e{each}" if each % 50 else "" for each in ids],  # some are missing
            time_us=times,
            amount=random.random(ROWS) * 100,
            channel="card",
            entities={"customer": random.integers(0, 90, ROWS), "terminal": random.integers(0, 20, ROWS)},
            numbers={"fee": random.random(ROWS)},
            texts={"customer": ["never sent to a shard"] * ROWS},
        )
        fraud = OutcomeBatch(batch.event_id, random.random(ROWS) < 0.1, times + 3_600_000_000)
        yield batch, fraud


@pytest.fixture(scope="module")
def cluster():
    with RayCluster(cpus=2) as made:
        made.ray()
        yield made


@pytest.fixture(scope="module")
def wanted():
    engine = FeatureEngine(SPEC)
    return [engine.update(*each) for each in stream()]


def same(found, expected):
    assert found.names == expected.names
    assert np.array_equal(found.values, expected.values, equal_nan=True)
    assert np.array_equal(found.disposition, expected.disposition)
    assert np.array_equal(found.refusal, expected.refusal)


def actors():
    """The processes in which shards live."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "_Shard" in " ".join(each.cmdline()):
                found.append(each)
    return found


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_features_do_not_depend_on_shards(cluster, wanted, shards):
    with ShardedEngine(cluster, SPEC, shards, tail_rows=5 * ROWS) as engine:
        for each, expected in zip(stream(), wanted, strict=True):
            assert np.array_equal(engine.foresee(each[0]), expected.disposition)
            same(engine.update(*each), expected)
        batch, _ = next(stream(BATCHES, BATCHES + 1))
        with pytest.raises(SchemaError, match="'fee': is used by the feature spec and missing"):
            engine.update(replace(batch, numbers={}))
        assert len(engine.update(batch)) == ROWS  # what a shard refuses is no loss of the shard


def kill_one():
    victim = max(actors(), key=lambda each: each.create_time())
    os.kill(victim.pid, signal.SIGKILL)


@pytest.mark.parametrize(("tail_batches", "kills"), [(3, (1, 8, 12)), (100, (7,))])
def test_a_killed_shard_is_restored_and_catches_up(cluster, wanted, tail_batches, kills, caplog):
    with ShardedEngine(cluster, SPEC, 2, tail_rows=tail_batches * ROWS) as engine:
        for number, (each, expected) in enumerate(zip(stream(), wanted, strict=True)):
            if number in kills:
                kill_one()
            assert np.array_equal(engine.foresee(each[0]), expected.disposition)
            same(engine.update(*each), expected)
        assert caplog.text.count("is back") == len(kills)
        kill_one()
        state = engine.state()
    assert caplog.text.count("is back") == len(kills) + 1
    single = [FeatureEngine(SPEC, shard=shard, shards=2) for shard in range(2)]
    for each in stream():
        for shard in single:
            shard.update(*each)
    for number, shard in enumerate(single):
        for name, array in shard.state().items():
            assert state[f"shard-{number}-of-2/{name}"].tobytes() == array.tobytes(), name


def test_a_shard_killed_while_it_computes(cluster, wanted):
    done = threading.Event()

    def kill_again_and_again():
        while not done.wait(0.4):
            for victim in actors()[:1]:
                with suppress(psutil.Error):
                    victim.kill()

    with ShardedEngine(cluster, SPEC, 2, tail_rows=4 * ROWS) as engine:
        killer = threading.Thread(target=kill_again_and_again)
        found = [engine.update(*each) for each in stream(0, 2)]
        killer.start()
        try:
            for each in stream(2):
                found.append(engine.update(*each))
                time.sleep(0.05)
        except RayClusterError:
            pass  # killed three times in one batch: said, never answered wrongly
        finally:
            done.set()
            killer.join()
    assert len(found) > 2
    for matrix, expected in zip(found, wanted, strict=False):
        same(matrix, expected)


def test_a_state_goes_into_another_engine_of_as_many_shards(cluster, wanted, tmp_path):
    with ShardedEngine(cluster, SPEC, 2, directory=tmp_path / "one") as engine:
        engine.state()  # of an engine that has seen nothing
        for each in stream(0, 6):
            engine.update(*each)
        state = {name: array.copy() for name, array in engine.state().items()}
    with ShardedEngine(cluster, SPEC, 2, directory=tmp_path / "two") as engine:
        engine.restore(state)
        same(engine.update(*next(stream(6, 7))), wanted[6])
        kill_one()
        for each, expected in zip(stream(7), wanted[7:], strict=True):
            assert np.array_equal(engine.foresee(each[0]), expected.disposition)
            same(engine.update(*each), expected)
        with pytest.raises(ValueError, match="another feature spec"):
            engine.restore(state | {"shard-0-of-2/digest": np.zeros(3, np.uint8)})
    with ShardedEngine(cluster, SPEC, 1) as engine, pytest.raises(ValueError, match="not that of 1 shards"):
        engine.restore(state)
    with pytest.raises(ValueError, match="at least one shard"):
        ShardedEngine(cluster, SPEC, 0)
