from __future__ import annotations

from pathlib import Path

from eventkeel.ports.transport import Transport
from eventkeel.testing.transport_suite import TransportSuite
from eventkeel.transports.sqlite import SQLiteTransport


class TestSQLiteTransport(TransportSuite):
    async def make(self, place: Path) -> Transport:
        return SQLiteTransport(place / "broker.sqlite3")
