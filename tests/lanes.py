"""Which slow tests may share the machine: those that count, kill nothing that others use, and time nothing closely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

SHARED = ("engine", "conformance", "shop/flows", "integrations", "stores", "interop")
"""Folders of ``tests`` whose slow tests run side by side; all other slow tests run one by one."""
_HERE = Path(__file__).parent


def mark(items: Sequence[pytest.Item]) -> None:
    """For ``pytest_collection_modifyitems``, before marks are looked at."""
    shared = tuple(_HERE / folder for folder in SHARED)
    for item in items:
        if item.get_closest_marker("slow") and not any(item.path.is_relative_to(folder) for folder in shared):
            item.add_marker(pytest.mark.alone)
