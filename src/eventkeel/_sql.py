"""Named statements: SQL lives in ``.sql`` files beside the code that runs it."""

from __future__ import annotations

import importlib.resources
import re


def load_queries(package: str, file: str) -> dict[str, str]:
    """The named statements of a ``.sql`` file: each begins with a line ``-- name: xyz``."""
    text = importlib.resources.files(package).joinpath(file).read_text("utf-8")
    parts = re.split(r"^-- name: *(\w+) *$", text, flags=re.MULTILINE)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
