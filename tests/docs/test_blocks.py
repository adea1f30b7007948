"""What the pages show is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docs.blocks import ROOT, Stage, blocks, commands, first_missing

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ON_SERVERS = ROOT / "docs/howto/kafka-and-postgresql.md"
SHOWN = [page for page in PAGES if page.exists() and "adr" not in page.parts and page != ON_SERVERS]


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        for block in blocks(page.read_text("utf-8")):
            stage.run(block)
    finally:
        stage.close()


def test_every_block_of_the_page_on_kafka_and_postgresql_runs_on_them(
    kafka_url: str, database: str, tmp_path: Path
) -> None:
    stage = Stage(
        tmp_path,
        EVENTKEEL_BROKER=f"{kafka_url}?prefix={uuid4().hex}.",
        EVENTKEEL_STORE=f"{database}?schema={{service}}",
    )
    try:
        for block in blocks(ON_SERVERS.read_text("utf-8")):
            stage.run(block)
    finally:
        stage.close()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.exists()], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{target} is not there"


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = "```python\nassert 1 == 2\n```\n"
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        Stage(tmp_path).run(blocks(page)[0])


def test_marks_are_read() -> None:
    page = (
        "<!-- file: a.py -->\n```python\nx = 1\n```\n\n<!-- not run: a fragment -->\n```python\n…\n```\n```sql\n```\n"
    )
    assert [(block.language, block.mark, block.said) for block in blocks(page)] == [
        ("python", "file", "a.py"),
        ("python", "not run", "a fragment"),
        ("sql", "", ""),
    ]


def test_output_is_compared_line_by_line() -> None:
    assert commands("$ a \\\n  b\nx …\n\n$ c\n") == [("a \\\n  b", ["x …"]), ("c", [])]
    assert first_missing(["one …", "three"], "one 1\ntwo\n three") is None
    assert first_missing(["three", "one"], "one\ntwo\nthree") == "one"
