"""Processes that must not outlive whoever started them."""

from __future__ import annotations

import os
import signal
import threading


def end_with_standard_input() -> None:
    """SIGTERM to this process when its standard input is closed: whoever started it is gone, however it went."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
