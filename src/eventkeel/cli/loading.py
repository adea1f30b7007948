"""SERVICE arguments: from ``module:attribute`` to a Service, with import errors explained."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from eventkeel.app import load_service
from eventkeel.config import Config, mask
from eventkeel.errors import ConfigurationError, EventkeelError
from eventkeel.service import Service


def load(reference: str) -> Service:
    """The service. Raises ConfigurationError: not found, or its module cannot be imported, and where."""
    try:
        return load_service(reference)
    except EventkeelError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{reference} cannot be imported: {error}") from error
    except Exception as error:
        frame = _last_own_frame(error)
        where = f" (line {frame.lineno} of {frame.filename}: {frame.line})" if frame else ""
        raise ConfigurationError(
            f"{reference} cannot be imported: {type(error).__name__}: {error}{where}. Try: python -c 'import "
            f"{reference.partition(':')[0]}'"
        ) from error


def _last_own_frame(error: Exception) -> traceback.FrameSummary | None:
    """Where it happened in the user's code."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and "/eventkeel/" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return traceback.FrameSummary(error.filename, error.lineno or 0, "", line=(error.text or "").strip())
    return frames[-1] if frames else None


def load_all(references: Sequence[str], config: Config) -> dict[str, Service]:
    """Services that can run side by side, by reference. Raises ConfigurationError: one named twice, or two that
    would share a name or a database."""
    services = {reference: load(reference) for reference in references}
    if len(services) < len(references):
        raise ConfigurationError("a service is named twice; --workers N runs more processes of it")
    seen: dict[str, str] = {}
    for reference, service in services.items():
        for what, value in (("name", service.name), ("database", config.store_url(service.name))):
            other = seen.setdefault(f"{what} {value}", reference)
            if other != reference:
                raise ConfigurationError(
                    f"{other} and {reference} have the same {what} {mask(value)}: they would swallow each other's "
                    "events. " + ("Give each its own" if what == "name" else "Put {service} into the store URL")
                )
    return services
