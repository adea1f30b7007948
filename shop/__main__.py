"""The shop as a command: see ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from shop.batch import BALANCED, INCONCLUSIVE, UNBALANCED, Outcome, Wish, run
from shop.databases import Unreadable, reading
from shop.foreign import ForeignerGone
from shop.placing import NoAnswer
from shop.running import CannotRun, Place, choose_port

USAGE = """\
examples:
  scripts/shop                              run the shop, Ctrl-C for the verdict
  scripts/shop --pace 0.5                   and watch orders move that it places by itself
  scripts/shop --orders 1000                place 1,000 orders, wait until quiet, print the ledger
  scripts/shop --orders 1000 --duplicates 0.1 --kills 20 --seed 7 --json
  scripts/shop --broker kafka://127.0.0.1:9092 --store 'postgresql://me@127.0.0.1/shop?schema={service}'
  scripts/shop --naive --orders 1000 --kills 30 --duplicates 0.1      what becomes of it without Eventkeel
                                            (files, or --broker kafka://… --store postgresql://…)

exit codes: 0 the ledger balances; 1 it does not; 2 the run proved nothing, or could not start
"""


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a probability between 0 and 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/shop",
        description="An order system on Eventkeel: seven services that talk through events only.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--orders", type=_count, metavar="N", help="place N orders, wait, count, and end")
    parser.add_argument("--seed", type=int, default=0, help="of what is random: amounts, kills, duplicates (0)")
    parser.add_argument(
        "--duplicates", type=_probability, default=0.0, metavar="P", help="deliver an order's message again, 0 to 1"
    )
    parser.add_argument("--kills", type=_count, default=0, metavar="K", help="kill service processes K times")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the files (.data; with --orders a new one)")
    for what, file in (("broker", "broker"), ("store", "{service}")):
        variable = f"EVENTKEEL_{what.upper()}"
        text = f"default ${variable}, else sqlite:///DIR/{file}.sqlite3"
        parser.add_argument(f"--{what}", default=os.environ.get(variable, ""), metavar="URL", help=text)
    parser.add_argument("--port", type=int, default=8000, help="of the orders API, if it is free (8000)")
    parser.add_argument("--page", type=int, default=8080, metavar="PORT", help="of the page, if it is free (8080)")
    parser.add_argument(
        "--pace", type=float, default=0.0, metavar="SECONDS", help="place an order of its own every so often (never)"
    )
    parser.add_argument(
        "--naive", action="store_true", help="orders and payments by hand, without Eventkeel: see what becomes of them"
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.naive and not _speaks(arguments.broker, "kafka:"):
        parser.error("--naive speaks to Kafka (kafka://HOST:PORT), or to a file without --broker")
    if arguments.naive and not _speaks(arguments.store, "postgresql:", "postgres:"):
        parser.error("--naive speaks to PostgreSQL (postgresql://USER@HOST:PORT/DATABASE), or to files without --store")
    if arguments.orders is None and not arguments.naive and (arguments.kills or arguments.duplicates):
        parser.error("--kills and --duplicates go with --orders N")
    return arguments


def _speaks(url: str, *schemes: str) -> bool:
    return not url or url.startswith(schemes)


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code."""
    arguments = _arguments(argv)
    try:
        if arguments.naive:
            return _naive(arguments)
        if arguments.orders is not None:
            return _batch(arguments)
        from shop.live import run_live

        place = Place(arguments.data or Path(".data"), arguments.broker, arguments.store)
        return run_live(place, arguments.port, page=arguments.page, pace=arguments.pace, json_line=arguments.json)
    except (CannotRun, NoAnswer, ForeignerGone, Unreadable) as error:
        print(f"shop: {str(error) or 'the program that writes past Eventkeel has ended'}", file=sys.stderr)
        return INCONCLUSIVE


def _batch(arguments: argparse.Namespace) -> int:
    wish = Wish(arguments.orders, arguments.seed, arguments.duplicates, arguments.kills)
    data = arguments.data or Path(tempfile.mkdtemp(prefix="eventkeel-shop-"))
    place = Place(data, arguments.broker, arguments.store)
    known = _known_orders(place)
    if known:
        print(
            f"shop: {place} holds {known:,} orders of an earlier run, and would be counted with them; "
            f"choose another {place.remedy}",
            file=sys.stderr,
        )
        return INCONCLUSIVE
    outcome = run(wish, place, tell=lambda line: print(line, file=sys.stderr, flush=True))
    _report(outcome, arguments.json)
    if arguments.data is None and outcome.code == 0:
        shutil.rmtree(data, ignore_errors=True)
    else:
        print(f"the files are in {data}", file=sys.stderr)
    return outcome.code


def _naive(arguments: argparse.Namespace) -> int:
    from shop.naive.run import run as run_naive

    orders = 1000 if arguments.orders is None else arguments.orders
    with tempfile.TemporaryDirectory(prefix="eventkeel-naive-") as data:
        outcome = run_naive(
            orders,
            arguments.kills,
            arguments.duplicates,
            arguments.seed,
            arguments.broker or data,
            arguments.store or data,
            choose_port(arguments.port),
        )
    print(f"{outcome.ledger.line()}\nkills {outcome.kills}, duplicates {outcome.duplicates}, {outcome.seconds:.1f} s")
    if arguments.json:
        print(json.dumps(outcome.json()), flush=True)
    return BALANCED if outcome.ledger.balanced else UNBALANCED


def _known_orders(place: Place) -> int:
    try:
        with reading(place.store("orders")) as database:
            return database.number("select count(*) from orders")
    except Unreadable:  # so there are none
        return 0


def _report(outcome: Outcome, as_json: bool) -> None:
    for problem in outcome.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if outcome.inconclusive:
        print(f"inconclusive: {outcome.inconclusive}", file=sys.stderr)
    print(
        f"{outcome.ledger.line()}\nkills {outcome.kills} ({outcome.kills_in_unit} inside a unit of work), "
        f"duplicates delivered {outcome.duplicates}, {outcome.seconds:.1f} s, seed {outcome.seed}"
    )
    if as_json:
        print(json.dumps(outcome.json()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
