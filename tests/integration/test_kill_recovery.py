"""kill -9 under load: nothing accepted is lost, nothing applied twice, no answer changes, the state is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
BATCHES, FEWER = 200, 90
ROWS = 150


class Victims:
    """Children of the driver, one at a time."""

    def __init__(self, directory):
        self.log = open(directory / "driver.log", "w+")  # noqa: SIM115 - closed with the driver
        environment = {**os.environ, "PYTHONPATH": str(DRIVER.parents[2])}
        self._driver = subprocess.Popen(
            [sys.executable, DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        assert self._driver.stdout.readline() == "ready\n", self.errors()

    def start(self, mode, directory, batches):
        self._driver.stdin.write(f"{mode} {directory} {batches}\n")
        self._driver.stdin.flush()
        return int(self._driver.stdout.readline())

    def ended(self):
        self._driver.stdin.write("\n")
        self._driver.stdin.flush()
        return int(self._driver.stdout.readline())

    def errors(self):
        self.log.seek(0)
        return self.log.read()

    def close(self):
        self._driver.stdin.close()
        self._driver.wait(timeout=30)
        self._driver.stdout.close()
        self.log.close()


@pytest.fixture
def victims(tmp_path):
    made = Victims(tmp_path)
    yield made
    made.close()


def answers(directory):
    path = directory / "acknowledged"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def kill_until_done(victims, mode, directory, batches, seed):
    """Kill a child again and again, some after a number of answers, some while it is still restoring; how often."""
    choose = random.Random(seed)
    killed = stuck = 0
    while True:
        before = len(answers(directory))
        pid = victims.start(mode, directory, batches)
        child = psutil.Process(pid)
        if choose.random() < 0.2 and stuck < 3:
            stuck += 1
            time.sleep(choose.random() * 0.1)
        else:
            stuck = 0
            target = min(before + choose.randint(1, 9), batches)
            while len(answers(directory)) < target and child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.0005)
            time.sleep(choose.random() * 0.006)
        os.kill(pid, signal.SIGKILL)
        status = victims.ended()
        if status == 0:
            return killed
        assert status == -signal.SIGKILL, victims.errors()
        killed += 1
        assert len(answers(directory)) >= before


def undisturbed(victims, tmp_path, batches):
    directory = tmp_path / "undisturbed"
    victims.start("continue", directory, batches)
    assert victims.ended() == 0, victims.errors()
    return directory


def history(directory):
    return pl.concat([pl.read_parquet(file) for file in sorted((directory / "history").glob("*.parquet"))])


def check(directory, smooth, batches):
    """Every event once, with the features of the undisturbed run and the verdict that was answered."""
    found, wanted = history(directory), history(smooth)
    assert found["event_id"].n_unique() == found.height == batches * ROWS
    ours, theirs = (each.drop("nonce").sort("event_id") for each in (found, wanted))
    assert ours.equals(theirs)
    assert set(found["verdict"]) == {"allow", "review"}
    known = {}
    for number, checksum in answers(directory):
        assert known.setdefault(number, checksum) == checksum
    by_id = {row["event_id"]: row for row in found.iter_rows(named=True)}
    sys.path.insert(0, str(DRIVER.parent))
    try:
        import kill_driver
        import pyarrow as pa
    finally:
        sys.path.pop(0)
    for number, checksum in known.items():
        ids = [f"e{each:08d}" for each in range(number * ROWS, (number + 1) * ROWS)]
        rows = {
            "event_id": ids,
            "verdict": [by_id[each]["verdict"] for each in ids],
            "nonce": [by_id[each]["nonce"] for each in ids],
        }
        assert kill_driver.checksum(pa.table(rows)) == checksum
    return known


@pytest.mark.slow
def test_thirty_kills_and_the_state_is_the_same_to_the_bit(victims, tmp_path):
    directory, smooth = tmp_path / "killed", undisturbed(victims, tmp_path, BATCHES)
    assert kill_until_done(victims, "continue", directory, BATCHES, seed=11) >= 30
    known = check(directory, smooth, BATCHES)
    # A batch whose answer was cut off by the kill is continued behind, all others were answered.
    assert len(known) > BATCHES * 0.6
    with np.load(directory / "state.npz") as ours, np.load(smooth / "state.npz") as theirs:
        assert set(ours) == set(theirs)
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype, name
            assert ours[name].tobytes() == theirs[name].tobytes(), name
    # The journal was retired behind snapshots and history while all that happened.
    assert min(int(path.stem) for path in (directory / "journal").glob("*.journal")) > 1
    assert len(list((directory / "snapshots").glob("*.snapshot"))) == 2


@pytest.mark.slow
def test_what_is_sent_again_after_a_kill_gets_its_first_answer(victims, tmp_path):
    directory, smooth = tmp_path / "killed", undisturbed(victims, tmp_path, FEWER)
    assert kill_until_done(victims, "redeliver", directory, FEWER, seed=23) >= 12
    assert len(check(directory, smooth, FEWER)) == FEWER


@pytest.mark.slow
def test_damaged_snapshots_cost_a_longer_replay_or_are_a_clear_error(victims, tmp_path):
    directory, smooth = tmp_path / "damaged", undisturbed(victims, tmp_path, FEWER)

    def run(batches):
        victims.start("continue", directory, batches)
        return victims.ended()

    def damage(path):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)

    assert run(FEWER // 2) == 0, victims.errors()
    damage(sorted((directory / "snapshots").glob("*.snapshot"))[-1])
    assert run(FEWER) == 0, victims.errors()
    check(directory, smooth, FEWER)
    with np.load(directory / "state.npz") as ours, np.load(smooth / "state.npz") as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert "is damaged" in victims.errors()
    for path in (directory / "snapshots").glob("*.snapshot"):
        damage(path)
    assert run(FEWER + 1) == 1
    assert "were retired: without a snapshot that covers them the state cannot be rebuilt" in victims.errors()
