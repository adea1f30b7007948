"""Processes by id and time of birth, so that a number used again by the system is never taken for ours."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

_PROC = Path("/proc")
_LINUX = (_PROC / "self" / "stat").exists()
_spawned: dict[int, subprocess.Popen[bytes]] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One process as the system sees it now."""

    pid: int
    parent: int
    state: str
    """``T`` when stopped by a signal."""
    born: str


def table() -> dict[int, Process]:
    """Every process that runs; those that ended and were not waited for are none."""
    for child in list(_spawned.values()):
        if child.poll() is not None:
            _spawned.pop(child.pid, None)
    found = _of_proc() if _LINUX else _of_ps()
    return {process.pid: process for process in found if not process.state.startswith(("Z", "X"))}


def _of_proc() -> list[Process]:
    found = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                rest = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found.append(Process(int(folder.name), int(rest[1]), rest[0], rest[19]))
    return found


def _of_ps() -> list[Process]:
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state=,lstart="], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(None, 3) for line in shown.splitlines()]
    return [Process(int(pid), int(parent), state, born.strip()) for pid, parent, state, born in lines]


def find(pid: int, born: str) -> Process | None:
    """The process that was started as ``pid`` at ``born``, when it still runs."""
    process = table().get(pid)
    return process if process is not None and process.born == born else None


def family(root: int) -> list[int]:
    """``root`` and all that descend from it, parents first; empty when it does not run."""
    running = table()
    if root not in running:
        return []
    children: dict[int, list[int]] = {}
    for process in running.values():
        children.setdefault(process.parent, []).append(process.pid)
    members = [root]
    for member in members:
        members += children.get(member, [])
    return members


def inside(folder: Path) -> list[int]:
    """Processes whose working folder is ``folder`` or below it: how children are found whose parent was killed."""
    if not _LINUX:
        return []
    found = []
    for pid in table():
        with contextlib.suppress(OSError):
            if Path(os.readlink(_PROC / str(pid) / "cwd")).is_relative_to(folder):
                found.append(pid)
    return found


def memory(pids: Iterable[int]) -> int:
    """Resident bytes of them together, shared pages counted once for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            if _LINUX:
                total += int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            else:
                shown = subprocess.run(
                    ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False
                ).stdout
                total += int(shown) * 1024
    return total


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """The signal to each that still runs."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until_gone(pids: Sequence[int], patience: float) -> bool:
    """Whether all of them ended in time."""
    deadline = time.monotonic() + patience
    while not table().keys().isdisjoint(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def freeze(members: Callable[[], list[int]]) -> list[int]:
    """Stops all of them, and those that they start while this goes on."""
    stopped: list[int] = []
    while fresh := [pid for pid in members() if pid not in stopped]:
        send(fresh, signal.SIGSTOP)
        stopped += fresh
    return stopped


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    folder: Path,
    environment: Mapping[str, str],
    account: pwd.struct_passwd | None = None,
) -> tuple[int, str]:
    """Starts it in a session of its own, so that it outlives this command and hears no Ctrl-C: pid and birth."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environment,
            start_new_session=True, user=account.pw_uid if account else None,
            group=account.pw_gid if account else None, extra_groups=[] if account else None,
        )  # fmt: skip
    _spawned[child.pid] = child
    process = table().get(child.pid)
    return child.pid, process.born if process is not None else "ended"


def run(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    account: pwd.struct_passwd | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; what it said is in ``stdout``."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env=environment, check=False, user=account.pw_uid if account else None,
        group=account.pw_gid if account else None, extra_groups=[] if account else None,
    )  # fmt: skip
