"""What becomes of a delivery that failed while running alone. Pure: time and dice are passed in."""

from __future__ import annotations

from typing import Literal

import msgspec

from eventkeel.errors import ConfigurationError, EventkeelError


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer's retry policy: a few tries in place, then parked with exponential backoff, then dead.

    Times in seconds. A parked key waits; the others flow.
    """

    attempts: int = 10
    """Runs in all before the delivery is dead-lettered; 0: never give up."""
    first: float = 1.0
    """Backoff before the first parked retry."""
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.2
    """Random part of each backoff, as a share of it (0 to 1)."""
    in_place: tuple[float, ...] = (0.01, 0.05, 0.15)
    """Pauses of the retries that hold only the lane; 0.25 s in all at most."""
    final: tuple[type[BaseException], ...] = ()
    """Errors that no retry can help, beside those that say so themselves."""

    def __post_init__(self) -> None:
        if sum(self.in_place) > 0.25:
            raise ConfigurationError(f"Retry(in_place={self.in_place}) holds its lane for more than 0.25 s in all")
        if self.attempts < 0 or self.first < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"{self} makes no sense: attempts ≥ 0, first ≥ 0, factor ≥ 1, 0 ≤ jitter ≤ 1")


class Decision(msgspec.Struct, frozen=True):
    """``now``: again in place after ``wait``; ``later``: parked for ``wait`` seconds; ``dead``."""

    kind: Literal["now", "later", "dead"]
    wait: float = 0.0


def is_final(error: BaseException, policy: Retry) -> bool:
    """No retry can help: the error's class says so, or the policy does."""
    if isinstance(error, policy.final):
        return True
    return isinstance(error, EventkeelError) and error.final


def backoff(policy: Retry, parked_before: int, dice: float) -> float:
    """Seconds until the next parked retry; ``dice`` is a random number in [0, 1)."""
    wait: float = min(policy.cap, policy.first * policy.factor ** min(parked_before, 60))
    return wait * (1 + policy.jitter * (2 * dice - 1))


def decide(policy: Retry, error: BaseException, attempt: int, dice: float, *, parked: bool) -> Decision:
    """After run number ``attempt`` (1 for the first) of a delivery alone.

    ``parked``: it runs from its gate already, where retrying in place would only hold others up.
    """
    if is_final(error, policy) or (policy.attempts and attempt >= policy.attempts):
        return Decision("dead")
    if not parked and attempt <= len(policy.in_place):
        return Decision("now", policy.in_place[attempt - 1])
    return Decision("later", backoff(policy, attempt - 1 - min(attempt - 1, len(policy.in_place)), dice))
