"""The embedded broker in one SQLite file."""

from eventkeel.transports.sqlite.transport import SQLiteTransport

__all__ = ["SQLiteTransport"]
