"""A plugin for pytest that notes which scenario held on which broker and store, and how long it took.

    pytest -p eventkeel.testing.conformance.plugin --conformance results.json tests/conformance

Tests say what they prove by ``@pytest.mark.scenario("X6", "T3")``. Where a test runs is said by its class
(``broker = "mine"``, ``store = "postgres"``; one may be left out) or by the marker
(``scenario("K5", broker="kafka")``). Results of earlier runs stay in the file, so that scenarios can be run one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from eventkeel.testing.conformance import catalogue

MARKER = "scenario(*ids, broker='', store=''): proves these scenarios of eventkeel.testing.conformance.catalogue"


class Result(msgspec.Struct, frozen=True):
    """One test, for one of its scenarios."""

    scenario: str
    broker: str
    """Empty: no broker took part."""
    store: str
    """Empty: no database took part."""
    test: str
    passed: bool
    seconds: float


class Notes:
    """Collects while pytest runs, in one process or in several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._about: dict[str, list[tuple[str, str, str]]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        about = dict(report.user_properties).get("scenarios")
        if not isinstance(about, list | tuple):
            return
        test = report.nodeid
        self._about[test] = [(str(id), str(broker), str(store)) for id, broker, store in about]
        self._seconds[test] = self._seconds.get(test, 0.0) + report.duration
        if report.failed or report.skipped:  # whoever skips proves nothing
            self._failed.add(test)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # the process that started this one hears of everything
        kept = [each for each in read(self._path) if each.test not in self._about]
        new = [
            Result(id, broker, store, test, test not in self._failed, round(self._seconds[test], 2))
            for test, about in self._about.items()
            for id, broker, store in about
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        results = sorted([*kept, *new], key=lambda each: (each.scenario, each.broker, each.store, each.test))
        self._path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def read(path: Path) -> list[Result]:
    """What earlier runs noted; nothing where there is no file."""
    return msgspec.json.decode(path.read_bytes(), type=list[Result]) if path.exists() else []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", type=Path, metavar="FILE", help="note there which scenarios held, and where")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    if path := config.getoption("--conformance"):
        config.pluginmanager.register(Notes(path), "eventkeel-conformance-notes")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if about := list(scenarios_of(item)):
            item.user_properties.append(("scenarios", about))


def scenarios_of(item: pytest.Item) -> Iterator[tuple[str, str, str]]:
    """(id, broker, store) of each scenario that a test proves. Raises ValueError for an id that does not exist."""
    cls = getattr(item, "cls", None)
    seen: set[str] = set()
    for marker in item.iter_markers("scenario"):
        catalogue.check(marker.args, item.nodeid)
        broker = marker.kwargs.get("broker", getattr(cls, "broker", ""))
        store = marker.kwargs.get("store", getattr(cls, "store", ""))
        for id in marker.args:
            if id not in seen:
                seen.add(id)
                yield id, broker, store
