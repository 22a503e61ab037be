"""The journal: whole frames or nothing, torn tails set aside, damage in the middle refused."""

import logging
import struct
import subprocess
import sys

import pyarrow as pa
import pytest

from member_node.streams.journal import FILE_NAME, Draft, Journal, JournalError


def rows(*values):
    return pa.record_batch({"event_id": pa.array(values, type=pa.int64())})


def filled(tmp_path, frames=3):
    with Journal(tmp_path) as journal:
        for number in range(frames):
            journal.append([Draft("events", rows(number, number + 10), {"replayed": str(number)})])
    return tmp_path / FILE_NAME


def read(tmp_path):
    with Journal(tmp_path) as journal:
        return list(journal.frames())


def test_frames_come_back_in_order_with_their_facts(tmp_path):
    filled(tmp_path)
    frames = read(tmp_path)
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert [frame.kind for frame in frames] == ["events"] * 3
    assert [frame.facts for frame in frames] == [{"replayed": "0"}, {"replayed": "1"}, {"replayed": "2"}]
    assert frames[2].rows.equals(rows(2, 12))


def test_several_drafts_are_one_write(tmp_path):
    with Journal(tmp_path) as journal:
        assert journal.append([Draft("outcomes", rows(1)), Draft("events", rows(2))]) == 2
        assert journal.append([]) == 2
        assert [frame.kind for frame in journal.frames()] == ["outcomes", "events"]


@pytest.mark.parametrize("cut", [1, 20, 27, 28, 29, 200])
def test_a_torn_tail_is_set_aside_with_a_warning(tmp_path, caplog, cut):
    path = filled(tmp_path)
    size = path.stat().st_size
    with open(path, "rb+") as file:
        file.truncate(size - cut)
    with caplog.at_level(logging.WARNING), Journal(tmp_path) as journal:
        assert journal.last_sequence == 2
        assert "frame 3 was cut off" in caplog.text
        torn = path.with_name(f"{FILE_NAME}.torn-3")
        assert torn.exists()
        journal.append([Draft("events", rows(99))])
        assert [frame.rows.column(0).to_pylist() for frame in journal.frames()] == [[0, 10], [1, 11], [99]]


def test_zeros_where_the_last_frame_should_be_are_a_torn_tail(tmp_path):
    path = filled(tmp_path, frames=1)
    with open(path, "ab") as file:
        file.write(bytes(4096))
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize("frame", [1, 2])
@pytest.mark.parametrize("place", ["magic", "sequence", "length", "crc", "payload"])
def test_damage_in_the_middle_is_refused(tmp_path, frame, place):
    path = filled(tmp_path)
    raw = bytearray(path.read_bytes())
    start = 0
    for _ in range(frame - 1):
        start += 28 + struct.unpack_from("<I", raw, start + 12)[0]
    offset = {"magic": 0, "sequence": 4, "length": 12, "crc": 16, "payload": 60}[place]
    raw[start + offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(JournalError, match=f"frame {frame} at byte {start} is damaged"):
        Journal(tmp_path)
    # Nothing was changed, and the lock is free again.
    assert path.read_bytes() == bytes(raw)
    with pytest.raises(JournalError, match="restore the file"):
        Journal(tmp_path)


def test_a_second_process_cannot_open_it(tmp_path):
    with Journal(tmp_path):
        code = f"import pathlib, member_node.streams.journal as j; j.Journal(pathlib.Path({str(tmp_path)!r}))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert "another process has this journal open" in ran.stderr


def test_damage_found_while_reading_is_refused(tmp_path):
    path = filled(tmp_path)
    with Journal(tmp_path) as journal:
        raw = bytearray(path.read_bytes())
        raw[60] ^= 1
        path.write_bytes(raw)
        with pytest.raises(JournalError, match="frame 1"):
            list(journal.frames())
