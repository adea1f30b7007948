"""tools/servers: what is started is found, hurt, healed and removed, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika  # type: ignore[import-untyped]
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tools.realservers import Server, Servers, ServersError, exports, install, places, processes
from tools.realservers.__main__ import main

TOOL = Path(__file__).parents[1] / "tools" / "servers"


class Toy(Server):
    """A shell with a child that ignores SIGTERM; it answers when both run."""

    def __init__(self, home: Path, script: str) -> None:
        super().__init__("toy", home)
        self._script = script

    @property
    def url(self) -> str:
        return f"toy://{places.HOST}:{self.port()}"

    def answers(self) -> bool:
        return (self.data / "child").exists()

    def _prepare(self) -> None:
        self.data.mkdir(exist_ok=True)

    def _launch(self) -> tuple[int, str]:
        (self.data / "child").unlink(missing_ok=True)
        return processes.spawn(
            ["/bin/sh", "-c", self._script], log=self.log, folder=self.data, environment=os.environ
        )  # fmt: skip


FAMILY = "sh -c 'trap \"\" TERM; echo > child; exec sleep 1000' & wait"


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    server = Toy(tmp_path, FAMILY)
    yield server
    server.remove()


def test_a_crash_ends_the_whole_family_and_leaves_its_port_and_data(toy: Toy) -> None:
    toy.start()
    (toy.data / "row").write_text("1")
    port, pids = toy.port(), toy.pids()
    assert len(pids) >= 2 and toy.status == "running"
    toy.kill9()
    assert toy.pids() == [] and toy.status == "stopped"
    assert processes.table().keys().isdisjoint(pids)
    toy.start()
    assert (toy.port(), (toy.data / "row").read_text(), toy.status) == (port, "1", "running")


def test_children_whose_parent_was_killed_end_before_the_next_start(toy: Toy) -> None:
    toy.start()
    root, *children = toy.pids()
    os.kill(root, signal.SIGKILL)
    assert processes.wait_until_gone([root], 5)
    toy.start()
    assert set(children).isdisjoint(toy.pids()) and toy.pid != root


def test_a_paused_server_does_nothing_until_it_is_resumed(toy: Toy) -> None:
    toy.start()
    toy.pause()
    assert toy.status == "paused"
    assert {processes.table()[pid].state for pid in toy.pids()} == {"T"}
    toy.resume()
    assert toy.status == "running"


def test_a_paused_server_can_be_killed_and_removed(toy: Toy) -> None:
    toy.start()
    toy.pause()
    pids = toy.pids()
    toy.remove()
    assert processes.table().keys().isdisjoint(pids)
    assert not toy.folder.exists()


def test_another_object_for_the_same_folder_controls_the_same_server(toy: Toy, tmp_path: Path) -> None:
    toy.start()
    other = Toy(tmp_path, "exit 1")
    assert other.pids() == toy.pids()
    other.start()  # it runs: nothing happens
    other.kill9()
    assert toy.status == "stopped"


def test_a_pid_that_the_system_uses_again_is_not_taken_for_the_server(toy: Toy) -> None:
    toy.reserve()
    toy._remember(pid=os.getpid(), born="long ago")
    assert toy.pid is None
    toy.kill9()  # and this test goes on


def test_a_server_that_ends_while_it_starts_tells_its_last_words(tmp_path: Path) -> None:
    server = Toy(tmp_path, "echo the disk is full; exit 1")
    with pytest.raises(ServersError, match=r"toy ended while it started:\n    the disk is full"):
        server.start()


def test_ports_lie_outside_those_that_the_system_gives_to_clients() -> None:
    with socket.socket() as client:
        client.bind((places.HOST, 0))
        given = client.getsockname()[1]
    ports = {places.free_port() for _ in range(50)}
    assert len(ports) > 1 and all(15000 <= port < min(given, 32768) or given < 15000 for port in ports)


def test_a_shell_gets_the_urls_as_they_are() -> None:
    lines = exports({"kafka": "kafka://a:1?x=$HOME&y='", "postgres": "postgresql://p@h:2/d?sslmode=disable"})
    shown = subprocess.run(
        ["sh", "-c", "\n".join([*lines, 'printf "%s\\n" "$EVENTKEEL_BROKER" "$EVENTKEEL_STORE"'])],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.splitlines() == [
        "kafka://a:1?x=$HOME&y='",
        "postgresql://p@h:2/d?sslmode=disable&schema={service}",
    ]


@pytest.mark.parametrize(
    ("uid", "system", "says"),
    [
        (0, "linux", "Type: apt-get install -y --no-install-recommends default-jre-headless maven postgresql$"),
        (1000, "linux", "Type: sudo apt-get install -y --no-install-recommends default-jre-headless maven postgresql$"),
        (1000, "darwin", r"Type: brew install openjdk maven postgresql@17$"),
        (1000, "freebsd", "docs/howto/real-servers.md"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, uid: int, system: str, says: str
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    needs = [need._replace(find=lambda: None) for need in (install.JAVA, install.MAVEN, install.POSTGRES)]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        patch.setattr(os, "getuid", lambda: uid)
        patch.setattr(sys, "platform", system)
        patch.setattr(Path, "exists", lambda path: system == "linux")
        patch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        with pytest.raises(ServersError) as caught:
            install.ensure(needs)
    assert re.search(says, str(caught.value)) and "\n" not in str(caught.value)
    assert [command[0] for command in ran] == (["apt-get", "apt-get"] if uid == 0 else [])


def test_a_servers_url_of_yours_is_used_and_nothing_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENTKEEL_SERVERS", str(tmp_path / "home"))
    with socket.create_server((places.HOST, 0)) as somebody:
        port = somebody.getsockname()[1]
        monkeypatch.setenv("EVENTKEEL_TEST_KAFKA", f"127.0.0.1:{port}")
        assert main(["up", "kafka"]) == 0
        assert capsys.readouterr().out == f"export EVENTKEEL_BROKER=kafka://127.0.0.1:{port}\n"
        assert not (tmp_path / "home").exists()
    assert main(["up", "kafka"]) == 1
    assert f"nobody answers at EVENTKEEL_TEST_KAFKA=kafka://127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("up mysql", "there is no 'mysql'; there are kafka, kafka-cluster, postgres, rabbitmq, rabbitmq-cluster"),
        ("kill postgres", "postgres was not started here: tools/servers up postgres"),
        ("start nothing", "there is no server 'nothing'"),
        ("pause", "name what to pause"),
        ("env", "nothing is up here: tools/servers up kafka postgres"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, command: str, says: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EVENTKEEL_TEST")}
    done = subprocess.run(
        [TOOL, *command.split()],
        env={**environment, "EVENTKEEL_SERVERS": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_servers_whose_owner_was_killed_are_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    owner = subprocess.run(
        [sys.executable, "-c", "from tools.realservers import Servers; print(Servers.temporary().home)"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=TOOL.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    left = Path(owner.stdout.strip())
    assert left.exists()
    with Servers.temporary() as mine:
        assert mine.home.exists() and not left.exists()
        Servers.sweep()
        assert mine.home.exists()  # its owner lives
    assert not mine.home.exists()


def produce(url: str, topic: str, value: bytes) -> tuple[int, int]:
    """Partition and position, confirmed."""
    told: list[tuple[KafkaError | None, Message]] = []
    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://"), "enable.idempotence": True})
    producer.produce(topic, value, on_delivery=lambda error, message: told.append((error, message)))
    assert producer.flush(60) == 0
    [(error, message)] = told
    assert error is None
    partition, position = message.partition(), message.offset()
    assert partition is not None and position is not None
    return partition, position


def make_topic(url: str, replication: int) -> str:
    topic = f"servers-{uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://")})
    admin.create_topics([NewTopic(topic, 1, replication)])[topic].result(30)
    return topic


def value_at(url: str, topic: str, partition: int, position: int) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": url.removeprefix("kafka://"), "group.id": topic})
    consumer.assign([TopicPartition(topic, partition, position)])
    try:
        message = consumer.poll(60)
        assert message is not None and message.error() is None
        return message.value()
    finally:
        consumer.close()


def test_a_shared_broker_takes_messages(kafka_url: str) -> None:
    topic = make_topic(kafka_url, 1)
    assert value_at(kafka_url, topic, *produce(kafka_url, topic, b"x")) == b"x"


def test_each_test_has_a_database_of_its_own(database: str, postgres_url: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("create table t (n int)")
        [[name, durable, stamped]] = connection.execute(
            "select current_database(), current_setting('fsync'), current_setting('track_commit_timestamp')"
        ).fetchall()
    assert (durable, stamped) == ("on", "on")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select 1 from pg_class where relname = 't'").fetchall() == []
        assert connection.execute("select 1 from pg_database where datname = %s", [name]).fetchall() == [(1,)]


def test_a_confirmed_commit_survives_a_kill_and_the_address_stays(own_postgres: Server) -> None:
    url = own_postgres.url
    with psycopg.connect(url) as connection:
        connection.execute("create table t as select 7 as n")
    idle = psycopg.connect(url)
    own_postgres.kill9()
    with pytest.raises(psycopg.OperationalError):
        idle.execute("select 1")
    idle.close()
    own_postgres.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("select n from t").fetchall() == [(7,)]


def test_a_paused_postgres_holds_its_connections_until_it_is_resumed(own_postgres: Server) -> None:
    with psycopg.connect(own_postgres.url) as connection:
        connection.pgconn.send_query(b"select 1")
        assert readable(connection.pgconn.socket, 10)
        connection.pgconn.get_result()
        assert connection.pgconn.get_result() is None
        own_postgres.pause()
        connection.pgconn.send_query(b"select 2")
        assert not readable(connection.pgconn.socket, 0.3)
        own_postgres.resume()
        assert readable(connection.pgconn.socket, 10)
        connection.pgconn.get_result()
        assert connection.pgconn.get_result() is None


def readable(descriptor: int, patience: float) -> bool:
    return bool(select.select([descriptor], [], [], patience)[0])


@pytest.mark.slow
def test_a_confirmed_message_survives_a_kill_of_the_broker(own_kafka: Server) -> None:
    topic = make_topic(own_kafka.url, 1)
    place = produce(own_kafka.url, topic, b"kept")
    own_kafka.kill9()
    own_kafka.start()
    assert value_at(own_kafka.url, topic, *place) == b"kept"


@pytest.mark.slow
def test_a_cluster_goes_on_without_one_of_three(own_kafka_cluster: Servers) -> None:
    url = own_kafka_cluster.url("kafka-cluster")
    topic = make_topic(url, 3)
    place = produce(url, topic, b"before")
    own_kafka_cluster.cluster[1].kill9()
    produce(url, topic, b"after")
    assert value_at(url, topic, *place) == b"before"
    own_kafka_cluster.start("kafka-2")
    assert own_kafka_cluster["kafka-2"].status == "running"


def publish_until_taken(connection: Any, queue: str, body: bytes, patience: float = 30.0) -> None:
    """Until a queue has another leader its messages are refused, and a channel that saw that goes on refusing."""
    deadline = time.monotonic() + patience
    while True:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            channel.basic_publish("", queue, body)
            return
        except pika.exceptions.NackError:
            assert time.monotonic() < deadline
        finally:
            channel.close()


@pytest.mark.slow
def test_a_rabbitmq_cluster_goes_on_without_one_of_three(own_rabbitmq_cluster: Servers) -> None:
    first, second, third = own_rabbitmq_cluster.nodes
    arguments = {"x-queue-type": "quorum", "x-queue-leader-locator": "client-local"}
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(first.url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True, arguments=arguments)
        channel.basic_publish("", "kept", b"before")
    pids = first.pids()
    first.kill9()
    assert processes.table().keys().isdisjoint(pids)
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(second.url))) as connection:
        publish_until_taken(connection, "kept", b"after")
        channel = connection.channel()
        for expected in (b"before", b"after"):
            method, _, body = channel.basic_get("kept", auto_ack=True)
            assert method is not None and body == expected
    first.start()
    assert [node.status for node in (first, second, third)] == ["running"] * 3


@pytest.mark.slow
@pytest.mark.servers
def test_down_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EVENTKEEL_TEST")}
    home = places.make(Path(os.environ["EVENTKEEL_TEST_RUN"]) / f"down-{tmp_path.name}")

    def tool(*arguments: str) -> str:
        return subprocess.run(
            [TOOL, *arguments], env={**environment, "EVENTKEEL_SERVERS": str(home)}, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    shown = tool("up", "kafka", "postgres")
    assert shown == tool("env")
    pids = [pid for name in ("kafka", "postgres") for pid in Servers(home)[name].pids()]
    assert len(pids) > 4
    tool("down")
    assert processes.table().keys().isdisjoint(pids)
    assert not home.exists()
