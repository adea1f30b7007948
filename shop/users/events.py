"""What `users` says to the world."""

from __future__ import annotations

from eventkeel import Event


class UserRegistered(Event, topic="user_events", key="user_id", identity="user_id"):
    """Somebody can buy from now on. A user registers once, so two with the same id are the same fact."""

    user_id: str
    name: str
    email: str
