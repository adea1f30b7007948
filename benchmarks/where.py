"""Where the time goes: a cProfile run, summed up by part of a message's way.

The time of a C function (a statement in apsw, a decode in msgspec) is charged to the part that
called it. cProfile slows Python code more than C code, so read the shares as a hint.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Mapping
from typing import Any

Place = tuple[str, int, str]

_PARTS = (
    ("handler and its tx", ("benchmarks/services.py", "eventkeel/handling.py")),
    ("decode", ("eventkeel/codec", "eventkeel/fingerprint.py")),
    ("intake", ("engine/intake.py", "engine/work.py", "policy/watermark.py")),
    ("unit of work, lanes", ("engine/unit_of_work.py", "engine/lanes.py", "eventkeel/drive.py", "engine/context.py")),
    ("relay", ("engine/relay.py",)),
    ("store", ("stores/sqlite",)),
    ("transport", ("transports/sqlite", "eventkeel/_sqlite.py")),
    ("leases and the rest", ("eventkeel/",)),
    ("event loop", ("asyncio/", "selectors.py", "uvloop")),
)


def _part(place: Place) -> str | None:
    file, _, function = place
    if "stores/sqlite" in file:
        for name in ("claim", "append", "unsent", "sent", "commit", "begin", "fence", "run"):
            if name in function:
                return f"store: {name}"
    if "codec" in file and function in ("encode", "write", "_fact_id", "_own_key"):
        return "encode"
    return next((part for part, files in _PARTS if any(each in file for each in files)), None)


def shares(profile: cProfile.Profile) -> list[tuple[str, float]]:
    """Part and share of the profiled time, largest first."""
    stats: Mapping[Place, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for place, (_, _, own, _, callers) in stats.items():
        part = _part(place)
        if part is not None:
            spent[part] = spent.get(part, 0.0) + own
            continue
        for caller, (_, _, from_it, _) in callers.items():
            name = _part(caller) or "other"
            spent[name] = spent.get(name, 0.0) + from_it
    total = sum(spent.values()) or 1.0
    return sorted(((part, seconds / total) for part, seconds in spent.items()), key=lambda each: -each[1])


def hottest(profile: cProfile.Profile, count: int) -> list[str]:
    """Single functions by their own time, for whoever wants to mend one."""
    stats: Mapping[Place, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values()) or 1.0
    ordered = sorted(stats.items(), key=lambda each: -each[1][2])[:count]
    return [
        f"{own / total:6.1%} {calls:>9,} calls  {_short(file)}:{line} {name}"
        for (file, line, name), (_, calls, own, _, _) in ordered
    ]


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].rpartition("src/")[2]
