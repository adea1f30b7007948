"""Who may talk to the page: a browser on this machine that shows this page, or a program on this machine. No other
site that the visitor has open may kill his services."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shop.problems import Problem, on_problem

NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""What this machine calls itself: a foreign name that leads here is somebody's trick (DNS rebinding)."""
SAFE = frozenset({"GET", "HEAD"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if trouble := objection(scope["method"], Headers(scope=scope)):
            answer = await on_problem(Request(scope), trouble)
            await answer(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def objection(method: str, headers: Headers) -> Problem | None:
    """Why this request is refused; None: it is not."""
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in NAMES and host not in NAMES:
        return Problem(421, f"this page is served to this machine only, not as {host!r}")
    if method in SAFE:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin") or origin not in (None, f"http://{host}"):
        return Problem(403, "only this page itself may ask for that, no other site")
    return None
