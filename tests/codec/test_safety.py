"""Nothing in a message ever names code: event types are looked up among declared classes, and that is all."""

from __future__ import annotations

import ast
from pathlib import Path

import eventkeel

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "compile"}


def test_no_module_on_the_way_of_a_message_can_run_what_is_in_it() -> None:
    root = Path(eventkeel.__file__).parent
    files = [*root.glob("codec/*.py"), *root.glob("transports/**/*.py"), *root.glob("stores/**/*.py")]
    files += [root / "message.py", root / "event.py", root / "fingerprint.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & FORBIDDEN_CALLS
            assert not names & (FORBIDDEN_MODULES | FORBIDDEN_CALLS), f"{file.name}, line {getattr(node, 'lineno', 0)}"
