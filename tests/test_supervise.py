"""Processes that are kept running, seen from their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from eventkeel.supervise import Happening, Seat, Supervisor

PATIENCE = 20.0


def python(name: str, code: str) -> Seat:
    return Seat(name, [sys.executable, "-c", code])


def stubborn(ready: Path) -> Seat:
    """Says that it is ready, and ignores being asked to stop."""
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(60)"
    return python("stubborn", code)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


class Kept:
    """A supervisor in a task, and what it told."""

    def __init__(self, *seats: Seat, patience: float = PATIENCE) -> None:
        self.told: list[Happening] = []
        self.supervisor = Supervisor(seats, on_event=self.told.append, patience=patience)
        self.running = asyncio.ensure_future(self.supervisor.run())

    def kinds(self, name: str = "") -> list[str]:
        return [one.kind for one in self.told if not name or one.name == name]


async def test_what_keeps_failing_is_started_again_ever_more_slowly() -> None:
    kept = Kept(python("a", "raise SystemExit(1)"))
    await until(lambda: kept.kinds().count("started") == 4)
    kept.supervisor.stop()
    await kept.running
    pauses = [one.pause for one in kept.told if one.kind == "ended" and one.pause is not None]
    assert pauses[:3] == [0.1, 0.2, 0.4]


async def test_what_ends_well_is_started_again_at_once() -> None:
    kept = Kept(python("a", "pass"))
    await until(lambda: kept.kinds().count("started") == 4)
    kept.supervisor.stop()
    assert await kept.running == 0
    assert {one.pause for one in kept.told if one.kind == "ended"} <= {0.1, None}


async def test_a_refused_configuration_stops_everything_with_its_code() -> None:
    kept = Kept(python("well", "import time; time.sleep(60)"), python("wrong", "raise SystemExit(2)"))
    assert await asyncio.wait_for(kept.running, PATIENCE) == 2
    assert kept.kinds("wrong") == ["started", "refused"]
    assert kept.kinds("well") == ["started", "ended"]


async def test_a_second_request_kills_what_does_not_stop(tmp_path: Path) -> None:
    kept = Kept(stubborn(tmp_path / "ready"))
    await until((tmp_path / "ready").exists)
    kept.supervisor.stop()
    kept.supervisor.stop()  # an echo of the first: shells send a signal to us and to our group
    assert "killed" not in kept.kinds()
    await asyncio.sleep(0.6)
    kept.supervisor.stop()
    assert await kept.running == 1
    assert kept.told[-1].code == -signal.SIGKILL


async def test_what_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    kept = Kept(stubborn(tmp_path / "ready"), patience=0.2)
    await until((tmp_path / "ready").exists)
    kept.supervisor.stop()
    assert await kept.running == 1
    assert "killed" in kept.kinds()


async def test_a_stopped_process_is_woken_to_end(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    kept = Kept(python("a", f"import time; open({str(ready)!r}, 'w'); time.sleep(60)"))
    await until(ready.exists)
    pid = kept.told[0].pid
    os.kill(pid, signal.SIGSTOP)
    kept.supervisor.stop()
    assert await kept.running == 0


async def test_a_child_drains_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "from eventkeel.supervise import end_with_parent\n"
        "signal.signal(15, lambda *_: sys.exit(7))\n"
        "end_with_parent()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)
    assert child.stdin is not None
    assert child.stdout is not None
    assert await child.stdout.readline() == b"ready\n"
    child.stdin.close()
    assert await asyncio.wait_for(child.wait(), PATIENCE) == 7


def test_what_happens_reads_as_a_line() -> None:
    lines = [
        str(Happening("started", "payments/1", 12)),
        str(Happening("ended", "payments/1", 12, -9, 0.1)),
        str(Happening("ended", "payments/1", 12, 3)),
    ]
    assert lines == [
        "[payments/1] pid 12",
        "[payments/1] pid 12 ended by SIGKILL; again in 0.1 s",
        "[payments/1] pid 12 ended with exit code 3",
    ]
