"""PostgreSQL from the system's packages, with a cluster of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tools.realservers import install, places, probe, processes
from tools.realservers.errors import ServersError
from tools.realservers.server import Server

SETTINGS = {
    "listen_addresses": places.HOST,
    "unix_socket_directories": "",
    "max_connections": "300",
    "max_wal_size": "2GB",
    "track_commit_timestamp": "on",
    # In its data folder and not in /dev/shm, where a killed server would leave it.
    "dynamic_shared_memory_type": "mmap",
}
"""What differs from its defaults. fsync and synchronous_commit stay on: a confirmed commit survives a kill."""


class Postgres(Server):
    """Takes every local user as ``postgres`` without a password, on the loopback address only."""

    needs = (install.POSTGRES,)
    _farewell = signal.SIGINT  # "fast": open transactions are rolled back

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{places.HOST}:{self.port()}/postgres"

    def answers(self) -> bool:
        return probe.postgres(self.port())

    def _program(self, name: str) -> Path:
        folder = install.postgres()
        if folder is None:
            raise ServersError(f"{self.name}: PostgreSQL is not installed any more")
        return folder / name

    def _prepare(self) -> None:
        account = install.account("postgres")
        if (self.data / "PG_VERSION").exists():
            # It was killed, and we saw that all its processes ended; the id in this file may be somebody else's by now.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        self.data.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            if not places.open_to_others(self.folder):
                raise ServersError(
                    f"user postgres may not pass through to {self.folder}; name another folder: "
                    "EVENTKEEL_SERVERS=/some/where"
                )
            os.chown(self.data, account.pw_uid, account.pw_gid)
        done = processes.run(
            [
                self._program("initdb"), "-D", self.data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C",
                "--no-sync",
            ],
            folder=self.data, environment=_environment(), account=account,
        )  # fmt: skip
        if done.returncode != 0:
            raise ServersError(f"{self.name}: initdb failed:\n{done.stdout}")

    def _launch(self) -> tuple[int, str]:
        settings = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
        return processes.spawn(
            [self._program("postgres"), "-D", self.data, "-p", str(self.port()), *settings],
            log=self.log, folder=self.data, environment=_environment(), account=install.account("postgres"),
        )  # fmt: skip

    def remove(self) -> None:
        # Its "immediate" end gives back the shared memory that it has from the system; a kill would leave it.
        if (root := self.pid) is not None:
            members = self.pids()
            processes.send(members, signal.SIGCONT)
            processes.send([root], signal.SIGQUIT)
            processes.wait_until_gone(members, 5.0)
        super().remove()


def _environment() -> dict[str, str]:
    """Without variables that would change where PostgreSQL looks and what it says."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}
