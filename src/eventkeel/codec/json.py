"""Events as JSON: one ``JsonFormat`` for each event class, made once and kept.

A Decimal is a JSON number on the wire, or a consumer in another language cannot read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from eventkeel.codec import limits, numbers
from eventkeel.errors import ConfigurationError, MalformedMessage, PublishError
from eventkeel.event import EventSpec
from eventkeel.fingerprint import Number

_encode = msgspec.json.Encoder(decimal_format="number").encode
_members = msgspec.json.Decoder(dict[str, Any], float_hook=Number).decode
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
_DETAIL = 300


class JsonFormat:
    """Reads and writes the bodies of one event class.

    Raises ConfigurationError when it is made, where the class has fields that JSON cannot hold.
    """

    _decode: Callable[[bytes], Any]
    __slots__ = ("_decode", "_dump", "_guard", "_hides_nan", "_where")

    def __init__(self, spec: EventSpec) -> None:
        self._where = spec.where
        self._dump: Callable[[Any], Any] | None = None
        try:
            if numbers.is_model(spec.cls):
                self._dump, self._decode = _dump_model, _model_decoder(spec.cls)
            else:
                self._decode = msgspec.json.Decoder(spec.cls).decode
            self._guard = numbers.guard_of(spec.cls)
            self._hides_nan = numbers.hides_nan(spec.cls)
        except (TypeError, NameError, AttributeError) as error:
            raise ConfigurationError(f"event {spec.where} has a field that JSON cannot hold: {error}") from error

    def encode(self, event: Any) -> bytes:
        """The body, after making sure that a consumer can read it: it is decoded once.

        Raises PublishError for wrong types, NaN and Infinity, NUL characters, and what goes beyond the limits.
        """
        try:
            body = _encode(event if self._dump is None else self._dump(event))
            limits.check_body(body)
            if b"\\u0000" in body:
                refuse_nul(body)
            if self._hides_nan:
                _refuse_not_finite(event if self._dump is None else self._dump(event), "")
            if self._guard is not None:
                self._guard(body)
            again = self._decode(body)
            if self._dump is not None and again != event:
                raise ValueError("a field is not the same any more after it was written as JSON and read again")
        except Exception as error:
            raise PublishError(f"event {self._where} cannot be published: {_why(event, error)}") from error
        return body

    def decode(self, body: bytes) -> Any:
        """The event, complete. Raises MalformedMessage: ``no-body``, ``not-json``, ``not-utf8``,
        ``nul-character``, ``wrong-fields``, ``too-deep``; LimitExceeded. Nothing else."""
        limits.check_body(body)
        if b"\\u0000" in body:
            refuse_nul(body)
        try:
            event = self._decode(body)
            if self._guard is not None:
                self._guard(body)
        except Exception as error:
            raise malformed(error) from error
        return event

    def members(self, body: bytes) -> Mapping[str, Any]:
        """As ``members`` says, which is the same for each class."""
        return members(body)


def members(body: bytes) -> Mapping[str, Any]:
    """The members that are present in a body, numbers as they are written: what a fingerprint is taken of.

    Raises MalformedMessage.
    """
    try:
        return _members(body)
    except Exception as error:
        raise malformed(error) from error


_NO_NUMBER = ("Expected `int | float`", "Invalid decimal string")
"""How msgspec and the guard tell of text in a Decimal's place."""


def malformed(error: Exception) -> MalformedMessage:
    """The same failure with a short stable word for it."""
    if isinstance(error, MalformedMessage):
        return error
    detail = " ".join(str(error).split())[:_DETAIL]
    if isinstance(error, UnicodeError):
        return MalformedMessage("not-utf8", detail)
    if isinstance(error, RecursionError):
        return MalformedMessage("too-deep", "nested too deep to be read")
    if isinstance(error, msgspec.ValidationError):
        for said in _NO_NUMBER:
            detail = detail.replace(said, "Expected a number without quotes")
        return MalformedMessage("wrong-fields", detail)
    if isinstance(error, msgspec.DecodeError):
        return MalformedMessage("not-json", detail)
    # What a class's own checks raise (__post_init__, pydantic's ValidationError), and whatever is left.
    return MalformedMessage("wrong-fields", f"{type(error).__name__}: {detail}")


def refuse_nul(body: bytes) -> None:
    r"""Raises MalformedMessage(nul-character): PostgreSQL's text cannot hold ``\u0000``, such a message decodes, and
    then fails for ever."""
    if _NUL.search(body):
        raise MalformedMessage("nul-character", "has \\u0000 in a text, which databases refuse")


def _refuse_not_finite(value: Any, path: str) -> None:
    if isinstance(value, float | Decimal):
        if not (math.isfinite(value) if isinstance(value, float) else value.is_finite()):
            raise ValueError(f"{path or 'a number'} is {value}, and JSON has no such number")
    elif isinstance(value, Mapping):
        for name, each in value.items():
            _refuse_not_finite(each, f"{path}.{name}")
    elif isinstance(value, list | tuple | set | frozenset):
        for index, each in enumerate(value):
            _refuse_not_finite(each, f"{path}[{index}]")
    elif not isinstance(value, str | bytes | int | type(None)):
        for name in _attributes(value):
            _refuse_not_finite(getattr(value, name, None), f"{path}.{name}" if path else name)


def _attributes(value: Any) -> tuple[str, ...]:
    for source in ("__struct_fields__", "__dataclass_fields__"):
        if hasattr(value, source):
            return tuple(getattr(value, source))
    return tuple(field.name for field in getattr(type(value), "__attrs_attrs__", ()))


def _why(event: Any, error: Exception) -> str:
    """In the words of the author's own class where that is possible."""
    try:
        _refuse_not_finite(event, "")
    except ValueError as not_finite:
        return str(not_finite)
    except Exception:  # a class with attributes that raise: the first error says enough
        return str(error)
    if isinstance(error, UnicodeError):
        return f"a text is not Unicode ({error})"
    return str(error)


def _dump_model(model: Any) -> Any:
    return model.model_dump(by_alias=True)


def _model_decoder(cls: Any) -> Callable[[bytes], Any]:
    """pydantic's models, without depending on pydantic; its own JSON reader takes a Decimal through a float."""
    read = msgspec.json.Decoder(float_hook=Decimal).decode

    def decode(body: bytes) -> Any:
        return cls.model_validate(read(body))

    return decode
