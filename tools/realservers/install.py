"""What the servers need from the system: found, installed where that is allowed, or named in one line to type."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from tools.realservers.errors import ServersError

JAVA_NEEDED = 17
POSTGRES_NEEDED = 15


class Need(NamedTuple):
    """A program, and the packages that bring it."""

    what: str
    find: Callable[[], Path | None]
    debian: str
    brew: str


def say(text: str) -> None:
    """Progress: on stderr, because stdout is for lines that a shell can evaluate."""
    print(f"servers: {text}", file=sys.stderr, flush=True)


def ensure(needs: Iterable[Need]) -> None:
    """Each of them is here afterwards; otherwise one line says what to type."""
    missing = [need for need in needs if need.find() is None]
    if not missing:
        return
    debian = list(dict.fromkeys(need.debian for need in missing))
    has_apt = Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None
    if has_apt and os.getuid() == 0:
        _apt_install(debian)
        missing = [need for need in missing if need.find() is None]
        if not missing:
            return
    names = ", ".join(need.what for need in missing)
    if has_apt:
        packages = " ".join(dict.fromkeys(need.debian for need in missing))
        sudo = "" if os.getuid() == 0 else "sudo "
        raise ServersError(f"missing: {names}. Type: {sudo}apt-get install -y --no-install-recommends {packages}")
    if sys.platform == "darwin":
        packages = " ".join(dict.fromkeys(need.brew for need in missing))
        raise ServersError(f"missing: {names}. Type: brew install {packages}")
    raise ServersError(
        f"missing: {names}. Install them with your system's packages, or take servers that you have by URL, see "
        "docs/howto/real-servers.md"
    )


def _apt_install(packages: list[str]) -> None:
    say(f"installing with apt-get: {' '.join(packages)}")
    # The packages of Java want to put a link there, and slim systems are without the folder.
    Path("/usr/share/man/man1").mkdir(parents=True, exist_ok=True)
    wait = ["-o", "DPkg::Lock::Timeout=120"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", *wait, "update", "-qq"], capture_output=True, check=False)  # an old list may do
    done = subprocess.run(
        ["apt-get", *wait, "install", "-y", "-qq", "--no-install-recommends", *packages],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise ServersError(f"apt-get could not install {' '.join(packages)}, see above")


def _version(command: list[str | Path], pattern: str) -> int:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(pattern, done.stdout + done.stderr)
    return int(found[1]) if found and done.returncode == 0 else 0


def java() -> Path | None:
    """A Java that is new enough: that of $JAVA_HOME, of the path, or of Homebrew, which keeps it off the path."""
    home = os.environ.get("JAVA_HOME")
    candidates = [
        Path(home) / "bin" / "java" if home else None,
        _on_path("java"),
        Path("/opt/homebrew/opt/openjdk/bin/java"),
        Path("/usr/local/opt/openjdk/bin/java"),
        *sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True),
    ]
    for candidate in candidates:
        if candidate and candidate.exists() and _version([candidate, "-version"], r'version "(\d+)') >= JAVA_NEEDED:
            return candidate
    return None


def maven() -> Path | None:
    """mvn."""
    return _on_path("mvn")


def postgres() -> Path | None:
    """The folder with the programs of the newest PostgreSQL that is new enough."""
    on_path = _on_path("postgres")
    places = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *Path("/usr").glob("pgsql-*/bin"),
        *Path("/opt/homebrew/opt").glob("postgresql@*/bin"),
        *Path("/usr/local/opt").glob("postgresql@*/bin"),
        *([on_path.parent] if on_path else []),
    ]
    found = [
        (_version([place / "postgres", "--version"], r"(\d+)(?:\.|beta|rc|devel|\s|$)"), place)
        for place in places
        if (place / "initdb").exists()
    ]
    best = max(found, default=(0, None), key=lambda entry: entry[0])
    return best[1] if best[0] >= POSTGRES_NEEDED else None


def rabbitmq() -> Path | None:
    """rabbitmq-server itself: the one on the path of Debian insists on being called by root or its own user."""
    for place in ["/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"]:
        if (Path(place) / "rabbitmq-server").exists():
            return Path(place) / "rabbitmq-server"
    return _on_path("rabbitmq-server")


def epmd() -> Path | None:
    """The port mapper of Erlang, which comes with it."""
    for place in ["/usr/bin", "/opt/homebrew/bin", "/usr/local/bin"]:
        if (Path(place) / "epmd").exists():
            return Path(place) / "epmd"
    return _on_path("epmd")


def account(name: str) -> pwd.struct_passwd | None:
    """The system's user for a server that refuses to run as root; None when we are not root and need none."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ServersError(f"there is no user {name!r} to run the server as, and it refuses to run as root") from None


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


JAVA = Need(f"Java {JAVA_NEEDED} or newer", java, "default-jre-headless", "openjdk")
MAVEN = Need("Maven", maven, "maven", "maven")
POSTGRES = Need(f"PostgreSQL {POSTGRES_NEEDED} or newer", postgres, "postgresql", "postgresql@17")
RABBITMQ = Need("RabbitMQ", rabbitmq, "rabbitmq-server", "rabbitmq")
