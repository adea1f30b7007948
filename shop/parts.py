"""What every service's folder is put together with."""

from __future__ import annotations

import importlib
import pkgutil


def schema_of(package: str) -> str:
    """The text of ``schema.sql`` in the folder of a service."""
    text = pkgutil.get_data(package, "schema.sql")
    assert text is not None, package
    return text.decode("utf-8")


def on_demand(package: str, name: str) -> object:
    """``service`` of the folder, made when it is asked for: whoever imports only the events of a service does not
    load its handlers. Raises AttributeError for anything else."""
    if name != "service":
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(f"{package}.handlers").service
