"""Adding and decrypting a cohort's contributions in a child process that may die for their bytes.

SEAL is C++ and parses bytes other banks made. Bytes that crash it kill this process of its own, and the parties whose
bytes do that are named. What holds beyond: the child starts without the node's environment and open files, so the
operator token and the connections of the node are not in it. After its imports it can open nothing more, neither file
nor socket (there is no descriptor left to give out), write to no file, gain no rights by running another program, and
it keeps to 4 GiB of memory and no core dump. What does not hold: it runs as the same user on the same kernel, without
a filter on system calls; it may start threads, since TenSEAL starts one with each key, and therefore processes; and it
has the inquiry's own secret key. So bytes that take it over could send signals to the node, or read its memory where
one process of a user may trace another (``kernel.yama.ptrace_scope`` 0).

Run as ``python -m member_node.compute.decryption`` it is the child: framed MessagePack over its standard input and
output, one answer per question, end of input ends it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from crypto.errors import CryptoError, InvalidEncodingError, OutOfRangeError
from crypto.he.envelope import check_contributions
from crypto.he.parameters import P

if TYPE_CHECKING:
    from crypto.he.contexts import RequesterKey

# Twenty contributions of the longest vector are 350 MB; NumPy and SEAL reserve some hundred more.
MEMORY_LIMIT_BYTES = 4 * 2**30
DEFAULT_TIMEOUT_SECONDS = 120.0
PR_SET_NO_NEW_PRIVS = 38
_HEADER = struct.Struct("<Q")
_MAX_FRAME_BYTES = 2**31
_FAULTS: dict[str, type[CryptoError]] = {
    "encoding": InvalidEncodingError,
    "range": OutOfRangeError,
}


class DecryptionProcessError(CryptoError):
    """The child died or did not answer in time; ``parties`` are those whose contribution does that on its own."""

    def __init__(self, message: str, parties: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.parties = tuple(parties)


class _Question(msgspec.Struct, frozen=True):
    """``only_parse`` answers whether the contributions can be read at all."""

    key: bytes
    contributions: dict[str, list[bytes]]
    length: int
    bound: int
    only_parse: bool = False


class _Answer(msgspec.Struct, frozen=True):
    """``sums``: little-endian int64. ``fault`` is empty, or a key of ``_FAULTS``."""

    sums: bytes = b""
    fault: str = ""
    message: str = ""


class DecryptionChild:
    """Owns one child process, started when first needed, restarted after a crash. Thread-safe; close it."""

    def __init__(self, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self._timeout = timeout_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DecryptionChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decrypt_sum(
        self,
        key: bytes,
        contributions: Mapping[str, Sequence[bytes]],
        length: int,
        *,
        bound: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """What :func:`crypto.he.decryption.decrypt_sum` returns and raises, computed in the child.

        ``key``: bytes of ``RequesterKey.to_bytes``. ``contributions``: ciphertexts by party, signatures verified.
        DecryptionProcessError when the child dies or is not done in time, naming the parties whose bytes cause it.
        """
        check_contributions(contributions, length)
        plain = {party: list(ciphertexts) for party, ciphertexts in contributions.items()}
        question = _Question(key, plain, length, P - 1 if bound is None else bound)
        with self._lock:
            try:
                answer = self._ask(question)
            except DecryptionProcessError as error:
                guilty = [party for party in plain if self._kills(question, party)]
                blame = f"; the contribution of {', '.join(guilty)} causes it" if guilty else ""
                raise DecryptionProcessError(f"{error}{blame}", guilty) from error
        if answer.fault:
            raise _FAULTS.get(answer.fault, CryptoError)(answer.message)
        sums = np.frombuffer(answer.sums, dtype="<i8").astype(np.int64)
        if len(sums) != length:
            raise DecryptionProcessError(
                f"the decryption process answered {len(sums)} sums instead of {length}"
            )
        return sums

    def start(self) -> None:
        """Start the child now, so that the first inquiry does not wait for its imports (about half a second)."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            self._stop()

    @property
    def process_id(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    def _kills(self, question: _Question, party: str) -> bool:
        alone = msgspec.structs.replace(
            question, contributions={party: question.contributions[party]}, only_parse=True
        )
        try:
            self._ask(alone)
        except DecryptionProcessError:
            return True
        return False

    def _ask(self, question: _Question) -> _Answer:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write_frame(process.stdin, msgspec.msgpack.encode(question))
            return msgspec.msgpack.decode(self._read_answer(process.stdout), type=_Answer)
        except (OSError, EOFError, TimeoutError, msgspec.DecodeError) as error:
            late = isinstance(error, TimeoutError)
            code = self._stop()
            reason = f"did not answer in {self._timeout:g} s" if late else f"ended with status {code}"
            raise DecryptionProcessError(f"the decryption process {reason}") from error

    def _read_answer(self, source: IO[bytes]) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                raise TimeoutError
        return _read_frame(source)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "member_node.compute.decryption"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        return self._process

    def _stop(self) -> int | None:
        """Kill and reap the child; its exit status (negative: signal), None if there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # what was still buffered for a child that is gone
        try:
            # A closed input ends an idle child at once; one that is still busy is no use to anybody.
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _write_frame(sink: IO[bytes], payload: bytes) -> None:
    sink.write(_HEADER.pack(len(payload)))
    sink.write(payload)
    sink.flush()


def _read_frame(source: IO[bytes]) -> bytes:
    header = _read_exactly(source, _HEADER.size)
    (size,) = _HEADER.unpack(header)
    if size > _MAX_FRAME_BYTES:
        raise EOFError(f"a frame of {size} bytes")
    return _read_exactly(source, size)


def _read_exactly(source: IO[bytes], size: int) -> bytes:
    payload = source.read(size)
    if len(payload) != size:
        raise EOFError("the stream ended inside a frame")
    return payload


@lru_cache(maxsize=1)
def _load_key(stored: bytes) -> RequesterKey:
    """Loading costs as much as decrypting 25,000 integers, and an inquiry may be asked again."""
    from crypto.he.contexts import RequesterKey

    return RequesterKey.from_bytes(stored)


def _answer(question: _Question) -> _Answer:
    """The child's work on one question."""
    # Only the child needs TenSEAL: the parent neither loads nor runs it for this.
    from crypto.he.decryption import check_one_contribution, decrypt_sum

    try:
        key = _load_key(question.key)
        if question.only_parse:
            for ciphertexts in question.contributions.values():
                check_one_contribution(key, ciphertexts, question.length)
            return _Answer()
        sums = decrypt_sum(key, question.contributions, question.length, bound=question.bound)
        return _Answer(sums=sums.astype("<i8").tobytes())
    except InvalidEncodingError as error:
        return _Answer(fault="encoding", message=str(error))
    except OutOfRangeError as error:
        return _Answer(fault="range", message=str(error))


def _give_up_rights() -> None:
    """Take from this process what its work does not need; call it when everything is imported and opened."""
    if sys.platform == "linux":
        # The right to gain rights, for good; a kernel without it leaves things as they are.
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, MEMORY_LIMIT_BYTES),
        # Not one more than are open now.
        (resource.RLIMIT_NOFILE, 1 + max(_open_descriptors())),
    ):
        resource.setrlimit(limit, (value, value))


def _open_descriptors() -> list[int]:
    return [number for number in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if _is_open(number)]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _serve() -> None:
    """The child: everything it needs is loaded and opened before it gives up the rest."""
    import crypto.he.decryption  # noqa: F401 - with TenSEAL, which opens files when it is imported

    # TenSEAL prints warnings to standard output, which carries the answers: move those out of its reach.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    questions = sys.stdin.buffer
    _give_up_rights()
    while True:
        try:
            frame = _read_frame(questions)
        except EOFError:
            return
        _write_frame(answers, msgspec.msgpack.encode(_answer(msgspec.msgpack.decode(frame, type=_Question))))


if __name__ == "__main__":
    _serve()
