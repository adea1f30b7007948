"""The command line: parses, calls ``app``, ``operate`` and ``supervise``, prints a table or JSON. Nothing else.

Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or refused.
"""

from eventkeel.cli.root import main

__all__ = ["main"]
