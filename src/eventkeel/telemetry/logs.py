"""Log lines: an Observer that says what becomes of each delivery, and the two ways to write a line.

``text`` is for people and grep, ``json`` for machines; both carry the same fields::

    2026-11-24T02:31:06.123Z INFO received service=payment-service topic=order_events partition=3 position=17 key=ORD1 …
    2026-11-24T02:31:06.125Z INFO done ending=applied consumer=payment-service/take_payment … duration=0.0021

Bodies and headers are never logged: they may hold what nobody should read there.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from eventkeel.errors import MalformedMessage, UnknownType
from eventkeel.message import Delivery, Slice
from eventkeel.ports.observer import Ending

Fields = dict[str, str | int | float]

_LOG = logging.getLogger("eventkeel")
_HANDLER_EXTRAS = ("topic", "position", "event_id", "attempt")
"""What ``Delivery.log`` adds to the lines of a handler."""
_LONGEST = 200
_ERRORS = frozenset({"dead", "conflict"})


class Logs:
    """Writes one line when a delivery is received and one when it is done (INFO; a dead letter is an ERROR),
    failures that are tried again and lost slices as WARNING, the rest as DEBUG. A level that is off costs
    a look into logging's cache and nothing more."""

    def __init__(self, logger: logging.Logger = _LOG) -> None:
        self._log = logger

    def received(self, delivery: Delivery) -> None:
        if self._log.isEnabledFor(logging.INFO):
            self._write(logging.INFO, "received", _told(delivery))

    def done(self, delivery: Delivery, ending: Ending, seconds: float, error: str = "") -> None:
        level = logging.ERROR if ending in _ERRORS else logging.INFO
        if not self._log.isEnabledFor(level):
            return
        fields: Fields = {"ending": ending, "consumer": delivery.consumer, **_told(delivery)}
        fields["duration"] = round(seconds, 6)
        if error:
            fields["error"] = error.partition("\n")[0]  # the rest is in 'eventkeel dlq show'
        self._write(level, "done", fields)

    def failed(self, delivery: Delivery, error: BaseException, again_in: float) -> None:
        if not self._log.isEnabledFor(logging.WARNING):
            return
        fields: Fields = {"consumer": delivery.consumer, **_told(delivery), "again_in": round(again_in, 3)}
        fields["error"] = _error(error)
        # Where it happened is wanted once: the next attempts fail at the same place, most of the time. A message
        # that cannot be read has failed in our code, whose lines help nobody.
        ours = isinstance(error, MalformedMessage | UnknownType)
        self._write(logging.WARNING, "failed", fields, error if delivery.attempt == 1 and not ours else None)

    def fenced(self, slice: Slice) -> None:
        self._write(logging.WARNING, "fenced", _place(slice))

    def owned(self, slice: Slice, epoch: int, suspect: bool) -> None:
        if suspect:
            self._write(logging.WARNING, "taken over", {**_place(slice), "epoch": epoch})
        else:
            self._write(logging.DEBUG, "owned", {**_place(slice), "epoch": epoch})

    def released(self, slice: Slice) -> None:
        self._write(logging.DEBUG, "released", _place(slice))

    def relayed(self, count: int, seconds: float) -> None:
        if self._log.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, "relayed", {"count": count, "duration": round(seconds, 6)})

    def trouble(self, where: str, error: BaseException) -> None:
        self._write(logging.ERROR, "trouble", {"where": where, "error": _error(error)}, error)

    def _write(self, level: int, what: str, fields: Fields, error: BaseException | None = None) -> None:
        if self._log.isEnabledFor(level):
            self._log.log(level, what, extra={"fields": fields}, exc_info=error)


def setup(level: str, form: str, service: str = "", stream: TextIO | None = None) -> None:
    """Let this process write its log lines: ``level`` and ``form`` as the options log_level and log_format.

    Other libraries' lines are written too, from WARNING on. Calling it again replaces the first call.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(service) if form == "json" else TextLines(service))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _LOG.setLevel(level.upper())


class TextLines(logging.Formatter):
    """Time, level, what happened, then ``name=value`` pairs; values with spaces or quotes are quoted."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record, self._service)
        pairs = "".join([f" {name}={_bare(value)}" for name, value in fields.items()])
        line = f"{_time(record.created)} {record.levelname} {_one_line(record.getMessage())}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info and record.exc_info[0] else line


class JsonLines(logging.Formatter):
    """One JSON object on each line: ``time``, ``level``, ``message``, ``logger``, then the fields."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_fields(record, self._service),
        }
        if record.exc_info and record.exc_info[0]:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord, service: str) -> Fields:
    said: Fields | None = getattr(record, "fields", None)
    if said is None:
        said = {name: getattr(record, name) for name in _HANDLER_EXTRAS if hasattr(record, name)}
    return {"service": service, **said} if service else said


def _told(delivery: Delivery) -> Fields:
    slice, key = delivery.slice, delivery.key
    return {
        "topic": slice.topic,
        "partition": slice.partition,
        "position": delivery.position,
        "key": "" if key is None else _short(key.decode("utf-8", "backslashreplace")),
        "id": str(delivery.id) if delivery.id is not None else "",
        "type": _short(delivery.type),
        "attempt": delivery.attempt,
    }


def _place(slice: Slice) -> Fields:
    return {"topic": slice.topic, "partition": slice.partition}


def _error(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a user's error may be unable to say what it is
        return type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _bare(value: str | int | float) -> str:
    """A value of the text form: quoted as JSON where it could be taken for something else."""
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"
