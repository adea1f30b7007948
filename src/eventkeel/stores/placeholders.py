"""A user's SQL with ``:name`` placeholders, as a database wants it, and what it may not say.

The tokenizer knows strings, quoted identifiers, comments, ``::`` casts and ``$$`` quotes, so that the
same statement means the same on every store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from eventkeel.errors import StatementRefused

_TOKEN = re.compile(
    r"""
      (?P<skip> (?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/
              | (?P<tag>\$\w*\$).*?(?P=tag) | :: )
    | :(?P<name>[^\W\d]\w*)
    | (?P<mark>\?\d*|%s\b|[@$:]\w+)
    | (?P<end>;)
    | (?P<word>[^\W\d][\w$]*)
    """,
    re.VERBOSE | re.DOTALL,
)
ENGINES_OWN = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"}) | {
    *("attach", "detach", "vacuum", "pragma", "reindex", "analyze"),
    *("start", "abort", "prepare", "execute", "deallocate", "discard", "reset", "listen", "unlisten", "notify", "copy"),
}


class Compiled(NamedTuple):
    sql: str
    names: tuple[str, ...]
    text: str
    """As the user wrote it."""


def compile_sql(sql: str, mark: str = "?", *, shared: bool = True) -> Compiled:
    """``:name`` -> ``?n`` (or ``mark`` and a number). ``shared``: a name that occurs twice is one
    parameter; not: each occurrence is one of its own, for databases that give each parameter a type.

    Raises StatementRefused: other placeholders, several statements, or a statement that begins or
    ends transactions or changes the database's settings."""
    names: list[str] = []
    out: list[str] = []
    at = 0
    first: str | None = None
    previous = ""
    ended = False
    for token in _TOKEN.finditer(sql):
        if token["skip"] is not None:
            continue
        if ended and not token["end"]:
            raise StatementRefused(f"one statement at a time: {brief(sql)}")
        if token["end"]:
            ended = True
        elif token["mark"]:
            raise StatementRefused(f"placeholders are written :name, not {token['mark']!r}: {brief(sql)}")
        elif token["name"]:
            if not shared or token["name"] not in names:
                names.append(token["name"])
            number = names.index(token["name"]) + 1 if shared else len(names)
            out += (sql[at : token.start()], f"{mark}{number}")
            at = token.end()
        elif token["word"]:
            word = token["word"].lower()
            if previous == "set" and first == "set" and word not in ("local", "constraints"):
                raise StatementRefused(f"a setting would outlive the transaction; write 'set local …': {brief(sql)}")
            first = first or word
            if previous == "or" and word == "rollback":
                raise StatementRefused(f"'or rollback' would end the engine's transaction: {brief(sql)}")
            previous = word
    if first is None:
        raise StatementRefused(f"there is no statement in {brief(sql)!r}")
    if first in ENGINES_OWN:
        raise StatementRefused(
            f"{first.upper()} belongs to the engine, which commits what a handler does together with its inbox row"
            f"{'; use tx.savepoint()' if first in ('savepoint', 'release', 'rollback') else ''}: {brief(sql)}"
        )
    out.append(sql[at:])
    return Compiled("".join(out), tuple(names), sql)


def first_word(sql: str) -> str:
    """The first keyword, in lower case, behind comments and semicolons; empty: there is none."""
    for token in _TOKEN.finditer(sql):
        if token["word"]:
            return token["word"].lower()
    return ""


def brief(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 120 else text[:119] + "…"


def statements(script: str) -> Iterator[str]:
    """The single statements of a script, each without its semicolon."""
    at = 0
    for token in _TOKEN.finditer(script):
        if token["end"]:
            if first_word(piece := script[at : token.start()]):
                yield piece.strip()
            at = token.end()
    if first_word(script[at:]):
        yield script[at:].strip()
