"""The bank's own Ray, really started: bound to loopback, same features for any number of shards, no trace left."""

import ctypes
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from crypto import group
from member_node.compute.batch import BatchCrypto
from member_node.compute.ray_cluster import RayCluster, RayClusterError, outside_listeners
from member_node.compute.shards import ShardedEngine
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import OutcomeBatch, transaction_batch

pytestmark = pytest.mark.slow
HANDLED = (signal.SIGTERM, signal.SIGINT)

SPEC = parse_spec(
    """
[[feature]]
name = "spent"
entity = "customer"
aggregation = "sum"
value = "amount"
window = "1d"
[[feature]]
name = "mean"
entity = "customer"
aggregation = "mean"
value = "amount"
window = "7d"
[[feature]]
name = "risk"
entity = "terminal"
aggregation = "rate"
window = "1d"
delay = "1h"
[[feature]]
name = "night"
calendar = "night"
"""
)


def multiply(elements):
    scalar = group.scalar_from_int(7)
    return [group.multiply(scalar, element) for element in elements]


def refuse(chunk):
    raise ValueError(f"chunk of {len(chunk)} bytes")


def stream(batches=4, rows=1500):
    random = np.random.default_rng(5)
    for number in range(batches):
        ids = np.arange(number * rows, (number + 1) * rows)
        batch = transaction_batch(
            event_id=ids,
            time_us=np.sort(random.integers(number * 10**11, (number + 1) * 10**11, rows)),
            amount=random.random(rows) * 100,
            channel="card",
            entities={"customer": random.integers(0, 300, rows), "terminal": random.integers(0, 40, rows)},
        )
        known = batch.time_us + 3_600_000_000
        yield batch, OutcomeBatch(event_id=ids, fraud=random.random(rows) < 0.1, known_at_us=known)


def sigaction(number):
    """The address of the process's C handler of a signal, which Python's own ``signal`` does not show."""
    action = ctypes.create_string_buffer(512)
    assert ctypes.CDLL(None).sigaction(int(number), None, action) == 0
    return ctypes.c_void_p.from_buffer(action).value


def test_the_banks_own_ray():
    environment = dict(os.environ)
    expected = FeatureEngine(SPEC)
    wanted = [expected.update(*each).values for each in stream()]
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    handlers = [sigaction(number) for number in HANDLED]
    cluster = RayCluster(cpus=2)
    assert not cluster.running
    with cluster:
        # A node starts it from the thread of the request that needs it, which ends long before Ray does.
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(cluster.ray).result() is not None
        # Ray's core puts handlers of its own in place, under which a node would die without closing anything.
        assert [sigaction(number) for number in HANDLED] == handlers
        folder_of_first_start = None
        for shards in (1, 2):
            with ShardedEngine(cluster, SPEC, shards) as engine:
                assert engine.names == SPEC.names
                for (batch, outcomes), values in zip(stream(), wanted, strict=True):
                    assert np.array_equal(engine.update(batch, outcomes).values, values, equal_nan=True)
            folder_of_first_start = folder_of_first_start or cluster.folder
        assert cluster.folder == folder_of_first_start
        assert len(str(cluster.folder / "r")) <= 40
        assert cluster.folder.stat().st_mode & 0o077 == 0

        elements = [group.multiply_base(group.scalar_from_int(number + 1)) for number in range(32)]
        chunks = [elements[start : start + 4] for start in range(0, 32, 4)]
        crypto = BatchCrypto(cluster, start_bytes=500, use_bytes=500)
        assert crypto.map(multiply, chunks) == [multiply(chunk) for chunk in chunks]
        with pytest.raises(ValueError, match="chunk of 500 bytes"):
            crypto.map(refuse, [bytes(500)])

        processes = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        names = {process.name() for process in processes}
        assert {"raylet", "gcs_server"} <= names
        assert outside_listeners([*processes, psutil.Process()]) == []
        listening = [
            connection
            for process in processes
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 2
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert os.environ["RAY_AUTH_TOKEN"] not in " ".join(
            " ".join(process.cmdline()) for process in processes
        )

        with pytest.raises(RayClusterError, match="already"):
            RayCluster().ray()
        folder = cluster.folder
        crypto.close()
    assert not cluster.running
    assert not folder.exists()
    assert dict(os.environ) == environment
    gone, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
    assert len(gone) == len(processes)


def test_a_listener_outside_loopback_is_found():
    with socket.socket() as listener:
        # Bound to every interface for a moment, and to nobody's harm: nothing accepts.
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert any(text.endswith(f"0.0.0.0:{port}") for text in outside_listeners([psutil.Process()]))
