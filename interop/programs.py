"""Brings and builds the programs here: ``interop/setup``, or ``ready()`` from a test.

Go, kcat and a JDK come from the system; where they are missing, and that is allowed, they are installed. A Go that
is older than the programs need brings a newer one as a module, from wherever its GOPROXY points.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tools.realservers import ServersError, install, kafka
from tools.realservers.install import Need

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".interop"
SOURCES = HERE / "go"
GO_NEEDED = (1, 23)


class Programs(NamedTuple):
    """Command lines that are ready to be given arguments."""

    produce: list[str]
    consume: list[str]
    where_go: list[str]
    where_java: list[str]
    kcat: list[str]
    faststream: list[str]


@functools.cache
def ready() -> Programs:
    """All of them. Raises ServersError with one line that says what is missing, or what went wrong."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # processes that want them at the same time make them once
        fcntl.flock(lock, fcntl.LOCK_EX)
        install.ensure([KCAT, JDK, GO])
        bin = _built()
        classpath = f"{kafka.jars()}/*"
    java = install.java()
    return Programs(
        produce=[str(bin / "produce")],
        consume=[str(bin / "consume")],
        where_go=[str(bin / "where")],
        where_java=[str(java), "-cp", classpath, str(HERE / "java" / "Where.java")],
        kcat=[str(_kcat())],
        faststream=[sys.executable, str(HERE / "python" / "faststream_service.py")],
    )


# ------------------------------------------------------------------ what comes from the system


def _kcat() -> Path | None:
    found = shutil.which("kcat") or shutil.which("kafkacat")
    return Path(found) if found else None


def _jdk() -> Path | None:
    """The Java that runs the servers, if it can also compile: ``java File.java`` needs that."""
    java = install.java()
    if java is None:
        return None
    shown = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False)
    return java if "jdk.compiler" in shown.stdout else None


def _go() -> Path | None:
    """Any Go: an old one can bring a newer one."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    return Path(found) if found else None


KCAT = Need("kcat", _kcat, "kcat", "kcat")
JDK = Need(f"a JDK {install.JAVA_NEEDED} or newer", _jdk, "default-jdk-headless", "openjdk")
GO = Need("Go", _go, "golang-go", "go")


# ------------------------------------------------------------------ Go


def version(go: Path) -> tuple[int, int]:
    """What ``go version`` says. It is asked outside any module, whose demands it would follow, and as it is."""
    shown = _run([str(go), "version"], Path("/"), {"GOTOOLCHAIN": "local"}).stdout
    found = re.search(r"go(\d+)\.(\d+)", shown)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def toolchain() -> str:
    """The Go that the programs are pinned to, as go.mod says it: ``go1.23.12``."""
    found = re.search(r"^toolchain (go\S+)$", (SOURCES / "go.mod").read_text("utf-8"), re.MULTILINE)
    assert found, "go.mod has no toolchain line"
    return found[1]


def new_enough(go: Path, place: Path = CACHE) -> Path:
    """``go`` itself, or the pinned one, which ``go`` brings into ``place``. Raises ServersError."""
    return go if version(go) >= GO_NEEDED else bring(go, place)


def bring(go: Path, place: Path) -> Path:
    """The pinned Go, a module like any other: its sums are checked as those of every module are.

    A Go before 1.21 does not know that a toolchain has programs in it: what a newer one would do is done here.
    """
    system = json.loads(_run([str(go), "env", "-json", "GOOS", "GOARCH"], Path("/"), {}).stdout)
    module = f"golang.org/toolchain@v0.0.1-{toolchain()}.{system['GOOS']}-{system['GOARCH']}"
    install.say(f"{go} is older than {GO_NEEDED[0]}.{GO_NEEDED[1]}; it brings {toolchain()}, once")
    ours = {"GOMODCACHE": str(place / "toolchain"), "GOFLAGS": "-modcacherw", "GOTOOLCHAIN": "local"}
    root = Path(json.loads(_run([str(go), "mod", "download", "-json", module], Path("/"), ours).stdout)["Dir"])
    for name in root.rglob("_go.mod"):
        name.rename(name.with_name("go.mod"))
    programs = [root / "bin", root / "pkg" / "tool"]
    for program in (each for folder in programs for each in folder.rglob("*") if each.is_file()):
        program.chmod(0o755)
    return root / "bin" / "go"


def _built() -> Path:
    """The folder with the programs, built again where anything that they are made of has changed."""
    go = _go()
    assert go is not None
    content = hashlib.sha256(str(go.resolve()).encode())
    for source in sorted(SOURCES.rglob("*")):
        if source.is_file():
            content.update(source.read_bytes())
    bin = CACHE / f"bin-{content.hexdigest()[:12]}"
    if bin.exists():
        return bin
    install.say("building the Go programs, once")
    with _unfinished(bin) as folder:
        go = new_enough(go)
        env = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false", "CGO_ENABLED": "0"}
        _run([str(go), "build", "-o", f"{folder}/", "./..."], SOURCES, env)
    return bin


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete."""
    started = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(started, ignore_errors=True)
    started.mkdir()
    yield started
    started.rename(folder)


def _run(command: list[str], folder: Path, more: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GOROOT"}
    done = subprocess.run(command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).splitlines()[-15:])
        raise ServersError(f"{' '.join(command)} failed:\n{words}")
    return done


def main() -> int:
    try:
        programs = ready()
    except ServersError as error:
        print(f"interop: {error}", file=sys.stderr)
        return 1
    for name, command in programs._asdict().items():
        print(f"{name}: {' '.join(command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
