"""Which parts of a failed speculative unit to run again, and how. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split(works: Sequence[T], blamed: int | None) -> list[list[T]]:
    """The units to run instead, in order.

    Blame known: the part before it as a batch, the failing delivery alone, then the rest.
    Blame unknown: all one by one. Only a failure *alone* counts as an attempt.
    """
    if blamed is None:
        return [[work] for work in works]
    parts = [list(works[:blamed]), [works[blamed]], list(works[blamed + 1 :])]
    return [part for part in parts if part]
