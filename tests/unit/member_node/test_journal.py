"""The journal: whole frames or nothing, torn tails set aside, damage refused, a full disk survived."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest

from member_node.streams import journal as journal_module
from member_node.streams.journal import Draft, Journal, JournalError, verify

FIRST = "0000000001.journal"


def rows(*values):
    return pa.record_batch({"event_id": pa.array(values, type=pa.int64())})


def opened(path, **options):
    return Journal(path, reserve_bytes=0, **options)


def filled(directory, frames=3, **options):
    """A journal of ``frames`` appends that was closed; its newest segment's file."""
    with opened(directory, **options) as journal:
        for number in range(frames):
            journal.append([Draft("events", rows(number, number + 10), {"replayed": str(number)})])
    return sorted(directory.glob("*.journal"))[-1]


def crashed(directory, frames=3, **options):
    """The same, as a killed process leaves it: without the mark at the end."""
    path = filled(directory, frames, **options)
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size - 32)
    return path


def read(directory):
    with opened(directory) as journal:
        return list(journal.frames())


def firsts(frames):
    return [frame.rows.column(0)[0].as_py() for frame in frames]


def test_frames_come_back_in_order_with_their_facts(tmp_path):
    filled(tmp_path)
    frames = read(tmp_path)
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert [frame.kind for frame in frames] == ["events"] * 3
    assert [frame.facts for frame in frames] == [{"replayed": "0"}, {"replayed": "1"}, {"replayed": "2"}]
    assert frames[2].rows.equals(rows(2, 12))


def test_an_append_gives_the_number_of_its_first_frame(tmp_path):
    with opened(tmp_path) as journal:
        assert journal.append([]) == 0
        assert journal.append([Draft("outcomes", rows(1)), Draft("events", rows(2))]) == 1
        assert journal.append([Draft("verdicts", rows(2))]) == 3
        assert journal.append([]) == 3
        assert [frame.kind for frame in journal.frames()] == ["outcomes", "events", "verdicts"]
        assert [frame.kind for frame in journal.frames(3)] == ["verdicts"]


def test_schemas_of_many_kinds_and_rows_without_columns(tmp_path):
    batches = [
        pa.record_batch({"text": pa.array(["a", None, "ä"]), "number": pa.array([0.5, None, np.nan])}),
        pa.record_batch({"ok": pa.array([True, False])}),
        rows(),
        pa.record_batch({}),
        pa.record_batch({"text": pa.array(["b"]), "number": pa.array([1.0])}).replace_schema_metadata(
            {"a": "b"}
        ),
    ]
    with opened(tmp_path) as journal:
        for batch in batches * 2:
            journal.append([Draft("control", batch)], sync=False)
    read_back = [frame.rows for frame in read(tmp_path)]
    assert [batch.schema for batch in read_back] == [batch.schema.remove_metadata() for batch in batches] * 2
    for number, batch in enumerate(read_back):
        batch.validate(full=True)
        # NaN is not equal to itself, its text is.
        assert str(batch.to_pydict()) == str(batches[number % len(batches)].to_pydict())


def test_dictionary_columns_are_refused(tmp_path):
    with opened(tmp_path) as journal:
        with pytest.raises(ValueError, match="decode them first"):
            journal.append([Draft("events", pa.record_batch({"a": pa.array(["x"]).dictionary_encode()}))])
        assert journal.append([Draft("events", rows(1))]) == 1


def test_more_schemas_than_a_segment_numbers_start_the_next_one(tmp_path):
    with opened(tmp_path) as journal:
        for number in range(300):
            journal.append([Draft("events", pa.record_batch({f"c{number}": pa.array([number])}))], sync=False)
    assert len(list(tmp_path.glob("*.journal"))) == 2
    assert firsts(read(tmp_path)) == list(range(300))


def test_segments_follow_each_other_and_old_ones_retire(tmp_path):
    with opened(tmp_path, segment_bytes=2000) as journal:
        for number in range(40):
            journal.append([Draft("events", rows(*range(number, number + 20)))], sync=number % 3 == 0)
        names = sorted(path.name for path in tmp_path.glob("*.journal"))
        starts = [int(name.split(".")[0]) for name in names]
        assert len(starts) > 5
        assert journal.nbytes == sum((tmp_path / name).stat().st_size for name in names)
        assert firsts(journal.frames()) == list(range(40))
        for wanted in (1, starts[2], starts[2] + 1, 40, 41):
            assert [each.sequence for each in journal.frames(wanted)] == list(range(wanted, 41))
        with pytest.raises(JournalError, match="ends with frame 40, and a snapshot knows of frame 41"):
            list(journal.frames(42))
        assert journal.retire(starts[1] - 1) == 0
        assert journal.retire(starts[3] + 1) > 0
        assert journal.first_sequence == starts[3]
        assert [each.sequence for each in journal.frames(starts[3])] == list(range(starts[3], 41))
        with pytest.raises(JournalError, match=f"frames 1 to {starts[3] - 1} were retired"):
            list(journal.frames())
        journal.retire(10**9)
        assert journal.first_sequence == starts[-1]
    report = verify(tmp_path)
    assert (report.segments, report.first, report.last, report.torn) == (1, starts[-1], 40, 0)
    with opened(tmp_path) as journal:
        assert journal.append([Draft("events", rows(1))]) == 41


def test_a_restart_between_any_two_appends_changes_nothing(tmp_path):
    for number in range(12):
        with opened(tmp_path, segment_bytes=1500) as journal:
            assert journal.append([Draft("events", rows(number))]) == number + 1
        with opened(tmp_path, segment_bytes=1500):
            pass  # nothing is written when nothing was appended
    assert firsts(read(tmp_path)) == list(range(12))
    assert verify(tmp_path).last == 12


def test_a_tail_torn_at_every_byte_is_set_aside_with_a_warning(tmp_path, caplog):
    path = crashed(tmp_path)
    whole = path.read_bytes()
    start = whole.rindex(b"SJ02")
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING), opened(tmp_path) as journal:
            assert journal.last_sequence == 2
            assert ("from frame 3 on was cut off" in caplog.text) == (end > start)
            if end > start:
                kept = path.with_name(f"{FIRST}.torn-3")
                assert kept.read_bytes() == whole[start:end]
                kept.unlink()
            journal.append([Draft("events", rows(99))])
            assert firsts(journal.frames()) == [0, 1, 99]


def test_of_a_torn_append_of_several_frames_nothing_is_kept(tmp_path):
    with opened(tmp_path) as journal:
        journal.append([Draft("events", rows(0))])
        size = journal.nbytes
        journal.append([Draft("outcomes", rows(1)), Draft("outcomes", rows(2)), Draft("events", rows(3))])
    path = tmp_path / FIRST
    whole = path.read_bytes()[:-32]
    for end in range(size, len(whole), 7):
        path.write_bytes(whole[:end])
        assert firsts(read(tmp_path)) == [0]
    path.write_bytes(whole)
    assert firsts(read(tmp_path)) == [0, 1, 2, 3]


@pytest.mark.parametrize("hole", ["all", "header", "end"])
def test_sectors_that_were_never_written_are_a_torn_tail(tmp_path, hole):
    """What a power failure leaves: the file is long enough, some of its sectors are zeros; later ones may be whole."""
    with opened(tmp_path) as journal:
        journal.append([Draft("events", rows(0))])
        start = journal.nbytes
        journal.append([Draft("events", rows(*range(1, 400)))], sync=False)
        middle = journal.nbytes
        journal.append([Draft("verdicts", rows(1))], sync=False)
        path = tmp_path / FIRST
        raw = bytearray(path.read_bytes())
    first, last = {
        "all": (start, len(raw)),
        "header": (start, start // 512 * 512 + 512),
        "end": (middle // 512 * 512, middle),
    }[hole]
    raw[first:last] = bytes(last - first)
    path.write_bytes(raw)
    assert verify(tmp_path).torn == len(raw) - start
    assert firsts(read(tmp_path)) == [0]


@pytest.mark.parametrize("closed", [True, False])
def test_a_flipped_byte_anywhere_is_refused(tmp_path, closed):
    path = filled(tmp_path) if closed else crashed(tmp_path)
    whole = path.read_bytes()
    starts = [place for place in range(32, len(whole)) if whole[place : place + 4] == b"SJ02"]
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 0x41
        path.write_bytes(raw)
        with pytest.raises(JournalError, match="restore the file") as caught:
            opened(tmp_path)
        at = max((start for start in starts if start <= place), default=0)
        assert f"{path}: " in str(caught.value)
        assert f"at byte {at} is damaged" in str(caught.value)
        with pytest.raises(JournalError, match=f"at byte {at} is damaged"):
            verify(tmp_path)
        assert path.read_bytes() == bytes(raw)  # nothing was changed, and the lock is free again


def test_an_unwritten_sector_of_a_frame_that_was_safe_is_damage(tmp_path):
    path = filled(tmp_path, frames=30)
    raw = bytearray(path.read_bytes())
    raw[1024:1536] = bytes(512)
    path.write_bytes(raw)
    with pytest.raises(JournalError, match="was written when it was on disk"):
        opened(tmp_path)


def test_a_flipped_byte_in_an_older_segment_is_found_by_reading_and_by_the_check(tmp_path):
    filled(tmp_path, frames=20, segment_bytes=1500)
    path = sorted(tmp_path.glob("*.journal"))[1]
    first = int(path.stem)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        raw = bytearray(whole)
        raw[place] ^= 1
        path.write_bytes(raw)
        with pytest.raises(JournalError, match=f"{path.name}: .* at byte .* is damaged"):
            verify(tmp_path)
        with pytest.raises(JournalError, match=f"{path.name}: "):
            read(tmp_path)
    path.write_bytes(whole)
    with opened(tmp_path) as journal:
        frames = journal.frames()
        for _ in range(first - 1):
            next(frames)
        raw = bytearray(whole)
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)  # the damage comes while the journal is open
        with pytest.raises(JournalError, match=path.name):
            list(frames)


def test_a_missing_segment_is_named(tmp_path):
    filled(tmp_path, frames=20, segment_bytes=1500)
    paths = sorted(tmp_path.glob("*.journal"))
    for path in paths[1:]:
        content = path.read_bytes()
        path.unlink()
        for check in (opened, verify):
            with pytest.raises(JournalError, match=f"{path.name}: this segment of the journal is missing"):
                check(tmp_path)
        path.write_bytes(content)
    paths[0].unlink()
    with opened(tmp_path) as journal, pytest.raises(JournalError, match="were retired"):
        list(journal.frames())


def test_an_older_segment_that_was_cut_is_refused(tmp_path):
    filled(tmp_path, frames=20, segment_bytes=1500)
    path = sorted(tmp_path.glob("*.journal"))[1]
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        for check in (opened, verify):
            with pytest.raises(JournalError, match=path.name):
                check(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 31, 32])
def test_a_crash_while_a_segment_is_started_loses_nothing(tmp_path, size):
    path = crashed(tmp_path, frames=3)
    following = tmp_path / "0000000004.journal"
    with opened(tmp_path / "third", segment_bytes=1) as journal:
        for number in range(4):
            journal.append([Draft("events", rows(number))])
    header = (tmp_path / "third" / following.name).read_bytes()[:32]
    following.write_bytes(header[:size])
    assert verify(tmp_path).last == 3
    with opened(tmp_path) as journal:
        assert journal.append([Draft("events", rows(7))]) == 4
        assert firsts(journal.frames()) == [0, 1, 2, 7]
    assert not following.exists()
    assert path.exists()


def test_a_journal_of_the_first_version_is_refused_with_the_fix(tmp_path):
    (tmp_path / "events.journal").write_bytes(b"SJ01")
    for check in (opened, verify):
        with pytest.raises(JournalError, match="empty data directory"):
            check(tmp_path)


def test_a_second_process_cannot_open_it(tmp_path):
    with opened(tmp_path):
        code = f"import pathlib, member_node.streams.journal as j; j.Journal(pathlib.Path({str(tmp_path)!r}))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert "another process has this journal open" in ran.stderr
    opened(tmp_path).close()


def test_a_closed_journal_takes_nothing(tmp_path):
    journal = opened(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.append([Draft("events", rows(1))])


def test_threads_that_wait_together_share_an_fsync(tmp_path, monkeypatch):
    calls, gate = [], threading.Event()
    real = os.fdatasync

    def slow(descriptor):
        calls.append(descriptor)
        gate.wait(10)
        real(descriptor)

    with opened(tmp_path) as journal:
        monkeypatch.setattr(os, "fdatasync", slow)
        threads = [
            threading.Thread(target=lambda n=n: journal.append([Draft("events", rows(n))])) for n in range(16)
        ]
        for thread in threads:
            thread.start()
        while journal.last_sequence < 16:
            pass  # all have appended, the first waits in its fsync
        assert journal.durable_sequence == 0
        gate.set()
        for thread in threads:
            thread.join()
        assert journal.durable_sequence == 16
        assert len(calls) == 2
        assert sorted(firsts(journal.frames())) == list(range(16))
        monkeypatch.undo()


def test_a_failed_fsync_stops_the_journal_and_leaves_nothing_that_was_not_safe(tmp_path, monkeypatch, caplog):
    def failing(descriptor):
        raise OSError(errno.EIO, "the disk is gone")

    journal = opened(tmp_path)
    journal.append([Draft("events", rows(1))])
    journal.append([Draft("events", rows(2))], sync=False)
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(JournalError, match=r"frames 2 to 3 were not accepted.*restart the member node"):
        journal.append([Draft("verdicts", rows(2))])
    monkeypatch.undo()
    assert "the disk is gone" in caplog.text
    for call in (journal.sync, lambda: journal.append([Draft("events", rows(3))]), lambda: journal.retire(2)):
        with pytest.raises(JournalError, match="restart the member node"):
            call()
    journal.close()
    assert firsts(read(tmp_path)) == [1]


def full_at(limit):
    """Make files of this process end at ``limit`` bytes, as a full disk would (EFBIG instead of ENOSPC)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_refuses_an_append_whole_at_every_byte(tmp_path):
    with opened(tmp_path) as journal:
        journal.append([Draft("events", rows(1))])
        size = journal.nbytes
        for more in range(0, 300, 13):
            restore = full_at(size + more)
            try:
                with pytest.raises(JournalError, match="nothing was accepted"):
                    journal.append([Draft("outcomes", rows(2)), Draft("events", rows(*range(50)))])
            finally:
                restore()
            assert (tmp_path / FIRST).stat().st_size == size
            assert journal.last_sequence == 1
        assert journal.append([Draft("events", rows(4))]) == 2
        assert firsts(journal.frames()) == [1, 4]


def test_a_full_disk_while_a_segment_is_started(tmp_path):
    with opened(tmp_path, segment_bytes=600) as journal:
        journal.append([Draft("events", rows(*range(40)))])
        size = journal.nbytes
        for limit in (0, 20, size, size + 10):
            restore = full_at(limit)
            try:
                with pytest.raises(JournalError, match="next segment cannot be started"):
                    journal.append([Draft("events", rows(2))])
            finally:
                restore()
            assert len(list(tmp_path.glob("*.journal"))) == 1
        assert journal.append([Draft("events", rows(2))]) == 2
        assert len(list(tmp_path.glob("*.journal"))) == 2
    assert firsts(read(tmp_path)) == [0, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB of its own; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no file system of its own here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def append_until_refused(journal, **how):
    for count in range(1000):
        try:
            journal.append([Draft("events", rows(*range(1000)))], **how)
        except JournalError as error:
            return count, str(error)
    raise AssertionError("the disk never filled")


def test_a_disk_that_is_really_full(small_disk):
    directory = small_disk / "journal"
    with Journal(directory, reserve_bytes=64 * 1024, segment_bytes=32 * 1024) as journal:
        accepted, error = append_until_refused(journal, sync=False)
        assert accepted > 10
        assert "are kept to finish what was accepted" in error
        finished, error = append_until_refused(journal, finishing=True)
        assert finished > 3
        assert "No space left on device; nothing was accepted" in error.replace("[Errno 28] ", "")
        assert journal.last_sequence == journal.durable_sequence == accepted + finished
        assert journal.retire(journal.last_sequence // 2) > 0
        last = journal.append([Draft("verdicts", rows(*range(1000)))], finishing=True)
        assert last == accepted + finished + 1
    assert verify(directory).last == last


def test_a_limit_on_drafts_and_on_bytes(tmp_path, monkeypatch):
    with opened(tmp_path) as journal:
        with pytest.raises(JournalError, match="too many"):
            journal.append([Draft("events", rows(1))] * 70_000)
        monkeypatch.setattr(journal_module, "MAX_PAYLOAD", 100)
        with pytest.raises(JournalError, match="too large"):
            journal.append([Draft("events", rows(1))])
        monkeypatch.undo()
        assert journal.append([Draft("events", rows(1))]) == 1
