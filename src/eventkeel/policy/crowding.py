"""How many deliveries one unit should take while transactions get in each other's way. Pure.

A large unit holds the rows of a hundred deliveries at once. Where lanes share few rows, each such unit
collides, is rolled back, and runs again one by one: slower than never having tried. So the size is cut
at a collision, and grows again slowly, the more slowly the oftener that went wrong: additive-increase,
multiplicative-decrease in powers of two (Chiu and Jain, 1989).
"""

from __future__ import annotations

CALM = 8
"""Full units without a collision after which the size is doubled again, at first."""
LONGEST = 1024
"""The most that CALM can become."""


class Crowding:
    """The size of one consumer's units in this process. ``limit`` is what to take next."""

    __slots__ = ("_calm", "_most", "_passed", "limit")

    def __init__(self, most: int) -> None:
        self._most, self.limit = most, most
        self._calm, self._passed = CALM, 0

    def collided(self, size: int) -> None:
        """A unit over ``size`` deliveries was rolled back because another transaction was in the way."""
        if size > self.limit:
            return  # begun before the last collision
        self.limit = max(1, size // 4)
        self._calm = min(LONGEST, 2 * self._calm)
        self._passed = 0

    def passed(self, size: int) -> None:
        """A unit over ``size`` deliveries was committed."""
        if size < self.limit or self.limit == self._most:
            return
        self._passed += 1
        if self._passed >= self._calm:
            self._passed = 0
            self.limit = min(self._most, 2 * self.limit)
            if self.limit == self._most:
                self._calm = CALM
