"""Signed webhooks, as https://www.standardwebhooks.com has them: an HMAC over id, time and body."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

TOLERANCE = 300
"""Seconds that a signature is good for: what is older may have been recorded and sent again by somebody else."""


class Forged(Exception):
    """The signature is missing, wrong or too old."""


def sign(secret: str, id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers to send with it. ``secret`` is ``whsec_`` and the key in base64; ``at`` is in seconds since 1970."""
    return {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{_code(secret, id, str(at), body)}",
    }


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float | None = None) -> None:
    """Raises Forged unless whoever sent it knows the secret. ``headers`` by names in lower case."""
    id, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not at.isascii() or not at.isdigit():
        raise Forged("there is no webhook-timestamp")
    if abs((time.time() if now is None else now) - int(at)) > TOLERANCE:
        raise Forged(f"the webhook-timestamp is more than {TOLERANCE} seconds away from now")
    expected = f"v1,{_code(secret, id, at, body)}".encode()
    given = headers.get("webhook-signature", "").encode()
    if not any(hmac.compare_digest(one, expected) for one in given.split()):
        raise Forged("the webhook-signature does not fit the body")


def _code(secret: str, id: str, at: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return base64.b64encode(hmac.digest(key, f"{id}.{at}.".encode() + body, hashlib.sha256)).decode()
