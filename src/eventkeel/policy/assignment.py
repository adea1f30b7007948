"""Who should own which slices, where the broker does not assign. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from eventkeel.message import Slice


class Plan(NamedTuple):
    take: tuple[Slice, ...]
    release: tuple[Slice, ...]


def quota(count: int, members: Sequence[str], me: str) -> int:
    """My share of ``count`` slices: equal, the remainder to the first members in sorted order."""
    ordered = sorted(members)
    base, extra = divmod(count, len(ordered))
    return base + (1 if ordered.index(me) < extra else 0)


def plan(
    slices: Sequence[Slice], members: Sequence[str], me: str, mine: Collection[Slice], taken: Mapping[Slice, str]
) -> Plan:
    """What to take and what to give back, so that every member ends with its share.

    ``taken``: slices held by other living members. Free ones beyond the quota are left to the
    others, who are alive and will come for them.
    """
    share = quota(len(slices), members, me)
    held = [s for s in slices if s in mine]
    if len(held) > share:
        return Plan((), tuple(held[share:]))
    free = [s for s in slices if s not in mine and s not in taken]
    return Plan(tuple(free[: share - len(held)]), ())
