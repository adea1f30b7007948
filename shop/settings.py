"""What the services are told by their environment: where the third parties are, and how long to wait for an answer."""

from __future__ import annotations

import os

PROVIDER = os.environ.get("SHOP_PROVIDER", "http://127.0.0.1:8010")
"""URL of the payment provider."""
WEBHOOK = os.environ.get("SHOP_WEBHOOK", "")
"""URL at which the provider tells `payments` what became of a charge; empty: it does not."""
WEBHOOK_SECRET = os.environ.get("SHOP_WEBHOOK_SECRET", "whsec_c2hvcCBvbiBldmVudGtlZWw=")
"""Shared with the provider; it signs what it sends."""
SMTP = os.environ.get("SHOP_SMTP", "127.0.0.1:8025")
"""HOST:PORT of the mail server."""
PROTOBUF = frozenset(os.environ.get("SHOP_PROTOBUF", "").replace(",", " ").split())
"""Topics with Protobuf: `payment_events` is written as such, `order_events` read as such from whoever writes it."""
STEP_TIMEOUT = float(os.environ.get("SHOP_STEP_TIMEOUT", "0"))
"""Seconds that an order waits for the answer to one step before it goes back; 0: as long as it takes."""
