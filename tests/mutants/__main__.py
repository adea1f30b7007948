"""``python -m tests.mutants [NAME …]``: exit 0 only if every mutant is caught."""

from __future__ import annotations

import argparse
import sys

from tests.mutants.hunt import MUTANTS, hunt, unharmed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MUTANTS)}")
    parser.add_argument("--verbose", action="store_true", help="tell every kill")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(MUTANTS))
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}; there are {', '.join(MUTANTS)}")
    if wrong := unharmed():
        print(f"the crash run fails without any mutant, so it can catch none: {'; '.join(wrong)}")
        return 2
    alive = []
    for name in arguments.names or MUTANTS:
        caught = hunt(name, tell=print if arguments.verbose else None)
        print(
            f"{name}: {'caught' if caught.caught else 'NOT CAUGHT'} in {caught.seconds:.0f} s by {caught.how}",
            flush=True,
        )
        if not caught.caught:
            alive.append(name)
    if alive:
        print(f"not caught: {', '.join(alive)}. The checks prove nothing about this rule.")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
