"""A rolling restart under load, one worker after another:

    python -m tests.crash.rolling --broker kafka --store postgres

Prints the largest gap between the commit times of two consecutive inbox rows. Exit 0: at most 10 s, and nothing
lost, twice or out of order; 1: not so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.crash.load import SERVICE, journal_under_load
from tests.crash.places import Where, arguments, command

LONGEST_GAP = 10.0


def rolling(where: Where, folder: Path, workers: int = 4) -> list[str]:
    """Restart every worker once; what is wrong."""
    with journal_under_load(where, folder, workers=workers) as (journal, load):
        began = time.time()
        for number, pid in enumerate(journal.fleet.pids(SERVICE), 1):
            at = time.monotonic()
            new = journal.fleet.replace(pid)
            ended = time.monotonic()
            joined = journal.await_workers([new])
            print(
                f"worker {number}: ended after {ended - at:.1f} s, its successor at work {joined:.1f} s later",
                flush=True,
            )
        longest, of_one = journal.gaps(began, time.time())
        load.stop()
        wrong = journal.wrong(load)
    print(
        f"{workers} workers restarted in turn; largest gap between two inbox rows {longest:.2f} s, "
        f"of one partition {of_one:.2f} s"
    )
    return wrong + [f"a gap of {longest:.1f} s"] * (longest > LONGEST_GAP)


def main() -> int:
    parser = arguments("python -m tests.crash.rolling", __doc__)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    return command(given, lambda where, folder: rolling(where, folder, given.workers))


if __name__ == "__main__":
    sys.exit(main())
