"""Real processes for the benchmarks: started by the command a user types, stopped as a supervisor would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

PATIENCE = 300.0
"""Seconds that a child may take."""


def command() -> str:
    """``eventkeel`` of the environment that runs this."""
    found = Path(sys.executable).parent / "eventkeel"
    if not found.exists():
        raise SystemExit(f"{found} does not exist: run scripts/setup, then .venv/bin/python -m benchmarks.…")
    return str(found)


@contextlib.contextmanager
def running(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """``eventkeel ARGUMENTS`` in the background; its output goes to ``log``, which is shown if it died.

    Where broker and store are is said by the arguments, never by the environment of whoever measures."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("EVENTKEEL_BROKER", "EVENTKEEL_STORE")
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            [command(), *arguments],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**inherited, **(environment or {})},
        )
        try:
            yield child
        finally:
            died = child.poll()
            if died is None:
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(30)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            else:
                print(log.read_text("utf-8", "replace")[-4000:], file=sys.stderr)
                print(f"eventkeel {' '.join(arguments)} ended with {died} while it was measured", file=sys.stderr)


def child(module: str, task: msgspec.Struct, tag: str) -> bytes:
    """Run ``module`` with a task on its standard input, and with its own topics; the last line that it says."""
    told = msgspec.json.encode(task)
    ended = subprocess.run(
        [sys.executable, "-m", module, "--task"],
        input=told,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        env={**os.environ, "EVENTKEEL_BENCHMARK_TAG": tag},
    )
    if ended.returncode:
        raise SystemExit(f"{module} {told.decode()} ended with {ended.returncode}")
    return ended.stdout.splitlines()[-1]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60.0, every: float = 0.05) -> None:
    """Raises SystemExit that says what did not happen."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(every)


def family(pid: int) -> list[int]:
    """A process and all below it (Linux; elsewhere only itself)."""
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pids: list[int]) -> float | None:
    """CPU time used so far by these processes, or None where /proc does not tell (macOS)."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        total += (int(fields[11]) + int(fields[12])) / tick
    return total
