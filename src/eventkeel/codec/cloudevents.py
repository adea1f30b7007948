"""CloudEvents 1.0 on the wire: attributes as headers beside the body (binary mode), or around it (structured).

Written: lower-case ``ce_`` names and ``content-type``, each once, none empty. Read: names in any case, with
the prefixes of every binding that is in use, and both modes. Text that is not UTF-8 becomes U+FFFD, as it
does in the SDKs; it never raises.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from eventkeel.codec import limits
from eventkeel.errors import LimitExceeded, MalformedMessage
from eventkeel.message import Headers

JSON = "application/json"
PROTOBUF = "application/protobuf"

_PREFIXES = ("ce_", "ce-", "cloudevents_", "cloudevents:")
_CORE = ("specversion", "id", "source", "type")
_READ = frozenset(f"ce_{name}" for name in (*_CORE, "datacontenttype", "dataversion", "correlationid"))
_OURS = _READ | {"content-type", "ce_time", "ce_subject", "ce_causationid"}
_SHORT_VALUE = limits.MAX_HEADER - 32
_SPECVERSIONS = (b"1.", b"0.3")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PROTOBUF = re.compile(r"application/(x-|vnd\.google\.)?protobuf|.*\+proto(buf)?")


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What was around the body. ``type`` None: there was no envelope, the message is plain."""

    body: bytes
    media: str = JSON
    """Media type of the body, lower case, without parameters; one name for Protobuf, which has many. Empty: it was
    not said."""
    type: str | None = None
    id: str = ""
    source: str = ""
    version: int = 1
    """Of the event, as its producer declared it."""
    correlation: str | None = None


# ------------------------------------------------------------------ reading


def read(headers: Headers, body: bytes) -> Envelope:
    """Take a message's envelope off, in either mode.

    Raises MalformedMessage: ``not-a-cloudevent`` (an attribute is missing or senseless),
    ``unsupported-content-type``; LimitExceeded: headers, id or type too long.
    """
    pairs = headers.pairs
    found = dict(pairs)
    if not _OURS.issuperset(found) or len(found) != len(pairs) or len(b"".join(found.values())) > _SHORT_VALUE:
        found = _sorted_out(pairs)
    content_type = found.get("content-type", b"")
    if content_type[:23].lower() == b"application/cloudevents":
        return _structured(content_type, body)
    if "ce_type" in found or "ce_id" in found or "ce_source" in found or "ce_specversion" in found:
        return _binary(found, content_type, body)
    return Envelope(body, _media(content_type))


def _sorted_out(pairs: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """The headers that are read here, under the names that are written here; of two, the last counts."""
    limits.check_headers(pairs, len(pairs))
    found: dict[str, bytes] = {}
    for name, value in pairs:
        attribute = _attribute(name)
        if attribute is not None:
            found[attribute] = value
    return found


@lru_cache(maxsize=1024)
def _attribute(name: str) -> str | None:
    """The name under which a header is read, or None for one that is not read here."""
    lower = name.lower()
    if lower in ("content-type", "content_type"):
        return "content-type"
    for prefix in _PREFIXES:
        if lower.startswith(prefix):
            attribute = "ce_" + lower[len(prefix) :]
            return attribute if attribute in _READ else None
    return None


def _binary(found: dict[str, bytes], content_type: bytes, body: bytes) -> Envelope:
    type, id, source = found.get("ce_type"), found.get("ce_id"), found.get("ce_source")
    if not (type and id and source):
        missing = [name for name in ("ce_id", "ce_source", "ce_type") if not found.get(name)]
        raise MalformedMessage("not-a-cloudevent", f"has ce_ headers, but no {' and no '.join(missing)}")
    version, correlation = found.get("ce_dataversion"), found.get("ce_correlationid")
    _check_specversion(found.get("ce_specversion", b"1.0"))
    return Envelope(
        body,
        _media(content_type or found.get("ce_datacontenttype", b"")),
        _known_type(type),
        _id(id.decode("utf-8", "replace")),
        _known_source(source),
        1 if version is None else _version(version.decode("utf-8", "replace")),
        None if correlation is None else correlation.decode("utf-8", "replace"),
    )


@lru_cache(maxsize=64)
def _check_specversion(text: bytes) -> None:
    if not text.startswith(_SPECVERSIONS):
        found = text[:40].decode("utf-8", "replace")
        raise MalformedMessage("not-a-cloudevent", f"specversion {found!r}; this reads 1.0")


@lru_cache(maxsize=256)
def _known_type(raw: bytes) -> str:
    return _type(raw.decode("utf-8", "replace"))


@lru_cache(maxsize=256)
def _known_source(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _type(text: str) -> str:
    if len(text) > limits.MAX_TYPE:
        raise LimitExceeded("type-too-long", f"a type of {len(text)} characters; at most {limits.MAX_TYPE}")
    if not text.isprintable() and _CONTROL.search(text):
        raise MalformedMessage("not-a-cloudevent", f"its type has control characters: {text!r}")
    return text


def _id(text: str) -> str:
    if len(text) > limits.MAX_ID:
        raise LimitExceeded("id-too-long", f"an id of {len(text)} characters; at most {limits.MAX_ID}")
    if not text.isprintable() and _CONTROL.search(text):
        raise MalformedMessage("not-a-cloudevent", f"its id has control characters: {text!r}")
    return text


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise MalformedMessage("not-a-cloudevent", f"dataversion {text[:40]!r} is no whole number from 1 on")
    return int(text)


@lru_cache(maxsize=256)
def _media(content_type: bytes) -> str:
    """The media type, checked: JSON or Protobuf, by whatever name; empty where nothing was said."""
    media = content_type.decode("utf-8", "replace").partition(";")[0].strip().lower()
    if media in ("", JSON, "text/json"):
        return media and JSON
    if media.endswith("+json"):
        return media
    if _PROTOBUF.fullmatch(media):
        return PROTOBUF
    raise MalformedMessage(
        "unsupported-content-type", f"content type {media[:100]!r}; this version reads JSON and Protobuf"
    )


class _Structured(msgspec.Struct):
    """A CloudEvent in structured mode; an attribute that is null counts as absent."""

    id: str | None = None
    source: str | None = None
    type: str | None = None
    specversion: str | None = None
    datacontenttype: str | None = None
    dataversion: int | str | None = None
    correlationid: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: str | None = None


_read_structured = msgspec.json.Decoder(_Structured).decode


def _structured(content_type: bytes, body: bytes) -> Envelope:
    media = content_type.decode("utf-8", "replace").partition(";")[0].strip().lower()
    if media != "application/cloudevents+json":
        raise MalformedMessage(
            "unsupported-content-type", f"content type {media[:100]!r}; one event in JSON is read, no batch"
        )
    limits.check_body(body)
    outer = _read_structured(body)
    if not (outer.id and outer.source and outer.type and outer.specversion):
        missing = [name for name in _CORE if not getattr(outer, name)]
        raise MalformedMessage("not-a-cloudevent", f"a structured CloudEvent without {' and '.join(missing)}")
    _check_specversion(outer.specversion.encode("utf-8", "replace"))
    return Envelope(
        _data(outer),
        _media((outer.datacontenttype or (JSON if outer.data_base64 is None else "")).encode("utf-8", "replace")),
        _type(outer.type),
        _id(outer.id),
        outer.source,
        1 if outer.dataversion is None else _version(str(outer.dataversion)),
        outer.correlationid,
    )


def _data(outer: _Structured) -> bytes:
    if outer.data_base64 is not None:
        if outer.data is not msgspec.UNSET:
            raise MalformedMessage("not-a-cloudevent", "has both data and data_base64")
        try:
            return base64.b64decode(outer.data_base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MalformedMessage("not-a-cloudevent", f"data_base64: {error}") from error
    return b"" if outer.data is msgspec.UNSET else bytes(outer.data)


# ------------------------------------------------------------------ writing


def _fragment(value: str | bytes) -> bytes:
    return msgspec.msgpack.encode(value)


def _pair(name: str) -> bytes:
    """The start of one packed header: an array of two, and the name."""
    return b"\x92" + _fragment(name)


_ID, _TIME, _SUBJECT = _pair("ce_id") + b"\xc4\x24", _pair("ce_time") + b"\xc4\x1b", _pair("ce_subject")
_CORRELATION, _CAUSATION = _pair("ce_correlationid"), _pair("ce_causationid")
_COUNTS = tuple(bytes([0x90 | count]) for count in range(16))
_SHORT = tuple(b"\xc4" + bytes([length]) for length in range(256))


def _text(value: bytes) -> bytes:
    return (_SHORT[len(value)] if len(value) < 256 else b"\xc5" + len(value).to_bytes(2, "big")) + value


def writer(
    type: str, version: int, source: str, media: str = JSON
) -> Callable[[bytes, float, bytes, str | None, str | None], bytes]:
    """Makes the function (id, now, key, correlation, causation) -> ``Headers.packed``.

    ``id`` is 16 bytes. What is the same for each event of a type and source is packed once, here.
    """
    constant = [("content-type", media), ("ce_specversion", "1.0"), ("ce_type", type), ("ce_source", source)]
    if version != 1:
        constant.append(("ce_dataversion", str(version)))
    start = b"".join(_pair(name) + _fragment(value.encode()) for name, value in constant)
    count = len(constant) + 3

    def write(id: bytes, now: float, key: bytes, correlation: str | None, causation: str | None) -> bytes:
        hex = id.hex()
        canonical = f"{hex[:8]}-{hex[8:12]}-{hex[12:16]}-{hex[16:20]}-{hex[20:]}".encode()
        parts = [b"", start, _ID, canonical, _TIME, _timestamp(now), _SUBJECT, _text(key)]
        total = count
        if correlation:
            total += 1
            parts += (_CORRELATION, _text(correlation.encode("utf-8", "replace")))
        if causation:
            total += 1
            parts += (_CAUSATION, _text(causation.encode("utf-8", "replace")))
        parts[0] = _COUNTS[total]
        return b"".join(parts)

    return write


@lru_cache(maxsize=16)
def _timestamp(now: float) -> bytes:
    """RFC 3339 in UTC, upper case, six digits: what every SDK reads."""
    second, micros = divmod(int(now * 1_000_000), 1_000_000)
    return b"%b.%06dZ" % (_second(second), micros)


@lru_cache(maxsize=64)
def _second(second: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
