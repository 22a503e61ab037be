"""Snapshots: whole or not at all, two kept, a damaged one falls back to the one before, never another spec's."""

import logging
import resource
import signal
import threading
import time

import numpy as np
import pytest

from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotError, SnapshotStore


def arrays(number):
    random = np.random.default_rng(number)
    return {
        "a/floats": random.random((number % 4 + 1, 3)),
        "a/keys": random.integers(0, 2**63, 40, dtype=np.uint64),
        "flags": random.random(5) < 0.5,
        "empty": np.empty((0, 7), np.int32),
        "scalar": np.array(number),
        "columns": np.asfortranarray(random.random((4, 6))),
        "strided": np.arange(20)[::3],
        "special": np.array([np.nan, -0.0, np.inf, 5e-324]),
    }


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_arrays_come_back_to_the_bit(tmp_path):
    store = SnapshotStore(tmp_path, "spec")
    assert store.latest() is None
    assert store.covered == 0
    store.save(7, arrays(7))
    sequence, found = SnapshotStore(tmp_path, "spec").latest()
    assert sequence == 7
    same(found, arrays(7))
    assert not found["a/floats"].flags.writeable


def test_two_are_kept_and_what_is_mapped_stays_readable(tmp_path):
    store = SnapshotStore(tmp_path, "spec")
    store.save(0, arrays(0))
    assert store.covered == 0
    _, first = store.latest()
    for sequence in (5, 12, 100):
        store.save(sequence, arrays(sequence))
    assert store.sequences == [12, 100]
    assert store.covered == 12
    assert store.latest()[0] == 100
    same(first, arrays(0))


def test_what_is_no_number_is_refused(tmp_path):
    store = SnapshotStore(tmp_path, "spec")
    for bad in (np.array(["a"]), np.array([None]), np.array(["2026"], dtype="M8[us]"), np.array([1], ">i8")):
        with pytest.raises(ValueError, match="numbers only"):
            store.save(1, {"bad": bad})
    assert store.latest() is None


def test_another_specs_snapshot_is_refused(tmp_path):
    SnapshotStore(tmp_path, "spec").save(1, arrays(1))
    with pytest.raises(SnapshotError, match="another feature spec, shard or version; remove the snapshots"):
        SnapshotStore(tmp_path, "other").latest()


def test_a_byte_flipped_anywhere_falls_back_to_the_older_one(tmp_path, caplog):
    store = SnapshotStore(tmp_path, "spec")
    store.save(1, arrays(1))
    store.save(2, arrays(2))
    path = tmp_path / "0000000002.snapshot"
    whole = path.read_bytes()
    refused = 0
    places = range(0, len(whole), 3)
    for place in places:
        raw = bytearray(whole)
        raw[place] ^= 0x10
        path.write_bytes(raw)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            sequence, found = store.latest()
        # A byte between two arrays belongs to nothing.
        same(found, arrays(sequence))
        if sequence == 1:
            refused += 1
            assert "0000000002.snapshot is damaged" in caplog.text
            (tmp_path / "0000000002.snapshot.damaged").replace(path)
    assert refused > 0.6 * len(places)


def test_a_snapshot_cut_off_anywhere_falls_back_and_two_of_them_leave_none(tmp_path, caplog):
    store = SnapshotStore(tmp_path, "spec")
    store.save(1, arrays(1))
    store.save(2, arrays(2))
    path = tmp_path / "0000000002.snapshot"
    whole = path.read_bytes()
    for size in range(0, len(whole), 17):
        path.write_bytes(whole[:size])
        assert store.latest()[0] == 1
        assert store.sequences == [1]
        assert store.covered == 0  # the journal behind the other one is needed again
    (tmp_path / "0000000001.snapshot").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert store.latest() is None
    assert "0000000001.snapshot is damaged (it is cut off)" in caplog.text


def test_a_file_under_another_number_is_not_believed(tmp_path):
    store = SnapshotStore(tmp_path, "spec")
    store.save(3, arrays(3)).rename(tmp_path / "0000000009.snapshot")
    assert store.latest() is None


def test_a_full_disk_leaves_the_ones_before(tmp_path):
    store = SnapshotStore(tmp_path, "spec")
    path = store.save(1, arrays(1))
    size = path.stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, size, 97):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SnapshotError, match="the ones before it stay"):
                store.save(2, arrays(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
    store.save(2, arrays(2))
    assert store.latest()[0] == 2


def test_leftovers_of_a_crash_are_removed(tmp_path):
    (tmp_path / "0000000004.snapshot.part").write_bytes(b"half")
    assert SnapshotStore(tmp_path, "spec").latest() is None
    assert list(tmp_path.iterdir()) == []


class Keeping:
    def __init__(self, directory, **options):
        self.value, self.calls, self.error = 0, [], None
        self.gate = threading.Event()
        self.gate.set()
        self.store = SnapshotStore(directory, "spec")
        self.keeper = SnapshotKeeper(
            self.store,
            lambda: {"value": np.array([self.value])},
            before=self.before,
            after=lambda covered: self.calls.append(("after", covered)),
            **options,
        )

    def before(self, sequence):
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.calls.append(("before", sequence))


def test_one_is_taken_after_so_many_events_or_so_much_time(tmp_path):
    keeping = Keeping(tmp_path, every_events=100, every_seconds=60.0)
    assert not keeping.keeper.due(60, 0.0)
    begun = [False, keeping.keeper.due(60, 1.0) and keeping.keeper.begin(4)]  # 120 events
    while len(keeping.calls) < 2:
        time.sleep(0.001)
    begun.append(keeping.keeper.due(0, 62.0) and keeping.keeper.begin(6))  # old enough, and nothing new
    begun.append(keeping.keeper.due(1, 63.0) and keeping.keeper.begin(8))
    while len(keeping.calls) < 4:
        time.sleep(0.001)
    begun.append(keeping.keeper.due(99, 64.0) and keeping.keeper.begin(10))
    keeping.keeper.close()
    assert begun == [False, True, False, True, False]
    # The history is written before the snapshot, the journal retired after it, up to the older of two.
    assert keeping.calls == [("before", 4), ("after", 0), ("before", 8), ("after", 4)]


def test_the_stream_goes_on_while_one_is_written(tmp_path):
    keeping = Keeping(tmp_path, every_events=10)
    keeping.gate.clear()
    keeping.value = 1
    assert keeping.keeper.due(10, 0.0)
    assert keeping.keeper.begin(1)
    keeping.value = 2  # the copy was taken
    assert not keeping.keeper.due(10, 0.0)
    keeping.gate.set()
    keeping.keeper.save(2)
    keeping.keeper.close()
    assert keeping.store.sequences == [1, 2]
    assert keeping.store.latest()[1]["value"].tolist() == [2]


def test_a_failure_is_said_and_the_next_one_tried(tmp_path, caplog):
    keeping = Keeping(tmp_path, every_events=10)
    keeping.error = OSError("no room")
    with pytest.raises(SnapshotError, match="no snapshot at frame 1: no room"):
        keeping.keeper.save(1)
    assert "no room" in caplog.text
    assert keeping.calls == []
    assert keeping.store.latest() is None
    keeping.error = None
    keeping.keeper.save(2)
    assert keeping.keeper.last_error == ""
    keeping.keeper.close()
    assert keeping.store.sequences == [2]
