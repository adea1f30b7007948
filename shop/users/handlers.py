"""The service `users`. It hears of nothing: all that it does is in its API."""

from __future__ import annotations

from eventkeel import Service
from shop.parts import schema_of
from shop.users.api import app

service = Service("users", schema=schema_of("shop.users"), http=app)
