"""Images of arrays written by a forked child: whole and frozen, or a clear failure; nothing of the parent lives on."""

import errno
import fcntl
import os
import resource
import signal
import time
import zlib

import numpy as np
import pytest

from member_node.streams import images
from member_node.streams.images import ForkError, ImageError, freeze, gather, ready, spans_of
from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotError, SnapshotStore

LARGE = 128 * 2**20  # takes a child several waits for the disk: it is stopped long before it has done


@pytest.fixture(autouse=True)
def compiled():
    assert ready() == ""


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def of(*sizes):
    random = np.random.default_rng(1)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def stopped(pid):
    """Stop a child once it has closed what it inherited."""
    while True:
        try:
            held = os.listdir(f"/proc/{pid}/fd")
        except FileNotFoundError:
            raise AssertionError("the child ended before it could be stopped") from None
        if held == ["0"]:
            os.kill(pid, signal.SIGSTOP)
            return
        time.sleep(0.0002)


def test_arrays_are_at_their_places_with_their_sums(file):
    arrays = of(0, 1, 7, 8, 9, 63, 4096, 2**20 - 1, 2**20 + 13, 3 * 2**20 + 8)
    arrays.append(of(100)[0][3:50])  # at an odd address
    places = np.cumsum([64] + [len(each) + 5 for each in arrays])[:-1].tolist()
    assert freeze(file, places, arrays).wait() == [zlib.crc32(each) for each in arrays]
    for array, place in zip(arrays, places, strict=True):
        assert os.pread(file, len(array), place) == array.tobytes()


def test_what_changes_afterwards_is_not_in_the_image(file):
    (array,) = of(LARGE)
    before = zlib.crc32(array)
    image = freeze(file, [0], [array])
    stopped(image.pid)
    array[:] = 7
    os.kill(image.pid, signal.SIGCONT)
    assert image.wait() == [before]
    assert zlib.crc32(os.pread(file, LARGE, 0)) == before


def test_the_child_holds_no_descriptor_and_no_lock(file, tmp_path):
    with open(tmp_path / "lock", "w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        image = freeze(file, [0], of(LARGE))
        stopped(image.pid)
    with open(tmp_path / "lock", "w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    image.abandon()


def test_signals_to_the_group_are_not_the_childs_affair(file):
    arrays = of(LARGE)
    image = freeze(file, [0], arrays)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(image.pid, number)
    assert image.wait() == [zlib.crc32(arrays[0])]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_dies_is_said_to_have(file, number):
    image = freeze(file, [0], of(LARGE))
    stopped(image.pid)
    os.kill(image.pid, number)
    os.kill(image.pid, signal.SIGCONT)
    if number == signal.SIGKILL:
        with pytest.raises(ImageError, match=r"was killed \(SIGKILL\); if nobody did"):
            image.wait()
    else:  # sent by somebody, it is blocked like the rest
        assert len(image.wait()) == 1


def test_a_full_disk_is_the_disks_error(file):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        image = freeze(file, [0], of(3 * 2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(OSError, match="File too large") as caught:
        image.wait()
    assert caught.value.errno == errno.EFBIG


def test_a_child_nobody_can_wait_for_is_judged_by_what_it_did(file):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        arrays = of(1000)
        assert freeze(file, [0], arrays).wait() == [zlib.crc32(arrays[0])]
        image = freeze(file, [0], of(LARGE))
        image.abandon()
        image = freeze(file, [0], of(LARGE))
        stopped(image.pid)
        os.kill(image.pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="nobody knows how"):
            image.wait()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_close_range_descriptors_are_closed_one_by_one(file, monkeypatch):
    calls = images._calls().copy()
    calls[images._CLOSE_RANGE] = 0
    monkeypatch.setattr(images, "_calls", lambda: calls)
    arrays = of(1000)
    assert freeze(file, [0], arrays).wait() == [zlib.crc32(arrays[0])]


def test_gathering_changes_nothing():
    arrays = of(5 * 2**20, 100)
    before = zlib.crc32(arrays[0])
    spans = spans_of(arrays)
    assert spans == [(arrays[0].ctypes.data, arrays[0].nbytes)]
    gather(spans)
    gather([(1 << 40, 4 * 2**20)])  # memory that is gone meanwhile
    assert zlib.crc32(arrays[0]) == before


class Keeping:
    def __init__(self, directory, before=lambda sequence: None):
        self.array = of(LARGE)[0]
        self.retired = []
        self.store = SnapshotStore(directory, "spec")
        self.keeper = SnapshotKeeper(
            self.store,
            lambda: {"array": self.array, "number": np.array([len(self.array)])},
            before=before,
            after=self.retired.append,
            every_events=1,
        )


def test_a_killed_child_leaves_the_snapshot_before_and_the_journal(tmp_path, caplog):
    keeping = Keeping(tmp_path)
    keeping.keeper.save(1)
    assert keeping.keeper.due(1, 0.0)
    assert keeping.keeper.begin(2)
    stopped(keeping.keeper.child)
    assert not keeping.keeper.due(1, 1.0)  # one at a time
    os.kill(keeping.keeper.child, signal.SIGKILL)
    keeping.keeper.close()
    assert "no snapshot at frame 2" in keeping.keeper.last_error
    assert "SIGKILL" in caplog.text
    assert (keeping.keeper.failures, keeping.retired) == (1, [0])
    assert [path.name for path in tmp_path.iterdir()] == ["0000000001.snapshot"]


def test_a_disk_that_is_full_for_the_child_leaves_no_part(tmp_path):
    keeping = Keeping(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        assert keeping.keeper.due(1, 0.0)
        assert keeping.keeper.begin(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    keeping.keeper._writing.result()
    assert "File too large; the ones before it stay, free some room" in keeping.keeper.last_error
    assert list(tmp_path.iterdir()) == []
    assert keeping.keeper.due(1, 1.0)
    assert keeping.keeper.begin(2)
    keeping.keeper.close()
    assert keeping.keeper.last_error == ""
    assert keeping.store.sequences == [2]


def test_a_history_that_fails_ends_the_child(tmp_path):
    children = []

    def fail(sequence):
        while keeping.keeper.child is None:
            time.sleep(0.001)
        children.append(keeping.keeper.child)
        raise TimeoutError("the history is behind")

    keeping = Keeping(tmp_path, before=fail)
    assert keeping.keeper.due(1, 0.0)
    assert keeping.keeper.begin(1)
    keeping.keeper.close()
    assert "the history is behind" in keeping.keeper.last_error
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)
    assert list(tmp_path.iterdir()) == []


def test_closing_and_saving_wait_for_the_child(tmp_path):
    keeping = Keeping(tmp_path)
    before = zlib.crc32(keeping.array)
    assert keeping.keeper.due(1, 0.0)
    assert keeping.keeper.begin(1)
    keeping.array[:] = 1
    keeping.keeper.save(2)
    keeping.array[:] = 2
    assert keeping.keeper.due(1, 1.0)
    assert keeping.keeper.begin(3)
    keeping.keeper.close()
    assert keeping.store.sequences == [2, 3]
    assert int(keeping.store.latest()[1]["array"][0]) == 2
    assert keeping.retired == [0, 1, 2]
    assert before != zlib.crc32(keeping.array)


def test_what_cannot_be_forked_is_copied_and_said(tmp_path, monkeypatch, caplog):
    keeping = Keeping(tmp_path)

    def refuse(*_):
        raise ForkError(errno.ENOMEM, "this process cannot be forked: Cannot allocate memory")

    monkeypatch.setattr("member_node.streams.snapshots.freeze", refuse)
    before = keeping.array.copy()
    assert keeping.keeper.due(1, 0.0)
    assert keeping.keeper.begin(1)
    assert keeping.keeper.child is None
    keeping.array[:] = 0
    keeping.keeper.close()
    assert np.array_equal(keeping.store.latest()[1]["array"], before)
    assert "cannot be forked: Cannot allocate memory" in caplog.text
    assert keeping.keeper.last_error == ""


def test_a_state_that_cannot_be_given_is_a_counted_failure(tmp_path):
    keeping = Keeping(tmp_path)
    keeping.array = np.array(["text"])
    assert keeping.keeper.due(1, 0.0)
    assert not keeping.keeper.begin(1)
    assert "numbers only" in keeping.keeper.last_error
    with pytest.raises(SnapshotError, match="numbers only"):
        keeping.keeper.save(1)
    assert keeping.keeper.failures == 2
