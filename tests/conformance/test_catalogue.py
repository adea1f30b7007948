"""The catalogue, what proves it, and the committed page say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventkeel.testing.conformance import catalogue
from eventkeel.testing.conformance.catalogue import BY_ID, SCENARIOS
from eventkeel.testing.conformance.page import page
from eventkeel.testing.conformance.plugin import Result, read
from tests.conformance.evidence import PROOFS, ROOT, missing

PAGE = ROOT / "docs/reference/conformance.md"
MARK = re.compile(r"(?:@|mark\.)scenario\(([^)]*)\)")


def marked() -> set[str]:
    """Scenarios that some test of ours, or of the shipped suites, says it proves."""
    files = [*(ROOT / "src/eventkeel/testing").rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]
    texts = [path.read_text("utf-8") for path in files if path != Path(__file__)]
    return {id for text in texts for marks in MARK.findall(text) for id in re.findall(r'"([A-Z]\d+[a-z]?)"', marks)}


def test_every_scenario_is_proved_by_a_test_or_says_why_there_is_none() -> None:
    proved = marked() | {id for proof in PROOFS for id in proof.ids.split()}
    assert {each.id for each in SCENARIOS if each.offered} == proved
    assert len(BY_ID) == len(SCENARIOS)


def test_what_is_named_as_a_proof_is_there() -> None:
    assert missing() == []


@pytest.mark.parametrize("id", ["G1", "Z9"])
def test_what_is_not_offered_or_not_in_the_catalogue_cannot_be_proved(id: str) -> None:
    with pytest.raises(ValueError, match=id):
        catalogue.check((id,), "somewhere")


def test_the_committed_page_has_every_scenario_and_leaves_none_untested() -> None:
    text = PAGE.read_text("utf-8")
    for scenario in SCENARIOS:
        assert f"| {scenario.id} | {scenario.title} |" in text, f"{scenario.id}: run scripts/conformance"
    assert ", 0 are not tested, " in text


SUITE = """
import pytest

class TestMine:
    broker, store = "mine", "postgres"

    @pytest.mark.scenario("W1", "T3")
    def test_holds(self): pass

    @pytest.mark.scenario("W2")
    def test_fails(self): assert False

    @pytest.mark.scenario("W3")
    def test_skips(self): pytest.skip("no such thing here")

@pytest.mark.scenario("K5", broker="mine")
def test_elsewhere(): pass

def test_proves_nothing(): pass
"""


def test_the_plugin_notes_what_held_and_keeps_what_was_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE)
    results = tmp_path / "results.json"

    def run(*more: str) -> dict[str, Result]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "eventkeel.testing.conformance.plugin"]
        options = ["--strict-markers", "--rootdir", str(tmp_path), "--conformance", str(results), *more]
        subprocess.run([*command, *options, str(tmp_path)], cwd=tmp_path, check=False, capture_output=True, timeout=60)
        return {each.scenario: each for each in read(results)}

    noted = run()
    assert {id: each.passed for id, each in noted.items()} == {
        "W1": True,
        "T3": True,
        "K5": True,
        "W2": False,
        "W3": False,  # whoever skips proves nothing
    }
    assert {(each.broker, each.store) for each in noted.values()} == {("mine", "postgres"), ("mine", "")}
    (tmp_path / "test_mine.py").write_text(SUITE.replace("assert False", "assert True"))
    again = run("-k", "test_fails")
    assert again.keys() == noted.keys()
    assert again["W2"].passed and not again["W3"].passed


def test_the_page_says_where_a_scenario_failed_and_where_it_was_not_tried() -> None:
    results = [
        Result("W1", "sqlite", "", "a", True, 0.5),
        Result("W1", "sqlite", "", "b", True, 0.25),
        Result("W1", "mine", "", "c", False, 1.0),
        Result("W2", "mine", "", "d", True, 1.0),
    ]
    text = page(results)
    assert f"| W1 | {BY_ID['W1'].title} | pass 0.8 s | **fails** 1.0 s |" in text
    assert f"| W2 | {BY_ID['W2'].title} | – | pass 1.0 s |" in text
    assert "1 fail somewhere (W1)" in text
    assert f"## Not offered: {sum(bool(each.not_offered) for each in SCENARIOS)}" in text
