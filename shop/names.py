"""What can be an id in the shop."""

from __future__ import annotations

LONGEST = 100
"""Characters."""


def check_name(what: str, name: str) -> None:
    """Raises ValueError unless ``name`` can be an id: 1 to 100 printable characters."""
    if not name:
        raise ValueError(f"{what} is empty")
    if len(name) > LONGEST:
        raise ValueError(f"{what} has {len(name)} characters; at most {LONGEST} are allowed")
    if not name.isprintable():
        raise ValueError(f"{what} contains characters that cannot be printed")
