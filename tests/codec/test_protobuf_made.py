"""The generated classes are what ``scripts/protos`` makes of the .proto files beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted(path for folder in ("tests", "shop", "interop") for path in (ROOT / folder).rglob("*.proto"))


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_classes_are_made_from_the_file_beside_them(proto: Path, tmp_path: Path) -> None:
    said = [f"--proto_path={ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *said, str(proto)], check=True, timeout=60)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 2
    for path in made:
        assert (ROOT / path.relative_to(tmp_path)).read_text() == path.read_text(), "run scripts/protos"
