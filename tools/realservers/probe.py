"""Whether a server answers, in its own protocol and without a client library."""

from __future__ import annotations

import socket
import struct
import urllib.parse

PATIENCE = 2.0


def kafka(port: int, host: str = "127.0.0.1") -> int:
    """How many brokers the one behind the port knows as alive; 0 when it does not answer."""
    client = b"eventkeel"
    # Metadata, version 1, about no topics
    request = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), PATIENCE) as line:
            line.sendall(struct.pack(">i", len(request)) + request)
            size, _, brokers = struct.unpack(">iii", _exactly(line, 12))
            return brokers if size > 8 else 0
    except OSError:
        return 0


def postgres(port: int, host: str = "127.0.0.1") -> bool:
    """Whether it takes connections: it asks who we are or lets us in. While it starts or recovers it does neither."""
    names = b"user\0postgres\0database\0postgres\0\0"
    try:
        with socket.create_connection((host, port), PATIENCE) as line:
            line.sendall(struct.pack(">ii", 8 + len(names), 3 << 16) + names)
            kind, rest = _message(line)
            if kind == b"R" and rest == bytes(4):  # let in: hear it out and take leave, or its log has a line each time
                while kind != b"Z":
                    kind, rest = _message(line)
                line.sendall(b"X" + struct.pack(">i", 4))
                return True
            return kind == b"R"
    except OSError:
        return False


def rabbitmq(port: int, host: str = "127.0.0.1") -> bool:
    """Whether it begins to speak AMQP 0-9-1."""
    try:
        with socket.create_connection((host, port), PATIENCE) as line:
            line.sendall(b"AMQP\x00\x00\x09\x01")
            return _exactly(line, 1) == b"\x01"
    except OSError:
        return False


def anybody(url: str) -> bool:
    """Whether somebody listens at the first host and port that the URL names; yes, when it names none."""
    first = urllib.parse.urlsplit(url).netloc.rpartition("@")[2].partition(",")[0]
    host, _, port = first.rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError:
        return False
    return True


def _message(line: socket.socket) -> tuple[bytes, bytes]:
    kind, size = struct.unpack(">ci", _exactly(line, 5))
    return kind, _exactly(line, size - 4)


def _exactly(line: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = line.recv(size - len(got))
        if not more:
            raise ConnectionError("closed")
        got += more
    return got
