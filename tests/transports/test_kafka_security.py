"""A service at a broker that speaks TLS and wants to know who is there, by options of its URL alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

from tests.certificates import identity
from tests.cli.kit import SAMPLE, Place, until
from tools.realservers import Servers, ServersError

pytestmark = [pytest.mark.servers, pytest.mark.slow]

PASSWORD = "h+sh&h%sh#1"
WRONG = "wr+ng&h%sh#1"
SOON = 30.0
"""Seconds for a refusal, with all that a busy machine adds to the few that it takes."""


class Guarded(NamedTuple):
    """A broker with a door."""

    server: str
    authority: Path
    stranger: Path
    """A certificate authority that did not sign the broker."""

    def url(self, **options: str | Path) -> str:
        """With everything as it has to be, but for ``options`` (``_`` for a dot; empty: left out)."""
        said: dict[str, str | Path] = {
            "security_protocol": "sasl_ssl",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "ada",
            "sasl_password": PASSWORD,
            "ssl_ca_location": self.authority,
            **options,
        }
        wanted = {name.replace("_", "."): str(value) for name, value in said.items() if value}
        return f"kafka://{self.server}?{urlencode(wanted, quote_via=quote)}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("certificates")
    ours, strange = identity(folder, "broker"), identity(folder, "stranger")
    with Servers.temporary() as servers:
        servers.kafka.secure(ours.both, {"ada": PASSWORD})
        trouble = None
        try:
            servers.up("kafka")
        except ServersError as error:
            trouble = error
        if trouble:
            pytest.fail(f"no kafka for this test: {trouble}", pytrace=False)
        yield Guarded(f"127.0.0.1:{servers.kafka.port('secure')}", ours.authority, strange.authority)


def at(folder: Path, url: str) -> Place:
    place = Place(folder)
    place.environ |= {"EVENTKEEL_BROKER": url, "EVENTKEEL_LOG_LEVEL": "debug"}
    return place


def nothing_shows_the_password(*texts: str) -> None:
    for password in (PASSWORD, WRONG):
        for form in (password, quote(password), quote(password, safe="")):
            for text in texts:
                assert form not in text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_an_event_is_handled_over_tls_by_a_user_who_logs_in(guarded: Guarded, tmp_path: Path, mechanism: str) -> None:
    place = at(tmp_path, guarded.url(sasl_mechanism=mechanism, prefix=f"{uuid4().hex}."))
    with place.run(SAMPLE) as running:
        until(lambda: place.rows("select 1 from seats limit 0") == [] and running.pids("bookings/1"), "a worker")
        published = place.say("publish", SAMPLE, "Booked", '{"seat": "12A"}')
        assert published.code == 0, published.err
        until(lambda: place.rows("select seat from seats") == [("12A",)], "the seat is booked")
        assert running.stop() == 0
        said = [running.out, running.err, published.out, published.err]
    lag, shown, machine = place.say("lag", SAMPLE), place.say("config", "show"), place.say("config", "show", "--json")
    assert lag.code == 0
    assert "sasl.username=ada&sasl.password=***&" in shown.out
    nothing_shows_the_password(*said, lag.out, lag.err, shown.out, machine.out)


def refusal(place: Place) -> str:
    """What a service says that is not let in: one start, soon."""
    with place.run(SAMPLE) as running:
        assert running.process is not None
        assert running.process.wait(SOON) != 0
        said = running.out + running.err
    assert len(running.pids("bookings/1")) == 1, "trying again does not mend it"
    assert "Traceback" not in said
    published = place.say("publish", SAMPLE, "Booked", '{"seat": "12A"}')
    assert published.code == 2
    nothing_shows_the_password(said, published.out, published.err)
    return said


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_a_wrong_password_ends_the_start_and_is_not_shown(guarded: Guarded, tmp_path: Path, mechanism: str) -> None:
    said = refusal(at(tmp_path, guarded.url(sasl_mechanism=mechanism, sasl_password=WRONG)))
    assert "the broker does not let this user in; correct sasl.username, sasl.password and sasl.mechanism" in said


def test_a_mechanism_that_the_broker_does_not_have_ends_the_start(guarded: Guarded, tmp_path: Path) -> None:
    said = refusal(at(tmp_path, guarded.url(sasl_mechanism="SCRAM-SHA-256")))
    assert "sasl.mechanism" in said
    assert "SCRAM-SHA-512" in said, "the broker's own are named"


def test_an_unknown_authority_ends_the_start(guarded: Guarded, tmp_path: Path) -> None:
    said = refusal(at(tmp_path, guarded.url(ssl_ca_location=guarded.stranger)))
    assert "the encrypted connection could not be made; correct security.protocol and ssl.… in the URL" in said
    assert "certificate verify failed" in said


def test_an_authority_that_cannot_be_read_ends_the_start(guarded: Guarded, tmp_path: Path) -> None:
    said = refusal(at(tmp_path, guarded.url(ssl_ca_location=tmp_path / "none.pem")))
    assert "ssl.ca.location has to be the path of a PEM file that can be read" in said


def test_a_mechanism_left_out_is_asked_for(guarded: Guarded, tmp_path: Path) -> None:
    assert "write sasl.mechanism=SCRAM-SHA-512" in refusal(at(tmp_path, guarded.url(sasl_mechanism="")))


def test_a_forgotten_security_protocol_is_named(guarded: Guarded, tmp_path: Path) -> None:
    said = at(tmp_path, guarded.url(security_protocol="")).say("publish", SAMPLE, "Booked", '{"seat": "12A"}')
    assert said.code != 0
    assert "security.protocol" in said.err
    nothing_shows_the_password(said.out, said.err)
