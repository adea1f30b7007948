"""What the whole shop costs while nothing happens, and what no process of it has to hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import idle

HEAVY = (
    "apsw.ext",
    "confluent_kafka",
    "eventkeel.cli.dlq",
    "fastapi",
    "google",
    "importlib.metadata",
    "psycopg",
    "sqlalchemy",
    "starlette",
    "uvicorn",
)
"""What a worker on files, or a program that only imports Eventkeel, has no use for."""
WORKER = "import eventkeel.cli.worker, eventkeel.transports.sqlite, eventkeel.stores.sqlite; import shop.loyalty as it"


@pytest.mark.parametrize("imports", ["import eventkeel", f"{WORKER}; it.service"], ids=["core", "worker"])
def test_nothing_is_imported_that_is_not_used(imports: str) -> None:
    asked = f"import sys; {imports}; print(*[name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_idle_it_takes_less_than_500_mb_and_little_cpu(tmp_path: Path) -> None:
    found = idle.measure(tmp_path, seconds=10)
    print(found)
    assert found["code"] == 0
    assert found["processes"] == 13
    assert found["rss_mb"] < idle.MOST_MB
    assert found["percent"] < idle.MOST_PERCENT
