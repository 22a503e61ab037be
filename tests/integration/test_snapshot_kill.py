"""kill -9 of a node while a child of it writes a snapshot: the child holds nothing, and no half snapshot is taken."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from member_node.streams.journal import Journal
from member_node.streams.snapshots import SnapshotStore

PARENT = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from member_node.streams.journal import Journal
from member_node.streams.snapshot_keeper import SnapshotKeeper
from member_node.streams.snapshots import SnapshotStore

directory = Path(sys.argv[1])
journal = Journal(directory / "journal")
array = np.ones(96 * 2**20, np.uint8)
keeper = SnapshotKeeper(
    SnapshotStore(directory / "snapshots", "spec"),
    lambda: {"array": array},
    before=lambda sequence: None,
    after=lambda covered: None,
    every_events=1,
)
keeper.save(1)
array[:] = 2
assert keeper.due(1, 0.0)
assert keeper.begin(2)
child = keeper.child
while os.listdir(f"/proc/{child}/fd") != ["0"]:
    time.sleep(0.0002)
os.kill(child, signal.SIGSTOP)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def gone(pid):
    """Whether a process has ended; what nobody waits for stays as a zombie where there is no init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_a_killed_node_leaves_no_lock_no_child_and_no_half_snapshot(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", PARENT, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    child = int(run.stdout)
    try:
        # The child still has its image and stands in the middle of its file; the journal is free all the same.
        assert not gone(child)
        with Journal(tmp_path / "journal"):
            assert len(list((tmp_path / "snapshots").glob("*.part"))) == 1
            store = SnapshotStore(tmp_path / "snapshots", "spec")
            assert store.sequences == [1]
            assert not list((tmp_path / "snapshots").glob("*.part"))
            os.kill(child, signal.SIGCONT)
            deadline = time.monotonic() + 30
            while not gone(child):
                assert time.monotonic() < deadline, "the child goes on without its parent"
                time.sleep(0.005)
            # What it wrote to was gone already, and it puts nothing into place.
            assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["0000000001.snapshot"]
            sequence, arrays = store.latest()
            assert sequence == 1
            assert np.all(arrays["array"] == 1)
    finally:
        if not gone(child):
            os.kill(child, signal.SIGKILL)
