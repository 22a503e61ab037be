"""The bank's own Ray: on loopback, with its own token, started when first needed and gone without a trace.

Whoever reaches Ray's ports can run code, so a cluster never spans two banks: every listener is bound to 127.0.0.1 (and
this is checked after the start, not assumed), every call carries a token that only this process and its children
know, and the address is always explicit, because ``auto`` would join a neighbour's cluster.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

LOGGER = logging.getLogger(__name__)
OBJECT_STORE_BYTES = 128 * 2**20
# Ray puts Unix sockets below its folder, and their paths may not exceed 107 characters.
TEMPORARY_ROOT = "/tmp"  # noqa: S108 - short on purpose; the folder below it is made by mkdtemp with mode 0700
PREFIX = "sr-"
OWNER_FILE = "owner"
STOP_SECONDS = 4.0
_SIGACTION_BYTES = 512  # more than any C library's struct sigaction
# Read by Ray when it is imported (the first) or started; "cluster" off is what binds every listener to loopback.
_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_SETTINGS: Mapping[str, str] = {
    _LOOPBACK_SWITCH: "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_METRICS_COLLECTION": "1",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # errors are raised where the result is awaited, never printed
}
_REMOVED = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
_SET_BY_RAY = ("RAY_CLIENT_MODE", "PYTHONBREAKPOINT")


class RayClusterError(RuntimeError):
    """The bank's Ray could not be started safely, or was lost; the message says what to do."""


class RayCluster:
    """At most one in a process. Thread safe."""

    def __init__(self, *, cpus: int | None = None, object_store_bytes: int = OBJECT_STORE_BYTES) -> None:
        """``cpus``: how many tasks run at once (default: the machine's). Nothing is started yet."""
        self._cpus = cpus if cpus is not None else max(1, os.cpu_count() or 1)
        self._object_store_bytes = object_store_bytes
        self._lock = threading.RLock()
        self._folder: Path | None = None
        self._environment: dict[str, str | None] = {}
        self._functions: dict[Callable[..., Any], Any] = {}
        self._processes: list[psutil.Process] = []
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether Ray has been started."""
        return self._folder is not None

    @property
    def folder(self) -> Path | None:
        """Ray's folder, None while it is not running."""
        return self._folder

    def ray(self) -> Any:
        """The ``ray`` module, with the cluster started; raises :class:`RayClusterError`."""
        with self._lock:
            if self._folder is None:
                self._start_keeper()
            import ray

            return ray

    def map(self, function: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """Results of a top-level function in the order of the chunks, one task a chunk.

        What the function raises is raised here.
        """
        ray = self.ray()
        with self._lock:
            task = self._functions.setdefault(function, ray.remote(function))
        try:
            return list(ray.get([task.remote(chunk) for chunk in chunks]))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayError as error:
            raise RayClusterError(
                f"this bank's Ray failed: {type(error).__name__}; restart the member node"
            ) from error

    def stop(self) -> None:
        """End Ray's processes and remove its folder; harmless when it is not running."""
        with self._lock:
            if self._keeper is not None:
                self._stopping.set()
                self._keeper.join()
                self._keeper = None

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def _start_keeper(self) -> None:
        """Start Ray in a thread that lives as long as Ray does.

        Ray asks the kernel to end its processes with their parent, and for the kernel that is the *thread* that made
        them: started from a request's thread, Ray would die with it.
        """
        started = threading.Event()
        failures: list[BaseException] = []
        self._stopping.clear()

        def keep() -> None:
            try:
                self._start()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                failures.append(error)
                return
            finally:
                started.set()
            self._stopping.wait()
            self._stop()

        keeper = threading.Thread(target=keep, name="ray-keeper", daemon=True)
        keeper.start()
        started.wait()
        if failures:
            keeper.join()
            raise failures[0]
        self._keeper = keeper

    def _start(self) -> None:
        remove_abandoned(Path(TEMPORARY_ROOT))
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=TEMPORARY_ROOT))
        (self._folder / OWNER_FILE).write_text(_identity(psutil.Process()))
        self._set_environment()
        before = {process.pid for process in _children()}
        try:
            ray = _import_ray()
            # Ray opens its own folder to everybody, so it is one level below ours.
            with _own_signal_handlers():
                ray.init(
                    address="local",
                    num_cpus=self._cpus,
                    object_store_memory=self._object_store_bytes,
                    include_dashboard=False,
                    configure_logging=False,
                    log_to_driver=False,
                    _temp_dir=str(self._folder / "r"),
                )
            self._processes = [process for process in _children() if process.pid not in before]
            outside = outside_listeners(self._processes)
            if outside:
                raise RayClusterError(f"Ray listens outside loopback ({', '.join(outside)}); it was stopped")
        except BaseException:
            self._processes = [process for process in _children() if process.pid not in before]
            self._stop()
            raise
        LOGGER.info("started this bank's Ray on loopback with %d CPUs", self._cpus)

    def _stop(self) -> None:
        workers = [
            process
            for own in self._processes
            for process in _descendants(own)
            if process not in self._processes
        ]
        # Another cluster of this process is not ours to end.
        if "ray" in sys.modules and self._processes:
            sys.modules["ray"].shutdown()
        _wait_for([*self._processes, *workers])
        self._forget()

    def _set_environment(self) -> None:
        settings = {**_SETTINGS, "RAY_AUTH_TOKEN": _token()}
        self._environment = {name: os.environ.get(name) for name in (*settings, *_REMOVED, *_SET_BY_RAY)}
        os.environ.update(settings)
        for name in _REMOVED:
            os.environ.pop(name, None)

    def _forget(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}
        self._functions.clear()
        self._processes = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the process's handlers of SIGTERM and SIGINT.

    Ray's core installs one that prints a stack and dies, so a member node would end without closing anything. Python
    sets handlers in the main thread only, hence the C library's own call; the structure is saved and put back unread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    saved = {
        number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGTERM, signal.SIGINT)
    }
    for number, action in saved.items():
        if libc.sigaction(int(number), None, action):
            raise OSError(ctypes.get_errno(), "sigaction")
    try:
        yield
    finally:
        for number, action in saved.items():
            if libc.sigaction(int(number), action, None):
                raise OSError(ctypes.get_errno(), "sigaction")


@cache
def _token() -> str:
    """This process's secret: Ray's core reads it once, so a later cluster of the process must have the same."""
    return secrets.token_hex(32)


def _import_ray() -> Any:
    import ray
    from ray._private import ray_constants

    if ray_constants.ENABLE_RAY_CLUSTER:
        raise RayClusterError(
            f"ray was imported before this bank's cluster was made, without {_LOOPBACK_SWITCH}=0; "
            "import it through RayCluster only"
        )
    if ray.is_initialized():
        raise RayClusterError("this process is connected to a Ray cluster already; one bank has one cluster")
    return ray


def outside_listeners(processes: Sequence[psutil.Process]) -> list[str]:
    """Listening addresses of these processes that are not loopback, as ``name address:port``."""
    found: list[str] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status != psutil.CONN_LISTEN:
                    continue
                address = ip_address(connection.laddr.ip)
                mapped = getattr(address, "ipv4_mapped", None)
                if not (mapped or address).is_loopback:
                    found.append(f"{process.name()} {connection.laddr.ip}:{connection.laddr.port}")
    return found


def _children() -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process().children(recursive=True)
    return children


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _identity(process: psutil.Process) -> str:
    """A process for good: ids are used again, but not with the same time of birth."""
    return f"{process.pid} {process.create_time()}"


def remove_abandoned(root: Path) -> list[Path]:
    """Remove the folders of this user's clusters whose owner was killed before it could; those removed."""
    removed = []
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError):
            owner = (folder / OWNER_FILE).read_text()
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            try:
                alive = _identity(psutil.Process(int(owner.split()[0]))) == owner
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def _wait_for(processes: Sequence[psutil.Process]) -> None:
    """Wait until Ray's own processes are gone; end those that linger, each by its id."""
    _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            # Ray's agents notice late, under load much too late, that their raylet is gone.
            LOGGER.info("Ray's %s (pid %d) did not stop by itself", process.name(), process.pid)
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
