"""``eventkeel run``: services as processes, under one supervisor."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click

from eventkeel.cli.loading import load_all
from eventkeel.cli.shape import Command, configured, json_option, services_argument
from eventkeel.cli.show import print_json, talk
from eventkeel.config import Config, environment
from eventkeel.errors import ConfigurationError
from eventkeel.service import Service
from eventkeel.supervise import Happening, Seat, supervise


@click.command(
    cls=Command,
    short_help="Run services.",
    examples=(
        ("eventkeel run shop.payments:service", "one process, SQLite files in .data"),
        ("eventkeel run shop.orders:service shop.payments:service --workers 2", "two processes of each"),
        ("eventkeel run shop.orders:service --http 127.0.0.1:8000", "its HTTP application beside the workers"),
        ("eventkeel run … --http orders=:8000 --http users=:8001", "the applications of several"),
        ("eventkeel run shop.payments:service --data /var/lib/shop", "files elsewhere"),
    ),
)
@services_argument
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes of each service.  [1]")
@click.option(
    "--http",
    multiple=True,
    metavar="[SERVICE=]HOST:PORT",
    help="Serve a service's HTTP application, in a process of its own; may be given for each.",
)
@click.option(
    "--start",
    type=click.Choice(["none", "earliest", "group", "store"]),
    help="Where a group starts that only the broker knows, or that it has further back than the inbox remembers; none: "
    "stop and ask.",
)
@json_option
@configured
def run(references: tuple[str, ...], http: tuple[str, ...], as_json: bool, config: Config) -> int:
    """Run services until SIGTERM or Ctrl-C, which lets them finish what they have begun; a second one kills them.

    A process that ends is started again. Standard output says which processes run; log lines go to standard error.
    """
    services = load_all(references, config)
    seats = [seat for reference, service in services.items() for seat in _workers(reference, service, config.workers)]
    seats += _http(services, http)
    if not http:
        _mention_http(services)
    environ = {**os.environ, **environment(config)}
    if as_json:
        environ["EVENTKEEL_LOG_FORMAT"] = "json"

    def tell(happening: Happening) -> None:
        if as_json:
            print_json(asdict(happening))
        else:
            click.echo(str(happening))
        sys.stdout.flush()

    return supervise(seats, environ=environ, on_event=tell)


def _workers(reference: str, service: Service, count: int) -> list[Seat]:
    return [_seat(f"{service.name}/{number}", reference) for number in range(1, count + 1)]


def _seat(name: str, *arguments: str) -> Seat:
    return Seat(name, [sys.executable, "-m", "eventkeel", "worker", *arguments])


def _http(services: Mapping[str, Service], wanted: Sequence[str]) -> list[Seat]:
    serving = {service.name: reference for reference, service in services.items() if service.http is not None}
    if wanted and not serving:
        raise ConfigurationError("--http: no service here has an HTTP application; give it one: Service(…, http=app)")
    seats: dict[str, Seat] = {}
    for one in wanted:
        name, named, address = one.rpartition("=")
        if not named and len(serving) > 1:
            raise ConfigurationError(f"--http: whose application? Write --http {next(iter(serving))}={one}, and so on")
        name = name if named else next(iter(serving))
        if name not in serving:
            raise ConfigurationError(f"--http: no service here is called {name!r} and has one: {', '.join(serving)}")
        if name in seats:
            raise ConfigurationError(f"--http: {name} is served at one address")
        host, port = parse_address(address)
        _refuse_taken(host, port)
        seats[name] = _seat(f"{name}/http", serving[name], "--http", f"{host}:{port}")
    return list(seats.values())


def parse_address(address: str) -> tuple[str, int]:
    """``HOST:PORT``, ``:PORT`` or ``PORT``; without host: loopback. Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"--http: {address!r} is not HOST:PORT, such as 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def _refuse_taken(host: str, port: int) -> None:
    """Here, where a person reads it, and not again and again in a process that cannot start."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(f"--http: {host}:{port} cannot be served: {error.strerror or error}") from error


def _mention_http(services: Mapping[str, Service]) -> None:
    names: Sequence[str] = [service.name for service in services.values() if service.http is not None]
    if names:
        talk(f"{', '.join(names)}: has an HTTP application, which is not served without --http HOST:PORT")
