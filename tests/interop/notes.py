"""A service whose events have no identity: what makes two messages one is their CloudEvents id alone."""

from __future__ import annotations

from eventkeel import Event, Service, Transaction


class NoteTaken(Event, topic="note_events", key="note_id"):
    note_id: str
    text: str


service = Service("notes", schema="create table if not exists notes (note_id text not null, text text not null)")


@service.on(NoteTaken)
async def keep(note: NoteTaken, tx: Transaction) -> None:
    tx.write("insert into notes (note_id, text) values (:note_id, :text)", note)
