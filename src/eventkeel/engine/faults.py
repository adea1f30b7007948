"""Named places at which a test may stop, kill or delay a process. Nothing is installed in the product.

``point("unit.before_commit")`` costs one global look-up and one comparison while no hook is there.
"""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str], None]

_hook: Hook | None = None


def point(name: str) -> None:
    """Say that this process has reached ``name``; does nothing unless a test has installed a hook."""
    if _hook is not None:
        _hook(name)


def install(hook: Hook | None) -> Hook | None:
    """Call ``hook`` at every point from now on (None: no more). Returns the hook it replaces."""
    global _hook
    previous, _hook = _hook, hook
    return previous
