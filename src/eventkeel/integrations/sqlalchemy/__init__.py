"""SQLAlchemy: a handler's session on its transaction, events with a user's own session, a user's engine as store."""

from __future__ import annotations

from eventkeel.errors import ConfigurationError

try:
    import sqlalchemy as sqlalchemy
except ImportError as error:
    raise ConfigurationError("an SQLAlchemy session needs SQLAlchemy: pip install 'eventkeel[sqlalchemy]'") from error

from eventkeel.integrations.sqlalchemy.outbox import outbox as outbox
from eventkeel.integrations.sqlalchemy.sessions import ready as ready
from eventkeel.integrations.sqlalchemy.sessions import wrapped as wrapped
from eventkeel.integrations.sqlalchemy.store import SQLAlchemyStore as SQLAlchemyStore

__all__ = ["SQLAlchemyStore", "outbox", "ready", "wrapped"]
