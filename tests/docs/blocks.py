"""The code blocks of a page, and how to run them.

```python                       run by itself
<!-- file: payments.py -->      the next block is written to this file, in the page's folder, and imported
<!-- continues -->              the next block runs behind all blocks before it that ran
<!-- not run: why -->           the next block is a fragment
```console                      lines with ``$ `` are commands; what follows must be in their output, in
                                order, ``…`` standing for anything; a command that ends in & stays
```toml, sql, …                 with ``file:`` written to it, otherwise shown only
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!-- (file|continues|not run):? ?([^>]*?) ?-->\s*\Z")


class Block(NamedTuple):
    """One fenced block."""

    line: int
    language: str
    text: str
    mark: str
    """``file``, ``continues``, ``not run``, or nothing."""
    said: str
    """What stands behind the mark: a file's name, a reason."""


def blocks(page: str) -> list[Block]:
    """In the order of the page."""
    found = []
    for match in _FENCE.finditer(page):
        mark = _MARK.search(page[: match.start()].rstrip(" "))
        indent = match["indent"]
        text = "\n".join(line.removeprefix(indent) for line in match["text"].splitlines()) + "\n"
        line = page.count("\n", 0, match.start()) + 1
        found.append(Block(line, match["language"], text, mark[1] if mark else "", mark[2] if mark else ""))
    return found


class Stage:
    """Where one page's blocks run: a folder, and the commands that stay."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._ran: list[str] = []
        self._staying: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }

    def run(self, block: Block) -> None:
        """Raises AssertionError with what the reader of the page would have seen."""
        if block.mark == "not run":
            assert block.said, f"line {block.line}: say why it is not run"
        elif block.mark == "file":
            (self.folder / block.said).write_text(block.text)
            if block.said.endswith(".py"):
                self._python(block, f"import {block.said.removesuffix('.py')}\n")
        elif block.language == "python":
            before = "".join(self._ran) if block.mark == "continues" else ""
            self._python(block, before + block.text)
            self._ran.append(block.text)
        elif block.language == "console":
            self._console(block)

    def _python(self, block: Block, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"

    def _console(self, block: Block) -> None:
        for command, expected in commands(block.text):
            if command.endswith("&"):
                self._stay(command.removesuffix("&"))
                continue
            deadline = time.monotonic() + PATIENCE
            while True:  # what a command shows may need a moment: services are still at work
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=self.folder,
                    env=self._environment,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                    check=False,
                )
                shown = done.stdout + done.stderr
                missing = first_missing(expected, shown)
                if missing is None and (expected or done.returncode == 0):
                    break
                if time.monotonic() > deadline:
                    raise AssertionError(
                        f"line {block.line}: $ {command}\nshows\n{shown}\nand not\n{missing}, "
                        f"exit code {done.returncode}"
                    )
                time.sleep(0.2)

    def _stay(self, command: str) -> None:
        log = (self.folder / "staying.log").open("ab")
        with log:
            self._staying.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment, stdout=log, stderr=log
                )
            )

    def close(self) -> None:
        for each in self._staying:
            each.send_signal(signal.SIGTERM)
        for each in self._staying:
            try:
                each.wait(30)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines that its output has to show."""
    found: list[tuple[str, list[str]]] = []
    continued = False
    for line in text.splitlines():
        if continued:
            command, expected = found[-1]
            found[-1] = (f"{command}\n{line}", expected)
        elif line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line.strip() and found:
            found[-1][1].append(line)
        continued = (continued or line.startswith("$ ")) and line.endswith("\\")
    return found


def first_missing(expected: list[str], shown: str) -> str | None:
    """The first expected line that does not follow the ones before it."""
    lines = iter(shown.splitlines())
    for want in expected:
        if want.strip() == "…":
            continue
        pattern = re.compile(r"\s+".join(map(_pattern, want.split())))
        if not any(pattern.fullmatch(line.strip()) for line in lines):
            return want
    return None


def _pattern(word: str) -> str:
    return ".*".join(map(re.escape, word.split("…")))
