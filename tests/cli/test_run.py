"""``eventkeel run``: processes that start, come back, drain, and never outlive their supervisor."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request

import pytest

from eventkeel.testing.fleet import free_port, wait_for_port
from tests.cli.kit import SAMPLE, Place, alive, until


def test_an_event_published_by_command_is_handled_by_a_running_service(place: Place) -> None:
    with place.run(SAMPLE) as running:
        until(lambda: running.pids("bookings/1"), "the worker's pid")
        said = place.say("publish", SAMPLE, "Booked", '{"seat": "12A", "guest": "Ada"}', "--json")
        assert (said.code, said.json["topic"], said.json["type"]) == (0, "cli_bookings", "Booked")
        until(lambda: place.rows("select seat, guest from seats") == [("12A", "Ada")], "the row")
        assert running.stop() == 0
        assert "received service=bookings topic=cli_bookings" in running.err
        assert f"id={said.json['id']}" in running.err
        assert "done service=bookings ending=applied consumer=bookings/book" in running.err


def test_what_nobody_relays_is_sent_by_the_command_itself(place: Place) -> None:
    said = place.say("publish", SAMPLE, "Booked", '{"seat": "1"}', "--json")
    assert (said.code, said.json["sent"]) == (0, True), said.err
    with place.run(SAMPLE):
        until(lambda: place.rows("select seat from seats") == [("1",)], "the row")


def test_a_killed_worker_comes_back_and_goes_on(place: Place) -> None:
    with place.run(SAMPLE, "--workers", "2") as running:
        until(lambda: running.pids("bookings/1") and running.pids("bookings/2"), "two pids")
        os.kill(running.pids("bookings/1")[0], signal.SIGKILL)
        until(lambda: len(running.pids("bookings/1")) == 2, "another process in the same seat")
        assert "ended by SIGKILL; again in" in running.out
        assert place.say("publish", SAMPLE, "Booked", '{"seat": "2"}').code == 0
        until(lambda: place.rows("select seat from seats") == [("2",)], "the row")
        assert running.stop(signal.SIGINT) == 0


def test_processes_end_when_their_supervisor_is_killed(place: Place) -> None:
    with place.run(SAMPLE, "--workers", "2") as running:
        until(lambda: running.pids("bookings/1") and running.pids("bookings/2"), "two pids")
        until(lambda: place.rows("select 1 from eventkeel_meta where name = 'service'"), "a started worker")
        pids = running.pids("bookings/1") + running.pids("bookings/2")
        running.stop(signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), "the end of the workers")


def test_its_processes_are_told_as_json_to_programs(place: Place) -> None:
    with place.run(SAMPLE, "--json") as running:
        until(lambda: running.out.count("\n") >= 1, "the first line")
        told = json.loads(running.out.splitlines()[0])
        assert (told["kind"], told["name"]) == ("started", "bookings/1")
        assert place.say("publish", SAMPLE, "Booked", '{"seat": "3"}').code == 0
        until(lambda: '"message": "done"' in running.err, "a log line")
        assert json.loads(running.err.splitlines()[-1])["service"] == "bookings"
        assert running.stop() == 0


def test_http_is_served_in_a_process_of_its_own(place: Place) -> None:
    port = free_port()
    with place.run("shop.orders:service", "--http", f"127.0.0.1:{port}") as running:

        def answers() -> bool:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/orders/none", timeout=5)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code == 404
            except OSError:
                return False
            return False

        until(answers, "an answer")
        assert running.pids("orders/http") != running.pids("orders/1")
        assert running.stop() == 0
        assert "[orders/http] pid " in running.out
        assert "ended with exit code 0" in running.out.splitlines()[-1]


def test_the_applications_of_several_services_are_served_where_each_is_told(place: Place) -> None:
    ports = {"orders": free_port(), "users": free_port()}
    words = [word for name, port in ports.items() for word in ("--http", f"{name}=:{port}")]
    with place.run("shop.orders:service", "shop.users:service", *words) as running:
        until(lambda: all(wait_for_port("127.0.0.1", port, 0.1) for port in ports.values()), "both answer")
        assert {"[orders/http]", "[users/http]"} <= {*running.out.split()}
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((SAMPLE, SAMPLE), "named twice"),
        ((SAMPLE, "tests.cli.sample:twin", "--store", "sqlite:///one.sqlite3"), "the same database"),
        ((SAMPLE, "--http", "127.0.0.1:8000"), "no service here has an HTTP application"),
        ((SAMPLE, "--http", "8000x"), "no service here has an HTTP application"),
        (("shop.orders:service", "--http", "8000x"), "is not HOST:PORT"),
        (
            ("shop.orders:service", "shop.users:service", "--http", ":8000"),
            "whose application? Write --http orders=:8000",
        ),
        (("shop.orders:service", "--http", "users=:8000"), "no service here is called 'users' and has one: orders"),
        (("shop.orders:service", "--http", "orders=:0x", "--http", "orders=:1"), "is not HOST:PORT"),
        ((SAMPLE, "--workers", "0"), "'--workers'"),
        ((SAMPLE, "--set", "partions=3"), "did you mean 'partitions'?"),
        (("tests.cli.sample:servise",), "no Service called 'servise'"),
        (("tests.cli.simple:service",), "there is no module 'tests.cli.simple'"),
        (("sample",), "is not MODULE:ATTRIBUTE"),
        ((SAMPLE, "--broker", "amqp://localhost?speed=high"), "is no option of RabbitMQ's transport"),
        ((SAMPLE, "--broker", "nats://localhost"), "nothing is installed for 'nats'"),
        ((SAMPLE, "--store", "mysql://localhost/x"), "nothing is installed for 'mysql'"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(place: Place, words: tuple[str, ...], reason: str) -> None:
    said = place.say("run", *words)
    assert said.code == 2
    assert reason in said.err
    assert "Traceback" not in said.err


def test_an_address_that_is_taken_is_refused(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = place.say("run", "shop.orders:service", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert said.code == 2
    assert "in use" in said.err


def test_a_module_that_fails_says_where(place: Place) -> None:
    place.data.mkdir()
    (place.data / "broken_service.py").write_text("import nothing_of_this_name\n")
    said = place.say("run", "broken_service:service", cwd=place.data)
    assert said.code == 2
    assert "No module named 'nothing_of_this_name'" in said.err
    assert "line 1 of" in said.err
    assert "Traceback" not in said.err
