"""One process of a service under test: the normal worker, with fault points armed and mutants applied.

    python -m eventkeel.testing.worker SERVICE --faults FOLDER [--http HOST:PORT] [--set NAME=VALUE …]
        [--mutant MODULE:FUNCTION]

The product has none of this: what happens here happens before the worker's own entry is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from eventkeel import app
from eventkeel.config import PREFIX, Config
from eventkeel.supervise import end_with_parent
from eventkeel.telemetry.logs import Logs, setup
from eventkeel.testing.faults import Trap


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="eventkeel.testing.worker")
    parser.add_argument("service", help="MODULE:ATTRIBUTE")
    parser.add_argument("--faults", type=Path, required=True, help="folder of control files")
    parser.add_argument("--http", default="", help="HOST:PORT: serve its HTTP application instead of handling")
    parser.add_argument("--mutant", default="", help="MODULE:FUNCTION, called before the worker starts")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Config")
    return parser.parse_args()


def main() -> None:
    """Blocks until the process is told to stop, or kills itself at an armed point."""
    end_with_parent()
    arguments = _arguments()
    for setting in arguments.set:  # by the environment, so that a mutant finds the same
        name, _, value = setting.partition("=")
        os.environ[PREFIX + name.upper()] = value
    service = app.load_service(arguments.service)
    if arguments.mutant:
        module, _, function = arguments.mutant.partition(":")
        getattr(importlib.import_module(module), function)()
    Trap(arguments.faults, f"{service.name}-http" if arguments.http else service.name).install()
    config = Config.load()
    setup(config.log_level, config.log_format, service.name)
    if arguments.http:
        host, _, port = arguments.http.rpartition(":")
        app.run_http(arguments.service, config, host, int(port))
    else:
        app.run_worker(arguments.service, config, [Logs()])


if __name__ == "__main__":
    main()
