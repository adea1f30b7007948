"""The HTTP API of `users`.

    POST /users         {"user_id": "USR1", "name": "Ann", "email": "ann@example.org"}    user_id is optional
    GET  /users/{id}

The same user sent again is the same user: same answer, no second event.
"""

from __future__ import annotations

import re
import uuid
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shop.bodies import decode, read_body
from shop.names import check_name
from shop.problems import HANDLERS, Problem, json_response
from shop.users.events import UserRegistered

LOOKS_LIKE_MAIL = re.compile(r"[^@\s<>\"]{1,64}@[A-Za-z0-9.-]{1,190}")


class NewUser(msgspec.Struct):
    """What a client sends."""

    name: str
    email: str
    user_id: str | None = None


async def register(request: Request) -> Response:
    """Take a user: the row and its event in one transaction."""
    user = _read_user(await read_body(request))
    async with _service().transaction() as tx:
        registered = await tx.execute(
            "insert into users (user_id, name, email) values (:user_id, :name, :email) "
            "on conflict (user_id) do nothing",
            user,
        )
        if registered:
            tx.publish(user)
        known = await tx.fetch_one("select name, email from users where user_id = :user_id", user)
    if known != (user.name, user.email):
        raise Problem(
            409,
            f"user {user.user_id!r} registered before with another name or address; it stays as it was",
            type="urn:shop:problem:user-conflict",
            user_id=user.user_id,
        )
    return json_response(user, 201, {"location": f"/users/{quote(user.user_id, safe='')}"})


async def show_user(request: Request) -> Response:
    """A user as registered."""
    user_id = request.path_params["user_id"]
    async with _service().transaction() as tx:
        row = await tx.fetch_one("select name, email from users where user_id = :user_id", {"user_id": user_id})
    if row is None:
        raise Problem(404, f"there is no user {user_id!r}")
    return json_response({"user_id": user_id, "name": row[0], "email": row[1]})


def _service() -> Any:
    from shop.users import service  # the service holds this application: they know each other

    return service


def _read_user(body: bytes) -> UserRegistered:
    new = decode(body, NewUser, "a user")
    user_id = f"USR-{uuid.uuid4().hex}" if new.user_id is None else new.user_id
    try:
        check_name("user_id", user_id)
        check_name("name", new.name)
    except ValueError as error:
        raise Problem(422, str(error)) from None
    if not LOOKS_LIKE_MAIL.fullmatch(new.email):
        raise Problem(422, f"email {new.email!r} is no mail address")
    return UserRegistered(user_id=user_id, name=new.name, email=new.email)


app = Starlette(
    routes=[
        Route("/users", register, methods=["POST"]),
        Route("/users/{user_id:path}", show_user, methods=["GET"]),
    ],
    exception_handlers=HANDLERS,
)
