"""Delivers every message twice: what a broker, a relay or a hasty operator can do at any time."""

from __future__ import annotations

import threading

from shop.brokers import Message
from shop.foreign import Foreigner, ForeignerGone
from shop.page.tailing import tail

COPY = "shop-copy"
"""Header that marks a message which is there for the second time, so that it does not come a third time."""


class Twice:
    """Appends a copy of every message that comes to the broker from now on, with the same key, headers and body. Raises
    Unreadable."""

    def __init__(self, broker: str) -> None:
        self._url, self._tail = broker, tail(broker)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._tail.close()

    def _work(self) -> None:
        foreigner = Foreigner(self._url)
        try:
            while not self._stop.is_set():
                for topic, message in self._tail.new():
                    if _can_be_copied(message):
                        headers = {name: value.decode() for name, value in message.headers}
                        foreigner.append(topic, _text(message.key), _text(message.body), {**headers, COPY: "1"})
        except ForeignerGone:  # the broker is gone for good
            return
        finally:
            foreigner.close()


def _can_be_copied(message: Message) -> bool:
    return message.body is not None and COPY not in dict(message.headers)


def _text(value: bytes | str | None) -> str:
    return value if isinstance(value, str) else (value or b"").decode()
