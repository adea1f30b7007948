"""``python -m tests.crash --orders 1000 --kills 60 --seed 7``: exit 0 holds, 1 broken, 2 inconclusive."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash.run import CrashRun, Wish


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--orders", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--stops", type=int, default=12, help="stops between intake and begin, past the lease")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times")
    parser.add_argument("--data", type=Path, help="keep everything here")
    parser.add_argument("--quiet", action="store_true", help="only the verdict of each seed")
    parser.add_argument("--mutant", default="", help="MODULE:FUNCTION, applied in every process")
    arguments = parser.parse_args()
    codes = []
    for seed in arguments.seed or [1]:
        wish = Wish(
            orders=arguments.orders,
            kills=arguments.kills,
            stops=arguments.stops,
            seed=seed,
            mutant=arguments.mutant,
        )
        folder = arguments.data or Path(tempfile.mkdtemp(prefix=f"eventkeel-crash-{seed}-"))
        run = CrashRun(wish, folder, tell=lambda line: None if arguments.quiet else print(line, flush=True))
        verdict = run.run()
        print("\n".join(verdict.lines()), flush=True)
        codes.append(verdict.code)
        if verdict.code == 0 and arguments.data is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"  everything is kept in {folder}", flush=True)
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
