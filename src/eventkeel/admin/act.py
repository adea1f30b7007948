"""Actions: redrive and skip. Each is recorded in the store, in its own transaction, with who did it and when."""

from __future__ import annotations

from eventkeel.admin.access import Actor
from eventkeel.errors import ConfigurationError
from eventkeel.ports.catalogue import Catalogue, DeadLetter
from eventkeel.ports.clock import Clock


class Act:
    """What one actor, who needs the right ``act``, does to one service."""

    def __init__(self, service: str, catalogue: Catalogue, clock: Clock, actor: Actor) -> None:
        actor.require("act", f"change what is kept in {service}")
        self._service, self._catalogue, self._clock, self._actor = service, catalogue, clock, actor

    async def redrive(self, number: int) -> DeadLetter:
        """Send it through again, ahead of what waits behind it on its key. A running service does it at once,
        one that is stopped when it starts.

        Raises ConfigurationError: no such dead letter, one that only waits, or an identity conflict.
        """
        letter = await self._catalogue.redrive(number, actor=self._actor.name, now=self._clock.now())
        if letter is not None:
            return letter
        found = await self._catalogue.dead_letter(number)
        if found is not None and found.state == "parked":
            raise ConfigurationError(f"{number} is not dead: it waits to be tried again, by itself ({found.reason})")
        raise _missing(self._service, number)

    async def skip(self, number: int, note: str) -> DeadLetter:
        """Never apply it; what waits behind it on its key goes on. ``note`` says why, for those who come later.

        Raises ConfigurationError: no note, no such dead letter, or one that waits behind another.
        """
        if not note.strip():
            raise ConfigurationError("a skip needs a note that says why this event shall never take effect")
        now = self._clock.now()
        letter = await self._catalogue.skip(number, actor=self._actor.name, note=note.strip(), now=now)
        if letter is None:
            raise _missing(self._service, number)
        return letter


def _missing(service: str, number: int) -> ConfigurationError:
    return ConfigurationError(
        f"service {service} keeps no dead letter {number} (any more); 'eventkeel dlq list' says what there is"
    )
