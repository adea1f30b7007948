"""Which service's unit of work the running code is inside of: what would wait for itself is refused."""

from __future__ import annotations

from contextvars import ContextVar

INSIDE: ContextVar[str] = ContextVar("eventkeel_inside", default="")
"""Set once in each task and thread that runs handlers; tasks that a handler starts inherit it."""
