"""Where servers keep their things, and ports for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import tempfile
from pathlib import Path

from tools.realservers.errors import ServersError

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"


def default_home() -> Path:
    """$EVENTKEEL_SERVERS, or a folder in the temporary one that belongs to this checkout and this user."""
    if named := os.environ.get("EVENTKEEL_SERVERS"):
        return Path(named).absolute()
    checkout = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()).resolve() / f"eventkeel-servers-{os.getuid()}-{checkout}"


def cache() -> Path:
    """The user's folder for what can be had again, such as jars."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eventkeel"


def make(folder: Path) -> Path:
    """Makes the folder: others may pass through it, since servers run as users of their own, and not look into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServersError(f"{folder} belongs to somebody else; name another folder: EVENTKEEL_SERVERS=/some/where")
    folder.chmod(0o711)
    return folder


def open_to_others(folder: Path) -> bool:
    """Whether another user may pass through to it."""
    return all(step.stat().st_mode & 0o001 for step in [folder, *folder.parents])


def free_port() -> int:
    """A port that nobody listens on, outside the range from which the system gives ports to clients.

    A server that is down for a while must find its port again; and a client that knocks at a port in that range can,
    by chance, get the same one as its own and be connected with itself.
    """
    limit = 32768
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    highest = min(limit, 32768) if limit > 20000 else 32768
    for _ in range(200):
        port = random.randrange(15000, highest)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ServersError(f"no free port found between 15000 and {highest}")
