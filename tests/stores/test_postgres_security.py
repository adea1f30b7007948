"""A store that wants a password and speaks TLS: how it is reached, and how its refusals are told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from eventkeel.errors import ConfigurationError
from eventkeel.stores.postgres import PostgresStore
from eventkeel.stores.postgres.url import parse
from tests.certificates import identity
from tests.cli.kit import SAMPLE, Place
from tools.realservers import Servers, ServersError

PASSWORD = "h+sh&h%sh#1"


class Guarded(NamedTuple):
    port: int
    authority: Path
    stranger: Path

    def url(self, user: str = "ada", password: str = PASSWORD, database: str = "postgres", **options: object) -> str:
        said = {"sslmode": "verify-full", "sslrootcert": self.authority, **options}
        query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in said.items())
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}?{query}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("certificates")
    ours, strange = identity(folder, "server"), identity(folder, "stranger")
    with Servers.temporary() as servers:
        trouble = None
        try:
            servers.up("postgres")
        except ServersError as error:
            trouble = error
        if trouble:
            pytest.fail(f"no postgres for this test: {trouble}", pytrace=False)
        data = servers.postgres.data
        owner = data.stat()
        for source, name in ((ours.certificate, "server.crt"), (ours.key, "server.key")):
            shutil.copy(source, data / name)
            (data / name).chmod(0o600)
            os.chown(data / name, owner.st_uid, owner.st_gid)
        with psycopg.connect(servers.postgres.url, autocommit=True) as admin:
            admin.execute("alter system set ssl = on")
            admin.execute(f"create role ada superuser login password '{PASSWORD}'".encode())
        (data / "pg_hba.conf").write_text("hostssl all ada all scram-sha-256\nhost all postgres all trust\n")
        servers.postgres.restart()
        yield Guarded(servers.postgres.port(), ours.authority, strange.authority)


pytestmark = pytest.mark.servers


@pytest.mark.asyncio
async def test_a_user_with_a_password_is_let_in_over_tls(guarded: Guarded) -> None:
    store = PostgresStore(guarded.url(schema=f"s{uuid4().hex}").partition(":")[2], "bookings", shards=1)
    await store.open()
    await store.close()


@pytest.mark.asyncio
async def test_a_password_in_the_query_is_taken_as_it_is(guarded: Guarded) -> None:
    url = guarded.url(schema=f"s{uuid4().hex}", password_="").replace(f":{quote(PASSWORD, safe='')}@", "@")
    store = PostgresStore(
        url.replace("password_=", "password=h+sh%26h%25sh%231").partition(":")[2], "bookings", shards=1
    )
    await store.open()  # a plus is a plus, as to libpq
    await store.close()


def test_refusals_end_the_start_and_say_what_to_change(guarded: Guarded, tmp_path: Path) -> None:
    refused = "Correct user, password and database in the store's URL"
    for url, words in (
        (guarded.url(password="wr+ng"), f'password authentication failed for user "ada". {refused}'),
        (guarded.url(user="nobody"), refused),
        (guarded.url(database="not_there"), f'database "not_there" does not exist. {refused}'),
        (guarded.url(sslmode="disable"), refused),
        (guarded.url(sslrootcert=guarded.stranger), "correct sslmode, sslrootcert"),
        (guarded.url(sslrootcert=tmp_path / "none.pem"), "correct sslmode, sslrootcert"),
        (guarded.url(no_such="1"), "no_such"),
    ):
        place = Place(tmp_path / uuid4().hex)
        place.environ |= {"EVENTKEEL_STORE": url, "EVENTKEEL_LOG_LEVEL": "debug"}
        said = place.say("run", SAMPLE)  # it would not end, if it tried again
        assert said.code != 0
        assert words in said.err
        assert "Traceback" not in said.err
        for password in (PASSWORD, "wr+ng"):
            for form in (password, quote(password, safe="")):
                assert form not in said.out + said.err


@pytest.mark.parametrize("password", ["h/ush", "h?ush", "h#ush", "hush%", "hu%zsh"])
def test_a_password_that_tears_the_url_is_refused_with_how_to_write_it(password: str) -> None:
    with pytest.raises(ConfigurationError, match="%2F") as refused:
        parse(f"//me:{password}@host:5432/db?schema=x")
    assert "ush" not in str(refused.value)
