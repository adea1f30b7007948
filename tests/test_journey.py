"""One message's journey, measured: the files it passes from the broker to the handler and back out.

``docs/journey.md`` prints this list; page and code cannot part. ``pytest -s`` shows it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import eventkeel
from eventkeel.testing.harness import harness
from tests.engine.domain import ordered, paying

SOURCE = Path(eventkeel.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "journey.md"

PLUMBING = {
    "_sqlite.py",  # how a file is opened and its lock waited for
    "drive.py",  # runs the generators
    "message.py",  # frozen values
    "ports/clock.py",
    "policy/watermark.py",
    "engine/lifecycle.py",
    "engine/membership.py",  # the subscription that lives now
    "engine/context.py",
    "engine/work.py",
    "engine/quarantine.py",  # lets a run in beside the others
    "engine/faults.py",
    "fingerprint.py",
    "event.py",
    "routing.py",
}
"""Values and services that every step uses: looked up, not passed through."""


BESIDE = ("<module>", "pause", "run_once", "running")
"""Functions of loops that turn by themselves, and what the harness asks them."""


async def passed() -> list[str]:
    """The files in the order in which one message first enters them."""
    seen: dict[str, None] = {}

    def profile(frame: FrameType, what: str, _: object) -> None:
        if what == "call":
            path = Path(frame.f_code.co_filename)
            if SOURCE in path.parents and frame.f_code.co_name not in BESIDE:
                seen.setdefault(str(path.relative_to(SOURCE)))

    async with harness(paying()) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        sys.setprofile(profile)
        try:
            await app.publish(ordered(2))
            await app.until_quiet()
        finally:
            sys.setprofile(None)
    return [name for name in seen if not name.startswith("testing/")]


async def test_one_message_passes_about_twelve_files_and_the_page_names_them() -> None:
    files = [name for name in await passed() if name not in PLUMBING]
    print("\n".join(["", "one message passes:", *files]))
    rooms = {name.split("/")[0] if name.startswith(("transports", "stores", "codec")) else name for name in files}
    assert {"engine/intake.py", "engine/lanes.py", "engine/unit_of_work.py", "engine/relay.py"} <= rooms
    assert len(rooms) <= 12, rooms
    page = PAGE.read_text("utf-8")
    missing = [name for name in files if name.startswith(("engine/", "handling")) and Path(name).name not in page]
    assert not missing, f"docs/journey.md does not name {missing}"
