"""What `notifications` says to itself."""

from __future__ import annotations

from eventkeel import Event


class MailDue(Event, topic="mail_requests", key="mail_id", identity="mail_id"):
    """It was decided to write: the next handler talks to the mail server, with no transaction open."""

    mail_id: str
    """What it is about: two with the same id are one mail."""
    to: str
    subject: str
    text: str
