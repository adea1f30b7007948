"""The whole shop while nothing happens: memory and CPU of all its processes together.

Memory is the sum of what each has resident (RSS), pages that they share counted in each; beside it the same with shared
pages counted once (PSS). A first order has been placed, so that everything has run once. Linux only.

    python -m benchmarks.idle [--seconds N] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.job import folder
from benchmarks.processes import cpu_seconds, family, wait_until

MOST_MB, MOST_PERCENT = 500.0, 8.0
"""Of all processes together; percent of one core."""
DOWN = 5.0
"""Seconds from Ctrl-C to the verdict and the end of every process."""


@contextlib.contextmanager
def shop(data: Path) -> Iterator[subprocess.Popen[str]]:
    """``scripts/shop`` without its set-up, after its first order."""
    log = data / "said.log"
    command = [sys.executable, "-m", "shop", "--data", str(data / "shop"), "--port", "0", "--page", "0"]
    with log.open("w") as said:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, text=True)
    try:
        wait_until(lambda: "ledger balanced" in log.read_text() or running.poll() is not None, log.read_text())
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
        if running.returncode != 0:
            print(log.read_text(), file=sys.stderr)


def memory(pids: list[int], kind: str) -> float:
    """Megabytes: ``Rss`` or ``Pss``."""
    return sum(
        int(line.split()[1]) / 1024
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith(f"{kind}:")
    )


def measure(data: Path, seconds: float, settle: float = 5.0) -> dict[str, Any]:
    """``settle``: seconds before the measurement begins."""
    with shop(data) as running:
        time.sleep(settle)
        pids = family(running.pid)
        before, since = cpu_seconds(pids), time.monotonic()
        time.sleep(seconds)
        after, span = cpu_seconds(pids), time.monotonic() - since
        assert before is not None
        assert after is not None
        result = {
            "processes": len(pids),
            "rss_mb": round(memory(pids, "Rss"), 1),
            "pss_mb": round(memory(pids, "Pss"), 1),
            "percent": round((after - before) / span * 100, 2),
        }
        stopped = time.monotonic()
    return {**result, "down_s": round(time.monotonic() - stopped, 2), "code": running.returncode}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of looking (20)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    with folder() as data:
        result = measure(data, options.seconds)
    holds = result["rss_mb"] < MOST_MB and result["percent"] < MOST_PERCENT and result["down_s"] < DOWN
    print(
        f"{'pass' if holds else 'MISS'}  {result['processes']} processes: {result['rss_mb']} MB resident (below "
        f"{MOST_MB:g}; {result['pss_mb']} with shared pages once), {result['percent']} % of a core (below "
        f"{MOST_PERCENT:g}); down {result['down_s']} s after Ctrl-C (below {DOWN:g})"
    )
    if options.json:
        print(json.dumps(result))
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
