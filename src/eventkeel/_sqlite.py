"""What the two SQLite leaves share: opening a file safely, waiting for its lock, waking its readers.

Every file is opened through apsw, which brings a SQLite with the WAL-reset fix (3.51.3): older ones can
lose pages when two connections checkpoint at once (sqlite.org/wal.html, "The WAL-Reset Bug").
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from eventkeel.errors import ConfigurationError, StoreUnavailable

FIXED_WAL_RESET = (3, 51, 3)
NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph", "glusterfs"})
LOCK_PATIENCE = 30.0
"""Seconds to wait for another writer before the unit is given up as retryable."""

_PRAGMAS = (
    "pragma synchronous=full",
    "pragma foreign_keys=on",
    "pragma trusted_schema=off",
    "pragma wal_autocheckpoint=1000",
    "pragma journal_size_limit=67108864",
    "pragma mmap_size=0",
    "pragma cache_size=-16384",
)

_ELSEWHERE = ". --data, --broker and --store say where the files are"


class Busy(StoreUnavailable):
    """Another process held the file's write lock for longer than we wait."""


def connect(path: str | Path, *, readonly: bool = False) -> apsw.Connection:
    """Open ``path`` (made if missing) with the settings that survive power loss.

    Raises ConfigurationError where there can be no database at ``path``, on a network file system, where
    SQLite's locks do not hold, and where the SQLite below apsw is older than the fix for the WAL-reset bug.
    """
    if tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) < FIXED_WAL_RESET:
        raise ConfigurationError(
            f"apsw brings SQLite {apsw.sqlite_lib_version()}, which can lose pages with several processes on one "
            "file; install apsw 3.51.3 or newer"
        )
    path = Path(path)
    if readonly:
        return apsw.Connection(f"file:{path}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the folder {path.parent} cannot be made: {error.strerror}{_ELSEWHERE}") from error
    _refuse_network_file_system(path)
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file in it{_ELSEWHERE}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written by this user{_ELSEWHERE}")
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    try:
        _switch_to_wal(connection)
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except apsw.NotADBError as error:
        connection.close()
        raise ConfigurationError(f"{path} is no SQLite database{_ELSEWHERE}") from error
    if sys.platform == "darwin":  # pragma: no cover - fsync on macOS does not reach the disk without it
        connection.execute("pragma fullfsync=on")
        connection.execute("pragma checkpoint_fullfsync=on")
    connection.set_busy_timeout(0)  # from here on we wait ourselves: SQLite's own sleeps are long and unfair
    return connection


def _switch_to_wal(connection: apsw.Connection) -> None:
    """Several processes may open a new file at once, and SQLite's own waiting does not cover this switch."""
    deadline, tries = time.monotonic() + LOCK_PATIENCE, 0
    while True:
        try:
            connection.execute("pragma journal_mode=wal")
            return
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
        tries += 1
        time.sleep(_pause(tries))


def _refuse_network_file_system(path: Path) -> None:
    try:
        mounts = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    here, best = str(path.parent.resolve()), ("", "")
    for line in mounts:
        _, mount, kind, *_ = line.split(" ")
        if (here == mount or here.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best[0]):
            best = (mount, kind)
    if best[1] in NETWORK_FILESYSTEMS:
        raise ConfigurationError(
            f"{path} lies on a network file system ({best[1]}), where SQLite's locks do not hold; "
            "choose a local folder with --data"
        )


def _pause(tries: int) -> float:
    """Short and random: a fair share of the lock needs no queue when nobody sleeps long."""
    return random.uniform(0.0002, min(0.004, 0.0006 * tries))


def try_begin(connection: apsw.Connection) -> bool:
    """``begin immediate``, once. False where another writer has the lock."""
    try:
        connection.execute("begin immediate")
    except apsw.BusyError:
        return False
    return True


def begin_immediate(connection: apsw.Connection, patience: float = LOCK_PATIENCE) -> None:
    """Open a write transaction from a thread; raises Busy after ``patience`` seconds."""
    deadline, tries = time.monotonic() + patience, 0
    while not try_begin(connection):
        tries += 1
        if time.monotonic() > deadline:
            raise Busy(f"another process has held {connection.filename} for {patience:.0f} s")
        time.sleep(_pause(tries))


async def begin_immediate_async(connection: apsw.Connection, patience: float = LOCK_PATIENCE) -> None:
    """Open a write transaction without blocking the event loop; raises Busy after ``patience`` seconds."""
    if try_begin(connection):
        return
    deadline, tries = time.monotonic() + patience, 0
    while True:
        tries += 1
        await asyncio.sleep(_pause(tries))
        if try_begin(connection):
            return
        if time.monotonic() > deadline:
            raise Busy(f"another process has held {connection.filename} for {patience:.0f} s")


class Wake:
    """Datagrams beside a file: a commit wakes the processes that wait for it.

    A hint only: a datagram can be lost, so every reader keeps a slow poll as its net.
    """

    def __init__(self, path: str | Path) -> None:
        real = os.path.realpath(path)
        self.folder = f"{real}-wake"
        if len(os.fsencode(self.folder)) > 70:  # a socket's path may have 104 bytes on macOS
            digest = hashlib.blake2b(real.encode(), digest_size=8).hexdigest()
            self.folder = os.path.join(tempfile.gettempdir(), f"eventkeel-{os.getuid()}", digest)
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._out.setblocking(False)
        self._in: socket.socket | None = None
        self._name = ""
        self._others: list[str] = []
        self._changed = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop whenever somebody notifies. Bursts are one call."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self._name = os.path.join(self.folder, f"{os.getpid()}-{os.urandom(3).hex()}.sock")
        self._in = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in.setblocking(False)
        self._in.bind(self._name)
        self._loop = loop
        incoming = self._in

        def read() -> None:
            with contextlib.suppress(BlockingIOError, OSError):
                while incoming.recv(16):
                    pass
            callback()

        loop.add_reader(incoming, read)

    def _listeners(self) -> list[str]:
        """Sockets of the others. Listed anew when the folder has changed, or changed just before it was listed
        last (its time is coarse)."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed != self._changed:
                listed = time.time_ns()
                others = [os.path.join(self.folder, name) for name in os.listdir(self.folder)]
                self._others = [other for other in others if other != self._name]  # at once: threads notify too
                self._changed = changed if listed - changed > 100_000_000 else 0
        except OSError:
            return []
        return self._others

    def notify(self) -> None:
        """Wake every other listener of this file. Never raises, never waits."""
        for target in self._listeners():
            try:
                self._out.sendto(b"!", target)
            except BlockingIOError:
                pass  # its buffer is full: it is awake already
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    os.unlink(target)  # its process is gone
            except OSError:
                pass

    def close(self) -> None:
        """Stop listening. Twice is once."""
        if self._in is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._in)
            self._in.close()
            self._in = None
            with contextlib.suppress(OSError):
                os.unlink(self._name)
        self._out.close()
