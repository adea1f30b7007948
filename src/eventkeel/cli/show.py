"""What commands print: tables for people, JSON for programs. Foreign text never reaches a terminal raw."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec

_WIDEST = 60


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    click.echo(json.dumps(msgspec.to_builtins(value), ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, whole: bool = False) -> None:
    """Columns under titles; numbers to the right. Long texts are shortened, unless ``whole``."""
    texts = [[clean(str(cell)) if whole else shorten(clean(str(cell))) for cell in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in texts), 0) for i, title in enumerate(titles)]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(titles))]
    for line in (titles, *texts):
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines, whole values."""
    widest = max(len(name) for name, _ in facts)
    for name, value in facts:
        lines = str(value).splitlines() or [""]
        click.echo(f"{name.ljust(widest)}  {clean(lines[0])}".rstrip())
        for line in lines[1:]:
            click.echo(f"{'':{widest}}  {clean(line)}".rstrip())


def talk(line: str) -> None:
    """For people, beside the data."""
    click.echo(line, err=True)


def clean(text: str) -> str:
    """Without control characters, which could move the cursor, colour the screen or worse."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def shorten(text: str, longest: int = _WIDEST) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def moment(seconds: float) -> str:
    """Unix seconds as UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def body_fields(body: bytes | None) -> dict[str, str | None]:
    """A body in JSON: as text where it is UTF-8, else in base64."""
    if body is None:
        return {"body": None}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": str(msgspec.to_builtins(body))}
