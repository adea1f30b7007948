"""What is told to people in one line."""

from __future__ import annotations


class ServersError(Exception):
    """A server could not be installed, started or found; the text says what to do."""
