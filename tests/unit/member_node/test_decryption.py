"""The decryption child: right answers, crashes survived and attributed, no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from crypto.errors import InvalidEncodingError, OutOfRangeError
from crypto.he.contexts import RequesterKey, load_public_context
from crypto.he.contributions import encrypt_vector
from member_node.compute import decryption
from member_node.compute.decryption import DecryptionChild, DecryptionProcessError

KEY = RequesterKey.generate()
PUBLIC = load_public_context(KEY.public_context())


@pytest.fixture(scope="module")
def child() -> Iterator[DecryptionChild]:
    with DecryptionChild() as started:
        yield started


def contributions(*rows: list[int]) -> dict[str, list[bytes]]:
    return {
        f"bank-{index}": encrypt_vector(PUBLIC, np.array(row, dtype=np.int64))
        for index, row in enumerate(rows)
    }


def test_adds_and_decrypts(child: DecryptionChild) -> None:
    sums = child.decrypt_sum(KEY.to_bytes(), contributions([1, 2], [10, 20], [5, 5]), 2)
    assert sums.tolist() == [16, 27]
    assert sums.dtype == np.int64
    first = child.process_id
    long = contributions(list(range(9000)), list(range(9000)))
    assert child.decrypt_sum(KEY.to_bytes(), long, 9000).tolist() == [2 * value for value in range(9000)]
    assert child.process_id == first


def test_faults_keep_their_type(child: DecryptionChild) -> None:
    with pytest.raises(OutOfRangeError, match="exceed"):
        child.decrypt_sum(KEY.to_bytes(), contributions([100]), 1, bound=50)
    with pytest.raises(InvalidEncodingError, match="bank-0"):
        child.decrypt_sum(KEY.to_bytes(), {"bank-0": [b"nonsense"]}, 1)
    with pytest.raises(InvalidEncodingError, match="cannot read"):
        child.decrypt_sum(b"not a key", contributions([1]), 1)
    good = contributions([1])["bank-0"][0]
    broken = good[:40] + bytes(64) + good[104:]
    with pytest.raises(InvalidEncodingError, match="not a ciphertext"):
        child.decrypt_sum(KEY.to_bytes(), {"bank-0": [good], "bank-1": [broken]}, 1)
    assert child.decrypt_sum(KEY.to_bytes(), contributions([3]), 1).tolist() == [3]


def test_a_killed_child_is_replaced(child: DecryptionChild) -> None:
    child.start()
    killed = child.process_id
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert child.decrypt_sum(KEY.to_bytes(), contributions([3]), 1).tolist() == [3]
    assert child.process_id != killed


def test_crash_and_timeout_are_attributed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in child that dies on bank-1's bytes: what a hole in the parser would look like."""
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, os, time\n"
        "from member_node.compute import decryption as d\n"
        "import msgspec\n"
        "while True:\n"
        "    try: q = msgspec.msgpack.decode(d._read_frame(sys.stdin.buffer), type=d._Question)\n"
        "    except EOFError: break\n"
        "    if 'bank-1' in q.contributions: os.abort()\n"
        "    if 'bank-2' in q.contributions: time.sleep(60)\n"
        "    d._write_frame(sys.stdout.buffer, msgspec.msgpack.encode(d._answer(q)))\n"
    )
    real = decryption.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return real([command[0], "-I", str(script)], **options)

    monkeypatch.setattr(decryption.subprocess, "Popen", popen)
    with DecryptionChild(timeout_seconds=2) as child:
        sent = contributions([1], [2])
        with pytest.raises(DecryptionProcessError, match=r"status -6; the contribution of bank-1") as caught:
            child.decrypt_sum(KEY.to_bytes(), sent, 1)
        assert caught.value.parties == ("bank-1",)
        sent["bank-2"] = sent.pop("bank-1")
        with pytest.raises(DecryptionProcessError, match=r"did not answer in 2 s.*bank-2"):
            child.decrypt_sum(KEY.to_bytes(), sent, 1)
        assert child.decrypt_sum(KEY.to_bytes(), contributions([4]), 1).tolist() == [4]


def test_close_leaves_no_process() -> None:
    child = DecryptionChild()
    child.close()
    child.start()
    process = child.process_id
    assert process is not None
    child.close()
    assert child.process_id is None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_child_sees_no_environment_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_TOKEN", "very-secret")
    with DecryptionChild() as child:
        child.decrypt_sum(KEY.to_bytes(), contributions([4]), 1)
        environment = Path(f"/proc/{child.process_id}/environ").read_bytes()
        limits = Path(f"/proc/{child.process_id}/limits").read_text()
    assert b"very-secret" not in environment
    assert "Max core file size        0" in limits


def test_child_can_open_nothing_more() -> None:
    with DecryptionChild() as child:
        child.decrypt_sum(KEY.to_bytes(), contributions([4]), 1)
        here = Path(f"/proc/{child.process_id}")
        limits = {line[:25].strip(): line[25:].split() for line in (here / "limits").read_text().splitlines()}
        open_now = [int(each.name) for each in (here / "fd").iterdir()]
        status = (here / "status").read_text()
    assert limits["Max open files"][:2] == [str(max(open_now) + 1)] * 2
    assert sorted(open_now) == list(range(max(open_now) + 1))
    assert "NoNewPrivs:\t1" in status


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_work_can_be_done_by_a_user_without_rights() -> None:
    """Limits that do not bind root must not stop the child of a node that runs as an ordinary user."""
    script = (
        "import os, sys\n"
        "import crypto.he.decryption, msgspec\n"
        "from member_node.compute import decryption as d\n"
        "question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=d._Question)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "d._give_up_rights()\n"
        "answer = d._answer(question)\n"
        "assert len(answer.sums) == 16, answer.message\n"
    )
    question = decryption._Question(KEY.to_bytes(), contributions([1, 2], [3, 4]), 2, 100)
    subprocess.run(
        [sys.executable, "-c", script], input=msgspec.msgpack.encode(question), check=True, timeout=60
    )


def test_giving_up_rights_leaves_no_file_and_no_socket() -> None:
    script = (
        "import errno, socket\n"
        "from member_node.compute import decryption as d\n"
        "d._give_up_rights()\n"
        "for attempt in (lambda: open('/etc/hostname'), socket.socket):\n"
        "    try: attempt()\n"
        "    except OSError as error: assert error.errno == errno.EMFILE\n"
        "    else: raise SystemExit('it was opened')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
