"""The command ``tools/servers``."""

from __future__ import annotations

import argparse
import sys
import time
from operator import methodcaller

from tools.realservers.errors import ServersError
from tools.realservers.fleet import KINDS, Servers, check_foreign, exports, foreign
from tools.realservers.install import say

_ABOUT = """\
Real servers for tests and measurements, on free loopback ports, with data in temporary folders. They run on until
`down`. Lines for a shell go to stdout, all else to stderr: eval "$(tools/servers up kafka postgres)"

  up [KIND…]       start them, kafka and postgres when none is named; what is missing is installed where that is
                   allowed (Debian and Ubuntu as root), and named where it is not
  down [KIND…]     end them and remove their data; all when none is named
  status [KIND…]   what runs, where, and in how much memory; exit code 1 unless all of it answers
  env [KIND…]      print again what `up` printed
  kill NAME…       kill -9
  start NAME…      start again with the same port and data
  stop NAME…       end as its documentation says; data stays
  restart NAME…    stop and start
  pause NAME…      SIGSTOP
  resume NAME…     SIGCONT

KIND: kafka, kafka-cluster (three brokers, replication 3, two in sync), postgres, rabbitmq, rabbitmq-cluster (three
nodes, every queue on all of them).
NAME: one of these, or kafka-1, kafka-2, kafka-3, rabbitmq-1, rabbitmq-2, rabbitmq-3 of a cluster."""

_ENVIRONMENT = """\
Environment: EVENTKEEL_SERVERS, the folder for their data. EVENTKEEL_TEST_KAFKA, EVENTKEEL_TEST_POSTGRES,
EVENTKEEL_TEST_RABBITMQ, the URL of a server that you have: `up` and `env` then print it and start none of that kind."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 when something failed, with one line that says what."""
    parser = argparse.ArgumentParser(
        prog="tools/servers",
        usage="tools/servers COMMAND [NAME…]",
        description=_ABOUT,
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[*_WHOLE, *_SINGLE, "start"], metavar="COMMAND", help="one of the above")
    parser.add_argument("names", nargs="*", metavar="NAME", help="servers")
    asked = parser.parse_args(arguments)
    servers = Servers()
    try:
        if asked.command in _WHOLE:
            for name in asked.names:
                if name not in KINDS:
                    raise ServersError(f"there is no {name!r}; there are {', '.join(KINDS)}")
            return _WHOLE[asked.command](servers, asked.names)
        if not asked.names:
            raise ServersError(f"name what to {asked.command}: {', '.join(servers.present()) or 'nothing is up here'}")
        chosen = [server for name in asked.names for server in servers.members(name)]
        for server in chosen:
            server.port()  # or it says that it was never up
            if asked.command in _SINGLE:
                _SINGLE[asked.command](server)
        if asked.command in _STARTS:
            servers.start(*asked.names)
        for server in chosen:
            say(f"{server.name} {server.status}")
    except ServersError as error:
        say(str(error))
        return 1
    return 0


def _up(servers: Servers, names: list[str]) -> int:
    kinds = names or ["kafka", "postgres"]
    urls = {}
    for kind in kinds:
        if url := foreign(kind):
            check_foreign(kind, url)
            say(f"{kind} is yours, at {url}")
            urls[kind] = url
    start = time.monotonic()
    ours = [kind for kind in kinds if kind not in urls]
    if ours:
        servers.up(*ours)
        urls |= {kind: servers.url(kind) for kind in ours}
        say(f"{' '.join(ours)} up after {time.monotonic() - start:.1f} s, in {servers.home}")
    print("\n".join(exports(urls)), flush=True)
    return 0


def _down(servers: Servers, names: list[str]) -> int:
    servers.down(*names)
    return 0


def _status(servers: Servers, names: list[str]) -> int:
    kinds = names or servers.present()
    found = [server for kind in kinds for server in servers.members(kind) if server.exists]
    if not found:
        print(f"nothing is up in {servers.home}")
        return 1
    for server in found:
        pids = server.pids()
        memory = f"{server.memory / 1e6:6.0f} MB  pid {server.pid}" if pids else ""
        print(f"{server.name:14}{server.status:10}{server.url:50}{memory}".rstrip())
    return 0 if all(server.status == "running" for server in found) else 1


def _env(servers: Servers, names: list[str]) -> int:
    urls = {kind: url for kind in names or KINDS if (url := foreign(kind))}
    present = servers.present()
    for kind in names or present:
        if kind not in urls:
            if kind not in present:
                raise ServersError(f"{kind} is not up: tools/servers up {kind}")
            urls[kind] = servers.url(kind)
    if not urls:
        raise ServersError("nothing is up here: tools/servers up kafka postgres")
    print("\n".join(exports(urls)))
    return 0


_WHOLE = {"up": _up, "down": _down, "status": _status, "env": _env}
_SINGLE = {
    "kill": methodcaller("kill9"),
    "stop": methodcaller("stop"),
    "restart": methodcaller("stop"),
    "pause": methodcaller("pause"),
    "resume": methodcaller("resume"),
}
_STARTS = ("start", "restart")

if __name__ == "__main__":
    sys.exit(main())
