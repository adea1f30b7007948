"""Writes the page of results: ``python -m eventkeel.testing.conformance.page results.json > conformance.md``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from eventkeel.testing.conformance.catalogue import SCENARIOS, Scenario
from eventkeel.testing.conformance.plugin import Result, read

KNOWN = ("sqlite", "kafka", "rabbitmq", "postgres")
"""In this order; others behind them."""
PARTS: tuple[tuple[str, Callable[[Result], bool]], ...] = (
    ("A broker by itself", lambda each: bool(each.broker and not each.store)),
    ("A store by itself", lambda each: bool(each.store and not each.broker)),
    ("A broker and a store, under the real engine", lambda each: bool(each.broker and each.store)),
)
INTRODUCTION = """\
# Conformance

One suite, the same scenarios on every broker and every store. This page is generated from their results by
`scripts/conformance`; how another package proves its broker or store by the same suite:
[plug-ins](../howto/plugins.md). No scenario is skipped by a flag: what a broker cannot do is refused when the service
starts, and then that refusal is what the test asserts. Times are those of all tests of a cell together.
"""


def page(results: Sequence[Result]) -> str:
    """The page, as Markdown. A cell without a test is a dash; one that failed says so."""
    offered = [each for each in SCENARIOS if each.offered]
    proved = {each.scenario for each in results}
    failed = {each.scenario for each in results if not each.passed}
    untested = [each.id for each in offered if each.id not in proved]
    lines = [INTRODUCTION]
    lines.append(
        f"{len(SCENARIOS)} scenarios: {len(offered) - len(failed) - len(untested)} hold wherever they were tested, "
        f"{len(failed)} fail somewhere{_listed(failed)}, {len(untested)} are not tested{_listed(untested)}, "
        f"{sum(bool(each.not_offered) for each in SCENARIOS)} are not offered, "
        f"{sum(bool(each.missing) for each in SCENARIOS)} are not built yet.\n"
    )
    for title, mine in PARTS:
        lines += _part(title, [each for each in results if mine(each)])
    lines += _reasons("Not offered", [(each, each.not_offered) for each in SCENARIOS])
    lines += _reasons("Not built yet", [(each, each.missing) for each in SCENARIOS])
    return "\n".join(lines)


def _listed(ids: Iterable[str]) -> str:
    wanted = set(ids)
    found = [each.id for each in SCENARIOS if each.id in wanted]
    return f" ({', '.join(found)})" if found else ""


def _part(title: str, results: Sequence[Result]) -> list[str]:
    places = sorted({(each.broker, each.store) for each in results}, key=_rank)
    if not places:
        return []
    lines = [f"## {title}", ""]
    lines.append(f"| | scenario | {' | '.join(' × '.join(filter(None, place)) for place in places)} |")
    lines.append(f"|---|---|{'---|' * len(places)}")
    for scenario in SCENARIOS:
        mine = [each for each in results if each.scenario == scenario.id]
        if mine:
            cells = " | ".join(_cell([each for each in mine if (each.broker, each.store) == place]) for place in places)
            lines.append(f"| {scenario.id} | {scenario.title} | {cells} |")
    return [*lines, ""]


def _rank(place: tuple[str, str]) -> tuple[tuple[int, str], ...]:
    return tuple((KNOWN.index(name) if name in KNOWN else len(KNOWN), name) for name in place)


def _cell(results: Sequence[Result]) -> str:
    if not results:
        return "–"
    seconds = sum(each.seconds for each in results)
    return f"{'pass' if all(each.passed for each in results) else '**fails**'} {seconds:.1f} s"


def _reasons(title: str, reasons: Iterable[tuple[Scenario, str]]) -> list[str]:
    found = [(scenario, why) for scenario, why in reasons if why]
    lines = [f"## {title}: {len(found)}", ""]
    lines += ["| | scenario | why |", "|---|---|---|"]
    lines += [f"| {scenario.id} | {scenario.title} | {why} |" for scenario, why in found]
    return [*lines, ""]


def main() -> None:
    """Prints the page of the results in the file named on the command line."""
    print(page(read(Path(sys.argv[1]))).rstrip())


if __name__ == "__main__":
    main()
