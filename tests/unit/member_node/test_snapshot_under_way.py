"""A snapshot is of one moment though scoring goes on while it is written, and a stream closes with one under way."""

import os
import signal
import time

import numpy as np

from member_node.streams.snapshots import SnapshotStore
from tests.unit.member_node.test_images import stopped
from tests.unit.member_node.test_scoring_order import SPEC, events, opened

BALLAST = np.zeros(48 * 2**20, np.uint8)  # keeps the child writing until it can be stopped


def slowed(node):
    state = node.keeper._state
    node.keeper._state = lambda: {"ballast": BALLAST, **state()}


def without_ballast(found):
    sequence, arrays = found
    return sequence, {name: array for name, array in arrays.items() if name != "ballast"}


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].tobytes() == array.tobytes(), name


def test_a_snapshot_is_of_its_frame_whatever_is_scored_meanwhile(tmp_path):
    with opened(tmp_path / "one") as node:
        for first in range(0, 3000, 100):
            node.service.score(events(first, first + 100))
        slowed(node)
        wanted = node.service.state()
        node.service.checkpoint(node.keeper.locate)
        node.keeper.gather()
        node.service.checkpoint(node.keeper.begin)
        stopped(node.keeper.child)
        for first in range(3000, 6000, 100):
            node.service.score(events(first, first + 100))
        assert node.keeper.child is not None
        os.kill(node.keeper.child, signal.SIGCONT)
        node.keeper._writing.result()
        assert node.keeper.last_error == ""
        sequence, held = without_ballast(node.snapshots.latest())
        same(held, wanted)
        assert sequence == 60
        final, rows = node.service.state(), node.rows()
        journal = node.journal.last_sequence
    with opened(tmp_path / "one", restore=False) as node:
        assert node.service.restore((sequence, held)).events == 3000
        assert node.journal.last_sequence == journal
        same(node.service.state(), final)
        assert node.rows().equals(rows)
    with opened(tmp_path / "one", restore=False) as node:  # the same from the journal alone
        assert node.service.restore().events == 6000
        same(node.service.state(), final)


def test_closing_while_a_child_writes_ends_with_both_snapshots(tmp_path):
    with opened(tmp_path) as node:
        node.service.score(events(0, 200))
        slowed(node)
        node.service.checkpoint(node.keeper.begin)
        child = node.keeper.child
        stopped(child)
        node.service.score(events(200, 400))
        os.kill(child, signal.SIGCONT)
        node.service.checkpoint(node.keeper.save)
    assert node.snapshots.sequences == [2, 4]
    assert not list((tmp_path / "snapshots").glob("*.part"))
    found = without_ballast(SnapshotStore(tmp_path / "snapshots", SPEC.digest).latest())
    with opened(tmp_path, restore=False) as node:
        assert node.service.restore(found).events == 0
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{child}")
