"""How a start on PostgreSQL is refused, and that rolling deploys are not: every refusal is a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from eventkeel.errors import ConfigurationError, EventkeelError, StoreUnavailable
from eventkeel.ports.store import Verdict
from eventkeel.stores.postgres import PostgresStore
from eventkeel.stores.postgres import migrate as migrate_module
from eventkeel.stores.postgres.url import parse
from eventkeel.testing.store_kit import GROUP, NOW, TABLE, TTL, Workbench, claim, record, wanted
from eventkeel.testing.store_suite import INSERT, NOTES
from tests.stores.postgres_kit import Place, Proxy, until
from tools.realservers import Server, ServersError, install

NEW, DONE = Verdict.NEW, Verdict.DONE


async def refused(store: PostgresStore) -> EventkeelError:
    """What its opening says, for people: one sentence, within seconds."""
    began = time.monotonic()
    with pytest.raises(EventkeelError) as told:
        await store.open()
    await store.close()
    assert time.monotonic() - began < 15
    text = str(told.value)
    assert "\n" not in text and "Traceback" not in text and len(text) > 30
    return told.value


# ------------------------------------------------------------------ servers that will not do


async def test_a_database_that_is_not_there(place: Place) -> None:
    base = place.server.rpartition("/")[0]
    error = await refused(place.store(f"{base}/not_there"))
    assert isinstance(error, ConfigurationError) and "not_there" in str(error)


async def test_a_user_that_is_not_there(place: Place) -> None:
    error = await refused(place.store(place.server.replace("postgres@", "nobody_here@")))
    assert isinstance(error, ConfigurationError) and "nobody_here" in str(error)


async def test_a_wrong_password_is_not_shown(place: Place, tmp_path: Path) -> None:
    """A server that asks for one, by its part of the protocol."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(1000)
        if data[4:8] == b"\x04\xd2\x16\x2f":  # SSLRequest
            writer.write(b"N")
            data = await reader.read(1000)
        if data[4:8] == b"\x04\xd2\x16\x30":
            writer.write(b"N")
            await reader.read(1000)
        writer.write(b"R\x00\x00\x00\x08\x00\x00\x00\x03")  # cleartext, please
        await reader.read(1000)
        fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(place.store(f"postgresql://me:s3cret@127.0.0.1:{port}/db"))
        assert isinstance(error, ConfigurationError)
        assert "password authentication failed" in str(error) and "s3cret" not in str(error)


async def test_a_server_that_is_down(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = await refused(place.store(f"postgresql://me:s3cret@127.0.0.1:{port}/db"))
    assert isinstance(error, StoreUnavailable)
    assert "refused" in str(error) and "s3cret" not in str(error)


async def test_a_server_that_says_nothing(place: Place) -> None:
    async with Proxy(place.server) as proxy:
        proxy.deaf = True
        error = await refused(place.store(proxy.url, connect_timeout=2))
        assert isinstance(error, StoreUnavailable)


async def test_commits_that_could_be_lost_are_refused(place: Place) -> None:
    error = await refused(place.store(options="-c%20synchronous_commit%3Doff"))
    assert isinstance(error, ConfigurationError) and "synchronous_commit" in str(error)


async def test_a_session_that_may_only_read(place: Place) -> None:
    error = await refused(place.store(options="-c%20default_transaction_read_only%3Don"))
    assert isinstance(error, StoreUnavailable) and "read-only" in str(error)


async def test_a_standby_is_not_used_before_it_is_promoted(own_postgres: Server, place_for: Any) -> None:
    place = place_for(own_postgres.url)
    async with place.bench() as bench:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]
        await asyncio.to_thread(own_postgres.stop)
        (own_postgres.data / "standby.signal").touch()
        await asyncio.to_thread(own_postgres.start)
        error = await refused(place.store())
        assert isinstance(error, StoreUnavailable) and "hot standby" in str(error).replace("read-only", "hot standby")
        with pytest.raises(StoreUnavailable):
            await store.unsent([0], 10)
        with psycopg.connect(own_postgres.url, autocommit=True) as db:
            db.execute("select pg_promote()")
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2)) == [DONE, NEW]


async def test_of_several_hosts_the_one_that_can_be_written_to_is_taken(place: Place, own_postgres: Server) -> None:
    await asyncio.to_thread(own_postgres.stop)
    (own_postgres.data / "standby.signal").touch()
    await asyncio.to_thread(own_postgres.start)
    standby, primary = (psycopg.conninfo.conninfo_to_dict(url) for url in (own_postgres.url, place.server))
    hosts = f"postgresql://postgres@{standby['host']}:{standby['port']},{primary['host']}:{primary['port']}/postgres"
    async with place.bench(server=hosts) as bench:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]


def pgbouncer() -> Path | None:
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/opt/homebrew/bin")
    return Path(found) if found else None


@pytest.fixture
def pooler(place: Place, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """PgBouncer before the server, pooling by transaction: the URL of it, and the file that says how."""
    try:
        install.ensure([install.Need("PgBouncer", pgbouncer, "pgbouncer", "pgbouncer")])
    except ServersError as error:
        pytest.fail(f"no PgBouncer for this test: {error}", pytrace=False)
    program = pgbouncer()
    assert program is not None
    address = psycopg.conninfo.conninfo_to_dict(place.server)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder = Path(f"/tmp/pgb_{place.name}")
    folder.mkdir()
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(
        textwrap.dedent(f"""
        [databases]
        * = host={address["host"]} port={address["port"]}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        """)
    )
    # As anybody but root, which it refuses to be.
    user = next((each.pw_name for each in pwd.getpwall() if each.pw_name in ("postgres", "nobody")), None)
    as_user = ["-u", user] if os.geteuid() == 0 and user else []
    if as_user:
        subprocess.run(["chown", "-R", str(user), str(folder)], check=True)
    process = subprocess.Popen([program, *as_user, str(folder / "ini")], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "pgbouncer did not start"
                time.sleep(0.02)
        yield f"postgresql://postgres@127.0.0.1:{port}/{address['dbname']}", str(folder / "ini")
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


async def test_a_pooler_by_transaction_is_refused_and_left_as_it_was(place: Place, pooler: tuple[str, str]) -> None:
    url, _ = pooler
    error = await refused(place.store(url))
    assert isinstance(error, ConfigurationError) and "PgBouncer" in str(error)
    with psycopg.connect(url, autocommit=True) as db:  # perhaps on the very session that we have looked at
        assert db.execute("show lock_timeout").fetchone() == ("0",)


def test_what_is_wrong_in_a_url_is_said() -> None:
    for rest, words in (
        ("//h/db?pool=1", "pool=1"),
        ("//h/db?pool=x", "pool=x"),
        (f"//h/db?schema={'x' * 64}", "63 bytes"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            parse(rest)
    shown = parse("//me:s3cret@h:1/db?schema=a-b&sslmode=disable&pool=5")
    assert "s3cret" not in shown.shown and shown.schema == "a-b" and shown.pool == 5
    assert "sslmode=disable" in shown.conninfo and "schema" not in shown.conninfo


async def test_schemas_may_have_any_name(place: Place) -> None:
    made = Place(place.server, f"{place.name}-Grün.\"x'")
    store = PostgresStore(
        place.server.partition(":")[2] + f"?schema={place.name}-Gr%C3%BCn.%22x%27", "billing", shards=1
    )
    try:
        await store.open()
        await store.migrate(wanted(), apply=True)
        unit = store.unit()
        unit.close()
        assert (await store.lease(GROUP, "me", {}, ttl=TTL, now=NOW)).members == ("me",)
        with psycopg.connect(place.server) as db:
            found = db.execute(
                "select count(*) from pg_tables where schemaname = %s and tablename = 'paid'", [made.name]
            ).fetchall()
        assert found == [(1,)]
    finally:
        await store.close()
        with psycopg.connect(place.server, autocommit=True) as db:
            db.execute(psycopg.sql.SQL("drop schema if exists {} cascade").format(psycopg.sql.Identifier(made.name)))


# ------------------------------------------------------------------ rights


@contextlib.contextmanager
def poor_user(place: Place) -> Iterator[str]:
    """A user who may connect and nothing else: the server's URL for it."""
    role = f"{place.name}_poor"
    place.do(f'create role "{role}" login')
    try:
        yield place.server.replace("postgres@", f"{role}@")
    finally:
        with psycopg.connect(place.server, autocommit=True) as db:
            db.execute(f'drop owned by "{role}" cascade; drop role "{role}"'.encode())


async def test_a_user_who_may_make_nothing_is_told_what_to_grant(place: Place) -> None:
    with poor_user(place) as url:
        error = await refused(place.store(url))
        assert isinstance(error, ConfigurationError) and "Grant" in str(error)
        store = PostgresStore(url.partition(":")[2] + f"?schema={place.name}_new", "billing")
        error = await refused(store)
        assert isinstance(error, ConfigurationError) and "Grant" in str(error)


async def test_a_schema_made_for_a_user_is_enough(place: Place) -> None:
    with poor_user(place) as url:
        place.do(f'grant all on schema "{place.name}" to "{place.name}_poor"')
        async with place.bench(server=url) as bench:
            store = await bench.store()
            async with bench.unit(store) as unit:
                assert await unit.claim(claim(1)) == [NEW]


# ------------------------------------------------------------------ versions


@contextlib.contextmanager
def newer(monkeypatch: pytest.MonkeyPatch, script: str, *, oldest: int) -> Iterator[ModuleType]:
    """The next version of Eventkeel, whose tables differ by ``script``."""
    with monkeypatch.context() as patch:
        real = migrate_module._script
        patch.setattr(migrate_module, "VERSION", 3)
        patch.setattr(migrate_module, "OLDEST", oldest)
        patch.setattr(
            migrate_module, "_script", lambda name: script.encode() if name == "migrations/0003.sql" else real(name)
        )
        yield migrate_module


BACK_TO_THE_FIRST = """
drop table eventkeel_journal, eventkeel_timer;
update eventkeel_meta set value = '1' where name = 'schema'
"""


async def test_what_the_first_version_made_is_brought_up_to_date(pga: Workbench, place: Place) -> None:
    await pga.store()
    place.do(BACK_TO_THE_FIRST)
    store = await pga.store()
    async with pga.unit(store) as unit:
        await unit.run(unit.unit.schedule([record(1)], [NOW]))
    assert place.ask("select value from eventkeel_meta where name = 'schema'") == [("2",)]


ADDS = "alter table eventkeel_inbox add column more text; create table eventkeel_more (a integer)"


async def test_two_versions_run_side_by_side(pga: Workbench, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await pga.store()
    async with pga.unit(old) as unit:
        assert await unit.claim(claim(1)) == [NEW]
    with newer(monkeypatch, ADDS, oldest=1):
        new = await pga.store()
        await pga.store()  # and a second process of it finds everything done
    assert place.ask("select name, value from eventkeel_meta where name in ('schema', 'oldest') order by 1") == [
        ("oldest", "1"),
        ("schema", "3"),
    ]
    again = await pga.store()  # an old one that starts now
    for number, store in enumerate((old, new, again), start=2):
        async with pga.unit(store) as unit:
            assert await unit.claim(claim(1), claim(number)) == [DONE, NEW]
    assert place.ask("select value from eventkeel_meta where name = 'schema'") == [("3",)]  # and it put nothing back


async def test_tables_that_are_too_new_are_refused(
    pga: Workbench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pga.store()
    with newer(monkeypatch, ADDS, oldest=3):
        await pga.store()
    error = await refused(place.store())
    assert isinstance(error, ConfigurationError)
    assert "newer Eventkeel" in str(error)


async def test_a_migration_that_fails_changes_nothing(
    pga: Workbench, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pga.store()
    with newer(monkeypatch, ADDS + "; select 1/0", oldest=1), pytest.raises((psycopg.Error, EventkeelError)):
        await pga.store()
    assert place.ask("select to_regclass('eventkeel_more') is null") == [(True,)]
    await pga.store()


START = """
import asyncio, sys
from eventkeel.stores.postgres import PostgresStore
from eventkeel.testing.store_kit import *

async def main(rest):
    store = PostgresStore(rest, SERVICE, shards=1)
    await store.open()
    await store.migrate(wanted(), apply=True)
    print(store.store_id)
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_many_processes_that_start_at_once_make_one_database(place: Place) -> None:
    async def start() -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            START,
            place.url().partition(":")[2],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out

    assert len(set(await asyncio.gather(*(start() for _ in range(5))))) == 1


# ------------------------------------------------------------------ the user's schema


async def test_ddl_behind_a_long_transaction_gives_up_within_seconds(pga: Workbench, place: Place) -> None:
    """Who waits for a table makes everybody behind it wait."""
    store = await pga.store()
    with place.raw() as other:
        other.execute("begin; select * from paid")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="waits for a lock that others have"):
            await store.migrate(wanted(ddl=(TABLE, "alter table paid add column more text")), apply=True)
        assert time.monotonic() - began < 8
        other.execute("rollback")
    async with pga.unit(store) as unit:
        await unit.sql(INSERT, {"number": 1, "note": ""})
    await store.migrate(wanted(ddl=(TABLE, "alter table paid add column more text")), apply=True)


async def test_ddl_that_meets_a_running_service_in_a_deadlock_tries_again(pga: Workbench, place: Place) -> None:
    more = "create table if not exists more (number integer)"
    store = await pga.store(ddl=(TABLE, more))
    # PostgreSQL ends whoever finds the deadlock, after deadlock_timeout: here never the running service.
    with place.raw() as other:
        other.execute("set deadlock_timeout = '1min'")
        other.execute("begin; insert into more values (1)")
        ddl = (
            TABLE,
            more,
            "create index if not exists a on paid (note)",
            "create index if not exists b on more (number)",
        )
        starting = asyncio.create_task(store.migrate(wanted(ddl=ddl), apply=True))
        await until(place.waiting)
        crossing = asyncio.create_task(asyncio.to_thread(other.execute, "insert into paid values (1, '')"))
        await crossing
        other.execute("commit")
        await starting
    assert place.ask(
        "select count(*) from pg_indexes where schemaname = %s and indexname in ('a', 'b')", place.name
    ) == [(2,)]


async def test_functions_with_semicolons_and_quotes_are_taken_as_they_are(pga: Workbench) -> None:
    ddl = """
    create table if not exists paid (number integer primary key, note text not null);
    create or replace function shout() returns trigger language plpgsql as $body$
    begin
      if new.note = ';' then raise exception 'no; %', $$never; ever$$; end if;
      new.note := upper(new.note) || ';';  -- a comment; with one
      return new;
    end $body$;
    drop trigger if exists shout on paid;
    create trigger shout before insert on paid for each row execute function shout();
    """
    store = await pga.store(ddl=(ddl,))
    await store.migrate(wanted(ddl=(ddl,)), apply=True)
    async with pga.unit(store) as unit:
        await unit.sql(INSERT, {"number": 1, "note": "hey"})
    assert await pga.rows(store, NOTES) == [(1, "HEY;")]


async def test_a_schema_is_applied_as_a_whole_or_not_at_all(pga: Workbench, place: Place) -> None:
    store = await pga.store()
    bad = ("create table half (a integer); insert into half values (1)", "create table other (a nonsense)")
    with pytest.raises(ConfigurationError, match="create table other"):
        await store.migrate(wanted(ddl=bad), apply=True)
    assert place.ask("select to_regclass('half') is null") == [(True,)]
    for word in ("commit", "begin", "rollback; create table x (a integer)"):
        with pytest.raises(ConfigurationError, match="must not say"):
            await store.migrate(wanted(ddl=(f"create table half (a integer); {word}",)), apply=True)
    assert place.ask("select to_regclass('half') is null") == [(True,)]


async def test_a_server_in_another_schema_hides_nothing(place: Place) -> None:
    """Tables of one service are not found in the schema of another, nor in public."""
    first, second = Place(place.server, f"{place.name}_a"), Place(place.server, f"{place.name}_b")
    try:
        async with first.bench() as one, second.bench() as two:
            a, b = await one.store(), await two.store()
            async with one.unit(a) as unit:
                assert await unit.claim(claim(1)) == [NEW]
            async with two.unit(b) as unit:
                assert await unit.claim(claim(1)) == [NEW]
            assert a.store_id != b.store_id
    finally:
        first.drop()
        second.drop()
