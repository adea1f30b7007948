"""Keeps processes running: starts them, starts again what ended, lets them drain when it is told to stop.

One process each, so that a crash, a leak or a blocked loop stays where it is. A child never outlives its
supervisor: each holds the reading end of a pipe as its standard input, which closes when the supervisor is
gone, however it went (``end_with_parent``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

REFUSED = 2
"""A child that exits with it was refused by its configuration: starting it again cannot help."""
STEADY = 10.0
"""A child that lived this many seconds was well: the next one is started without delay again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a child is started again: doubled each time while it keeps failing."""
PATIENCE = 28.0
"""Seconds that children get to drain: orchestrators kill everybody after 30."""

ECHO = 0.5
"""Seconds within which a second signal is the first one again: timeout(1) and shells send it to us and to our group."""


@dataclass(frozen=True)
class Seat:
    """A process that shall run. ``command`` has to exit with 2 where its configuration is refused."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Happening:
    """What became of a process; ``pause``: seconds until it is started again."""

    kind: Literal["started", "ended", "refused", "killed", "stopping"]
    name: str
    pid: int
    code: int | None = None
    pause: float | None = None

    def __str__(self) -> str:
        if self.kind == "started":
            return f"[{self.name}] pid {self.pid}"
        if self.kind == "stopping":
            return "stopping: every process finishes what it has begun (once more kills them)"
        if self.kind == "killed":
            return f"[{self.name}] pid {self.pid} has not stopped yet: killed"
        how = f"pid {self.pid} {_ending(self.code or 0)}"
        if self.kind == "refused":
            return f"[{self.name}] {how}: its configuration was refused, see above; stopping"
        return f"[{self.name}] {how}" + (f"; again in {self.pause:g} s" if self.pause is not None else "")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


class Supervisor:
    """Runs the processes of ``seats`` until ``stop`` is called. ``on_event`` hears of each start and end."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        environ: Mapping[str, str] | None = None,
        on_event: Callable[[Happening], None] = lambda happening: None,
        patience: float = PATIENCE,
    ) -> None:
        self._seats, self._environ, self._on_event, self._patience = seats, environ, on_event, patience
        self._running: dict[str, Process] = {}
        self._stopping = asyncio.Event()
        self._asked_at = 0.0
        self._code = 0

    def stop(self) -> None:
        """First call: every process may finish what it has begun. Second call: they are killed."""
        now = time.monotonic()
        if not self._stopping.is_set():
            self._stopping.set()
            self._asked_at = now
            self._on_event(Happening("stopping", "", os.getpid()))
            for name in list(self._running):
                self._terminate(name)
        elif now - self._asked_at > ECHO:
            for name in list(self._running):
                self._kill(name)

    async def run(self) -> int:
        """0: stopped as asked. 1: a process had to be killed or failed while stopping. 2: one was refused."""
        keepers = [asyncio.ensure_future(self._keep(seat)) for seat in self._seats]
        await self._stopping.wait()
        _, late = await asyncio.wait(keepers, timeout=self._patience)
        if late:
            for name in list(self._running):
                self._kill(name)
        await asyncio.gather(*keepers)
        return self._code

    async def _keep(self, seat: Seat) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = time.monotonic()
            process = await self._start(seat)
            code = await process.wait()
            del self._running[seat.name]
            if process.stdin is not None:
                process.stdin.close()
            if self._stopping.is_set():
                self._ended(seat, process, code)
                return
            if code == REFUSED:
                self._code = REFUSED
                self._on_event(Happening("refused", seat.name, process.pid, code))
                self.stop()
                return
            well = code == 0 or time.monotonic() - began > STEADY
            pause = FIRST_PAUSE if well else pause
            self._on_event(Happening("ended", seat.name, process.pid, code, pause))
            await self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _start(self, seat: Seat) -> Process:
        process = await asyncio.create_subprocess_exec(
            *seat.command,
            stdin=asyncio.subprocess.PIPE,
            env=self._environ,
            process_group=0,  # Ctrl-C in a terminal is ours to answer: it must not reach the children twice
        )
        self._running[seat.name] = process
        self._on_event(Happening("started", seat.name, process.pid))
        if self._stopping.is_set():  # asked while it was being started
            self._terminate(seat.name)
        return process

    async def _wait(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _ended(self, seat: Seat, process: Process, code: int) -> None:
        self._on_event(Happening("ended", seat.name, process.pid, code))
        # By SIGTERM: it had not come far enough to have anything to drain.
        if code not in (0, -signal.SIGTERM):
            self._code = self._code or 1

    def _terminate(self, name: str) -> None:
        self._signal(name, signal.SIGTERM)
        self._signal(name, signal.SIGCONT)  # a stopped process would not hear it

    def _kill(self, name: str) -> None:
        self._on_event(Happening("killed", name, self._running[name].pid))
        self._signal(name, signal.SIGKILL)

    def _signal(self, name: str, number: signal.Signals) -> None:
        try:
            self._running[name].send_signal(number)
        except ProcessLookupError:
            return


def supervise(
    seats: Sequence[Seat],
    *,
    environ: Mapping[str, str] | None = None,
    on_event: Callable[[Happening], None] = lambda happening: None,
) -> int:
    """Run ``seats`` until SIGTERM or SIGINT (a second one kills them). Blocks; returns the exit code."""

    async def main() -> int:
        supervisor = Supervisor(seats, environ=environ, on_event=on_event)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        return await supervisor.run()

    return asyncio.run(main())


def end_with_parent(patience: float = PATIENCE) -> None:
    """In a child: when standard input closes, because the supervisor is gone, drain as if it had asked;
    end for good after ``patience`` seconds."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
