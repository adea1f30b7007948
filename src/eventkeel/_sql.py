"""Named statements: SQL lives in ``.sql`` files beside the code that runs it."""

from __future__ import annotations

import pkgutil
import re


def read_text(package: str, file: str) -> str:
    """A file beside the modules of ``package``. By ``pkgutil``: ``importlib.resources`` costs each process half a
    megabyte of modules that it has no other use for."""
    data = pkgutil.get_data(package, file)
    if data is None:
        raise FileNotFoundError(f"{package} has no {file}: it is not installed completely")
    return data.decode("utf-8")


def load_queries(package: str, file: str) -> dict[str, str]:
    """The named statements of a ``.sql`` file: each begins with a line ``-- name: xyz``."""
    parts = re.split(r"^-- name: *(\w+) *$", read_text(package, file), flags=re.MULTILINE)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
