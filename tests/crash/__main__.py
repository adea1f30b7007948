"""Crash runs as a command: exit 0 the promise holds, 1 it is broken, 2 too little bit to tell.

python -m tests.crash --orders 1000 --kills 60 --seed 7
python -m tests.crash --broker kafka --store postgres --kill worker,relay,broker,postgres --orders 5000
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash.places import BROKERS, STORES, place
from tests.crash.run import CrashRun, Verdict, Wish
from tools.realservers import ServersError

VICTIMS = ("worker", "relay", "broker", "postgres")


def _victims(text: str) -> frozenset[str]:
    victims = frozenset(filter(None, text.split(",")))
    if unknown := victims - set(VICTIMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(VICTIMS)}")
    return victims


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="sqlite", help=f"{', '.join(BROKERS)} (own servers), or a URL")
    parser.add_argument("--store", default="sqlite", help=f"{', '.join(STORES)} (own servers), or a URL")
    parser.add_argument("--kill", type=_victims, default="worker", help=f"of {','.join(VICTIMS)} (worker)")
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=60, help="of workers")
    parser.add_argument("--relay-kills", type=int, default=8, help="of workers whose relay waits for confirmations")
    parser.add_argument("--server-kills", type=int, default=3, help="of each server")
    parser.add_argument("--stops", type=int, default=12, help="stops between intake and begin, past the lease")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times")
    parser.add_argument("--data", type=Path, help="keep everything here")
    parser.add_argument("--quiet", action="store_true", help="only the verdict of each seed")
    parser.add_argument("--mutant", default="", help="MODULE:FUNCTION, applied in every process")
    arguments = parser.parse_args()
    for victim, server, option in (("broker", arguments.broker, "--broker"), ("postgres", arguments.store, "--store")):
        if victim in arguments.kill and (server == "sqlite" or ":" in server):
            parser.error(
                f"--kill {victim} needs a server of its own: {option} {'kafka' if victim == 'broker' else victim}"
            )
    return arguments


def main() -> int:
    arguments = _arguments()
    codes = []
    for seed in arguments.seed or [1]:
        folder = arguments.data or Path(tempfile.mkdtemp(prefix=f"eventkeel-crash-{seed}-"))
        try:
            verdict = _run(arguments, seed, folder)
        except ServersError as error:
            print(f"no servers: {error}", file=sys.stderr)
            return 2
        print("\n".join(verdict.lines()), flush=True)
        codes.append(verdict.code)
        if verdict.code == 0 and arguments.data is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"  everything is kept in {folder}", flush=True)
    return 1 if 1 in codes else max(codes)


def _run(arguments: argparse.Namespace, seed: int, folder: Path) -> Verdict:
    workers = "worker" in arguments.kill
    relays = arguments.relay_kills if "relay" in arguments.kill else 0
    wish = Wish(
        orders=arguments.orders,
        kills=arguments.kills if workers else 0,
        stops=arguments.stops if workers else 0,
        seed=seed,
        mutant=arguments.mutant,
        relays=relays,
        need_relays=relays // 2,
        broker_kills=arguments.server_kills if "broker" in arguments.kill else 0,
        store_kills=arguments.server_kills if "postgres" in arguments.kill else 0,
    )
    if not workers:
        wish = wish.without_kills_of_workers()
    with place(arguments.broker, arguments.store) as where:
        return CrashRun(wish, folder, lambda line: None if arguments.quiet else print(line, flush=True), where).run()


if __name__ == "__main__":
    sys.exit(main())
