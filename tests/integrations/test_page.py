"""The program of docs/howto/sqlalchemy.md, served on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.docs.blocks import ROOT, blocks

from .test_fastapi import served


@pytest.fixture
def tickets(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    page = (ROOT / "docs" / "howto" / "sqlalchemy.md").read_text("utf-8")
    (block,) = [block for block in blocks(page) if block.said == "tickets.py"]
    (tmp_path / "tickets.py").write_text(block.text)
    monkeypatch.setenv("DATABASE_URL", database.replace("postgresql://", "postgresql+psycopg://"))
    spec = importlib.util.spec_from_file_location("tickets", tmp_path / "tickets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tickets", module)
    spec.loader.exec_module(module)
    module.service.configure(data=str(tmp_path))
    return module


async def test_the_pages_program_sells_each_seat_once_and_counts_it(tickets: Any) -> None:
    async with served(tickets.app) as client:
        asked = [client.post(f"/shows/hamlet/seats/{seat % 10}") for seat in range(20)]
        codes = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert sorted(codes) == [201] * 10 + [500] * 10
        deadline = time.monotonic() + 20
        sold = None
        while sold != 10 and time.monotonic() < deadline:
            async with tickets.sessions() as session:
                sold = await session.scalar(select(tickets.Show.sold))
            await asyncio.sleep(0.02)
        assert sold == 10
    await tickets.engine.dispose()
