"""What opening a file has to stand, for broker and store alike."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eventkeel._sqlite import connect


def test_a_new_file_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def opened(path: Path) -> str:
        together.wait(10)
        connection = connect(path)
        try:
            mode, *_ = connection.execute("pragma journal_mode").fetchall()[0]
            return str(mode)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        for number in range(60):
            path = tmp_path / str(number) / "new.sqlite3"
            assert list(threads.map(opened, [path] * 4)) == ["wal"] * 4
