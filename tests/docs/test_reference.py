"""Reference pages and tables leave nothing out."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from eventkeel import errors
from eventkeel.codec import limits
from eventkeel.ports.store import Store, Unit
from eventkeel.ports.transport import Subscription, Transport
from tests.docs.blocks import ROOT


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def _methods(protocol: type) -> list[str]:
    return [name for name in vars(protocol) if not name.startswith("_")]


@pytest.mark.parametrize(
    ("protocol", "page"),
    [
        (Transport, "adr/0002-transport-port.md"),
        (Subscription, "adr/0002-transport-port.md"),
        (Store, "adr/0003-store-port.md"),
        (Unit, "adr/0003-store-port.md"),
    ],
)
def test_every_method_of_a_port_has_a_row(protocol: type, page: str) -> None:
    first_cells = "\n".join(line.split("|")[1] for line in _page(page).splitlines() if line.startswith("|"))
    told = set(re.findall(r"`(\w+)", first_cells)) | {"caps"}
    assert [name for name in _methods(protocol) if name not in told] == []


def test_every_error_is_on_its_page_and_says_whether_a_retry_helps() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", _page("reference/errors-and-limits.md"), re.MULTILINE))
    base = errors.EventkeelError
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, base)]
    kinds.remove(base)
    assert told == {kind.__name__: "yes" if kind.final else "no" for kind in kinds}


def test_every_limit_is_the_one_on_its_page() -> None:
    page = _page("reference/errors-and-limits.md").replace(",", "")
    rows = re.findall(r"^\| [^|]+ \| (\d+)[^|]*\| `([a-z-]+)` \|$", page, re.MULTILINE)
    assert {reason: int(number) for number, reason in rows} == {
        "too-large": limits.MAX_BODY,
        "too-deep": limits.MAX_DEPTH,
        "too-many-fields": limits.MAX_FIELDS,
        "too-many-headers": limits.MAX_HEADERS,
        "header-too-large": limits.MAX_HEADER,
        "key-too-large": limits.MAX_KEY,
        "id-too-long": limits.MAX_ID,
        "type-too-long": limits.MAX_TYPE,
    }


@pytest.mark.parametrize("package", ["eventkeel.stores.sqlite", "eventkeel.transports.sqlite"])
def test_every_table_is_on_the_page_of_files(package: str) -> None:
    schema = resources.files(package).joinpath("schema.sql").read_text("utf-8")
    told = set(re.findall(r"`(\w+)`", _page("reference/files.md")))
    tables = re.findall(r"^create (?:table|view) if not exists (\w+)", schema, re.MULTILINE)
    assert [table for table in tables if table not in told] == []
