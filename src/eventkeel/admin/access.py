"""Who asks, and what they may do. The one place where a surface's user becomes an ``Actor``."""

from __future__ import annotations

import getpass
import os
from typing import Literal

import msgspec

from eventkeel.errors import AccessDenied, ConfigurationError

Right = Literal["ask", "act"]
"""``ask``: see lag, reasons and bodies. ``act``: redrive and skip."""

_EVERYTHING: frozenset[Right] = frozenset({"ask", "act"})
_LONGEST_NAME = 200


class Actor(msgspec.Struct, frozen=True):
    """A person or a program, by the name that is recorded with what it does."""

    name: str
    rights: frozenset[Right]

    def require(self, right: Right, what: str) -> None:
        """Raises AccessDenied."""
        if right not in self.rights:
            raise AccessDenied(f"{self.name} may not {what}: it takes the right to {right!r}")


def local_actor(name: str | None = None) -> Actor:
    """Whoever runs a command on this machine: ``name``, or the system's user.

    May do everything: who can open the database file needs nobody's leave. Raises ConfigurationError for a
    name that cannot be recorded.
    """
    name = _system_user() if name is None else name.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ConfigurationError(f"an actor is named by 1 to {_LONGEST_NAME} printable characters, not {name[:40]!r}")
    return Actor(name, _EVERYTHING)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has a number and no name
        return f"uid {os.getuid()}"
