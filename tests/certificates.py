"""A certificate authority of a test's own, by the command ``openssl``."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """A server's, as PEM files. Good for the loopback address."""

    authority: Path
    """The certificate that clients have to trust."""
    certificate: Path
    key: Path
    both: Path
    """Key (PKCS 8) and certificate in one file."""


def identity(folder: Path, name: str = "server") -> Identity:
    """A new authority, and a server that it signed."""

    def file(ending: str) -> Path:
        return folder / f"{name}.{ending}"

    fresh = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    authority, certificate, key, both = file("ca.pem"), file("crt"), file("key"), file("pem")
    _openssl("req", "-x509", *fresh, "-subj", f"/CN={name} authority", "-keyout", file("ca.key"), "-out", authority)
    _openssl("req", *fresh[:-2], "-subj", f"/CN={name}", "-keyout", key, "-out", file("csr"))
    file("ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    _openssl(
        *("x509", "-req", "-days", "2", "-in", file("csr"), "-CA", authority, "-CAkey", file("ca.key")),
        *("-CAcreateserial", "-extfile", file("ext"), "-out", certificate),
    )
    both.write_text(key.read_text() + certificate.read_text())
    return Identity(authority, certificate, key, both)


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
