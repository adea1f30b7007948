"""How a newer Go is brought: by an old one, as a module."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from interop import programs
from tools.realservers import ServersError

OLD_GO = """#!/bin/sh
# Go 1.19: it knows nothing of toolchains, so that to it their module is one like any other, with no programs in it.
case "$1 $2" in
"version ") echo "go version go1.19.8 linux/amd64" ;;
"env -json") echo '{"GOOS": "plan10", "GOARCH": "pdp11"}' ;;
"mod download")
    echo "$GOMODCACHE $4" > "$(dirname "$0")/asked"
    mkdir -p "$GOMODCACHE/it/bin" "$GOMODCACHE/it/pkg/tool/here" "$GOMODCACHE/it/src/cmd"
    printf '#!/bin/sh\\necho go version go1.23.12 here\\n' > "$GOMODCACHE/it/bin/go"
    touch "$GOMODCACHE/it/pkg/tool/here/compile" "$GOMODCACHE/it/src/_go.mod" "$GOMODCACHE/it/src/cmd/_go.mod"
    echo "{\\"Dir\\": \\"$GOMODCACHE/it\\"}" ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_an_old_go_brings_the_pinned_one_ready_to_run(tmp_path: Path) -> None:
    old = script(tmp_path / "go", OLD_GO)
    brought = programs.new_enough(old, tmp_path / "cache")
    asked = (tmp_path / "asked").read_text().split()
    assert asked == [
        str(tmp_path / "cache" / "toolchain"),
        f"golang.org/toolchain@v0.0.1-{programs.toolchain()}.plan10-pdp11",
    ]
    assert "go1.23.12" in subprocess.run([brought, "version"], capture_output=True, text=True, check=True).stdout
    assert os.access(brought.parents[1] / "pkg" / "tool" / "here" / "compile", os.X_OK)
    assert sorted(str(path.relative_to(brought.parents[1])) for path in brought.parents[1].rglob("*go.mod")) == [
        "src/cmd/go.mod",
        "src/go.mod",
    ]


@pytest.mark.parametrize("said", ["go1.23", "go1.26.8", "go1.23rc1", "go2.0"])
def test_a_go_that_is_new_enough_is_used_itself(tmp_path: Path, said: str) -> None:
    go = script(tmp_path / "go", f"#!/bin/sh\necho go version {said} linux/amd64\n")
    assert programs.new_enough(go, tmp_path / "cache") == go
    assert not (tmp_path / "cache").exists()


def test_a_go_that_cannot_bring_it_says_what_it_said(tmp_path: Path) -> None:
    go = script(tmp_path / "go", OLD_GO.replace('"mod download")', '"mod download") echo no such host >&2; exit 1'))
    with pytest.raises(ServersError, match="no such host"):
        programs.new_enough(go, tmp_path / "cache")


def test_the_pinned_go_is_one_that_the_programs_may_be_built_with() -> None:
    major, minor, _ = programs.toolchain().removeprefix("go").split(".")
    assert (int(major), int(minor)) >= programs.GO_NEEDED
