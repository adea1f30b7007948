"""Sending a mail: plain SMTP."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from email.utils import format_datetime, localtime

from shop import settings

SENDER = "Shop <shop@shop.example>"
PATIENCE = 5.0
"""Seconds for each answer of the server."""


def send(to: str, subject: str, text: str, key: str) -> None:
    """Returns when the server has taken it. ``key`` becomes its Message-ID. Raises OSError, SMTPException."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = SENDER, to, " ".join(subject.split())
    mail["Message-ID"], mail["Date"] = f"<{key}@shop.example>", format_datetime(localtime())
    mail.set_content(text)
    host, _, port = settings.SMTP.rpartition(":")
    with smtplib.SMTP(host, int(port), local_hostname="shop.example", timeout=PATIENCE) as server:
        server.send_message(mail)
