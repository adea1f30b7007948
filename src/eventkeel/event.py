"""Events as declared: facts in the past tense, with the topic they lie on and the key that orders them.

    class OrderCreated(Event, topic="order_events", key="order_id", identity="order_id", accept="plain"):
        order_id: str
        amount: Decimal

Topic, key and identity belong to the event, so every service that imports the class agrees on them.
Dataclasses, attrs classes, pydantic models and generated Protobuf classes become events with ``@event(...)``.
"""

from __future__ import annotations

import builtins
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, dataclass_transform

import msgspec

from eventkeel.errors import ConfigurationError

__all__ = ["Event", "EventSpec", "declared", "event", "spec_of", "topics"]

T = TypeVar("T")
_Rename = Literal["lower", "upper", "camel", "pascal", "kebab"] | Callable[[str], str | None] | Mapping[str, str]

Content = Literal["json", "protobuf"]

POSITION = "position"

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,200}")
_TYPE = re.compile(r"[^\x00-\x20\x7f]{1,200}")
_MAIN = frozenset({"__main__", "__mp_main__"})


class EventSpec(msgspec.Struct, frozen=True, eq=False):
    """What a class declared about itself. One object for each class, compared by identity."""

    cls: type[Any]
    topic: str
    type: str
    """Its name on the wire."""
    version: int
    key: str
    """The attribute that orders: events of one topic with the same key stay in order."""
    identity: str | None
    """The attribute that makes two publishes the same fact, ``"position"``, or None: each publish is its own."""
    plain: bool
    """Messages without an envelope on this topic are of this type."""
    protobuf: builtins.type[Any] | None = None
    """The generated class of its Protobuf bodies, or None: it has JSON bodies only."""
    content: Content = "json"
    """How its bodies are written, and read where a message says nothing about its content."""
    required: tuple[str, ...] = ()
    """Fields of a generated class that a body has to have, beside key and identity."""

    @property
    def generated(self) -> bool:
        """The class is itself what a Protobuf compiler made."""
        return self.protobuf is self.cls

    @property
    def where(self) -> str:
        """The class as people find it."""
        return f"{self.cls.__module__}.{self.cls.__qualname__}"


class _Said(msgspec.Struct, frozen=True):
    """The keywords of a class statement, before they are checked."""

    topic: str | None = None
    key: str | None = None
    identity: str | None = None
    accept: str | None = None
    type: str | None = None
    version: int | None = None
    protobuf: Any = None
    content: str | None = None
    required: tuple[str, ...] = ()

    def over(self, base: _Said) -> _Said:
        """These keywords, filled up with what a base class said for its subclasses."""
        return _Said(
            topic=self.topic,
            key=self.key or base.key,
            identity=self.identity or base.identity,
            accept=self.accept or base.accept,
            type=self.type,
            version=self.version,
            protobuf=self.protobuf,
            content=self.content,
        )


_specs: dict[type[Any], EventSpec] = {}
_bases: dict[type[Any], _Said] = {}
_topics: dict[str, dict[str, EventSpec]] = {}
_read: dict[str, Mapping[str, EventSpec]] = {}
_NOTHING: Mapping[str, EventSpec] = MappingProxyType({})


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class _EventMeta(msgspec.StructMeta):
    """Takes Eventkeel's keywords out of the class statement and declares the class."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        topic: str | None = None,
        key: str | None = None,
        identity: str | None = None,
        accept: str | None = None,
        type: str | None = None,
        version: int | None = None,
        protobuf: Any = None,
        content: str | None = None,
        **options: Any,
    ) -> _EventMeta:
        where = f"{namespace.get('__module__', '?')}.{namespace.get('__qualname__', name)}"
        if options.get("frozen") is False or options.get("array_like"):
            raise ConfigurationError(
                f"event {where}: events are frozen JSON objects; drop frozen=False / array_like=True"
            )
        try:
            cls = super().__new__(mcls, name, bases, namespace, **options)
        except TypeError as error:
            raise ConfigurationError(f"event {where} cannot be made: {error}") from error
        said = _Said(topic, key, identity, accept, type, version, protobuf, content)
        for base in bases:
            if base in _bases:
                said = said.over(_bases[base])
        if said.topic is None:
            for words, said_any in (
                ("type= or version=", said.type is not None or said.version is not None),
                ("protobuf= or content=", said.protobuf is not None or said.content is not None),
            ):
                if said_any:
                    raise ConfigurationError(f'event {where} says {words} but no topic=; write topic="…" too')
            _bases[cls] = said
        else:
            _declare(cls, said, cls.__struct_fields__)
        return cls


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=_EventMeta, frozen=True):
    """A fact, in the past tense, as a frozen ``msgspec.Struct``. Class keywords:

    ``topic``: where it is published; ``[a-zA-Z0-9._-]``, at most 200.
    ``key``: the field that orders; within a topic, events with one key are handled in order.
    ``identity``: the field that makes two publishes one fact (its id is then computed from topic, type and
    that value); the inbox also keeps a fingerprint, so the same identity with other facts is a dead letter.
    ``accept="plain"``: messages without envelope on this topic are of this type, which must be its only one;
    needs ``identity``, or ``identity="position"``: then a producer's own duplicates take effect **twice**.
    ``type``: the name on the wire (default: the class's name). ``version``: a whole number, default 1.
    ``protobuf``: a generated Protobuf class with fields of the same names; bodies are then written as Protobuf,
    and read as Protobuf or as JSON, as each message's content type says. ``content="json"``: they are still written
    as JSON (for a topic whose readers are not all there yet, or where only foreign producers write Protobuf);
    a message that says nothing of its content is read as what is written.

    Without ``topic`` the class is a base for events, not an event; what it says of key, identity and accept
    holds for its subclasses. Other keywords (``kw_only``, ``rename`` …) go to ``msgspec.Struct``.

    Raises ConfigurationError in the class statement, saying what to write instead.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            topic: str | None = None,
            key: str | None = None,
            identity: str | None = None,
            accept: Literal["plain"] | None = None,
            type: str | None = None,
            version: int | None = None,
            protobuf: builtins.type[Any] | None = None,
            content: Content | None = None,
            kw_only: bool = False,
            rename: _Rename | None = None,
            omit_defaults: bool = False,
            forbid_unknown_fields: bool = False,
            eq: bool = True,
            order: bool = False,
            repr_omit_defaults: bool = False,
            gc: bool = True,
            weakref: bool = False,
            dict: bool = False,
            cache_hash: bool = False,
            tag: bool | str | int | None = None,
            tag_field: str | None = None,
        ) -> None: ...


def event(
    *,
    topic: str,
    key: str,
    identity: str | None = None,
    accept: Literal["plain"] | None = None,
    type: str | None = None,
    version: int = 1,
    protobuf: builtins.type[Any] | None = None,
    content: Content | None = None,
    required: Sequence[str] = (),
) -> Callable[[builtins.type[T]], builtins.type[T]]:
    """Make an event of a dataclass, an attrs class, a pydantic model, a ``msgspec.Struct`` or a class that a Protobuf
    compiler made.

    The keywords are those of ``Event``. A generated class is written as Protobuf, and read as Protobuf or as
    Protobuf's JSON; ``required`` names the fields that a body has to have beside key and identity: one that is
    missing is then malformed, where it would be nought. It returns the class that it was given, so for a generated one
    ``event(topic=…, key=…)(shop_pb2.OrderCreated)`` is a whole statement. Raises ConfigurationError.
    """

    def register(cls: Any) -> Any:
        said = _Said(topic, key, identity, accept, type, version, protobuf, content, tuple(required))
        _declare(cls, said, _fields(cls))
        return cls

    return register


def spec_of(what: Any) -> EventSpec:
    """The declaration of an event or of its class. Raises ConfigurationError for anything else."""
    cls = what if isinstance(what, type) else type(what)
    spec = _specs.get(cls)
    if spec is None:
        raise ConfigurationError(_not_an_event(cls))
    return spec


def declared(topic: str) -> Mapping[str, EventSpec]:
    """Type name -> declaration, of every event class of this topic that was imported."""
    return _read.get(topic, _NOTHING)


def topics() -> tuple[str, ...]:
    """Every topic that an imported event class names, sorted."""
    return tuple(sorted(_topics))


# ------------------------------------------------------------------ the registry


def _declare(cls: type[Any], said: _Said, fields: tuple[str, ...]) -> None:
    spec = _checked(cls, said, fields)
    types = _topics.get(spec.topic, {})
    clashing = [old for old in types.values() if _clash(spec, old)]
    for old in clashing:
        if not _replaces(spec, old):
            raise ConfigurationError(_clash_text(spec, old))
    kept = {name: old for name, old in types.items() if old not in clashing}
    _topics[spec.topic] = kept | {spec.type: spec}
    _read[spec.topic] = MappingProxyType(_topics[spec.topic])
    _specs[cls] = spec


def _checked(cls: type[Any], said: _Said, fields: tuple[str, ...]) -> EventSpec:
    where = f"{cls.__module__}.{cls.__qualname__}"
    topic: Any = said.topic  # the checks are for callers that no type checker has seen
    type_: Any = said.type or cls.__name__
    version: Any = 1 if said.version is None else said.version
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ConfigurationError(
            f"event {where}: topic {topic!r} cannot be a topic's name on every broker; "
            "use 1 to 200 of a-z A-Z 0-9 . _ -"
        )
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        raise ConfigurationError(
            f"event {where}: type {type_!r} cannot be a type's name; use 1 to 200 characters without spaces"
        )
    if type(version) is not int or version < 1:
        raise ConfigurationError(f"event {where}: version {version!r} is not a whole number from 1 on")
    if said.accept not in (None, "plain"):
        raise ConfigurationError(f'event {where}: accept={said.accept!r} is unknown; the only choice is accept="plain"')
    if said.key is None:
        raise ConfigurationError(f'event {where} names no key; write key="…" with one of {_listed(fields)}')
    _refuse_unknown(where, "key", said.key, fields)
    if said.identity is not None and not (said.identity == POSITION and said.accept and POSITION not in fields):
        _refuse_unknown(where, "identity", said.identity, fields)
    if said.accept and said.identity is None:
        raise ConfigurationError(
            f'event {where}: accept="plain" needs identity=: a message without an envelope has no id, so say which '
            f'field tells two of them apart (one of {_listed(fields)}). identity="position" is the way without one: '
            "then a producer's own duplicates take effect twice"
        )
    protobuf, content = _contents(cls, where, said)
    for name in said.required:
        _refuse_unknown(where, "required", name, fields)
    return EventSpec(
        cls=cls,
        topic=topic,
        type=type_,
        version=version,
        key=said.key,
        identity=said.identity,
        plain=bool(said.accept),
        protobuf=protobuf,
        content=content,
        required=said.required,
    )


def _contents(cls: type[Any], where: str, said: _Said) -> tuple[type[Any] | None, Content]:
    """The class of an event's Protobuf bodies, and how its bodies are written."""
    protobuf, content = said.protobuf, said.content
    if content not in (None, "json", "protobuf"):
        raise ConfigurationError(f'event {where}: content={content!r} is unknown; choose "json" or "protobuf"')
    if _is_generated(cls):
        if protobuf not in (None, cls) or content == "json":
            raise ConfigurationError(
                f"event {where} is a generated Protobuf class: its bodies are what it says; drop protobuf= and "
                f"content=, or declare a class of your own with protobuf={cls.__name__}"
            )
        return cls, "protobuf"
    if said.required:
        raise ConfigurationError(
            f"event {where}: required= is for generated classes; here each field without a default is required"
        )
    if protobuf is None:
        if content == "protobuf":
            raise ConfigurationError(
                f'event {where}: content="protobuf" needs protobuf=, the generated class whose bytes the bodies are'
            )
        return None, "json"
    if not _is_generated(protobuf):
        raise ConfigurationError(
            f"event {where}: protobuf={protobuf!r} is no class that a Protobuf compiler made; "
            "give a message class of a module …_pb2"
        )
    return protobuf, "json" if content == "json" else "protobuf"


def _is_generated(cls: Any) -> bool:
    """A message class of a …_pb2 module, told by its looks: the Protobuf package need not be there."""
    return isinstance(cls, type) and hasattr(vars(cls).get("DESCRIPTOR"), "fields_by_name")


def _refuse_unknown(where: str, option: str, name: str, fields: tuple[str, ...]) -> None:
    if name not in fields:
        hint = ' ("position" goes with accept="plain" only)' if name == POSITION else ""
        raise ConfigurationError(
            f"event {where}: {option}={name!r} is none of its fields{hint}; choose one of {_listed(fields)}"
        )


def _clash(new: EventSpec, old: EventSpec) -> bool:
    return new.type == old.type or new.plain or old.plain or _same_statement(new, old)


def _clash_text(new: EventSpec, old: EventSpec) -> str:
    if new.type == old.type:
        return (
            f"event {new.where}: type {new.type!r} on topic {new.topic!r} is declared already by {old.where}; "
            "import that class. Services that each declare it for themselves are named in commands of their own; "
            'two kinds of event need a type="…" each'
        )
    plain, other = (new, old) if new.plain else (old, new)
    return (
        f"event {new.where}: topic {new.topic!r} takes messages without an envelope as {plain.type!r} "
        f'(accept="plain" of {plain.where}), so it can have no second type such as {other.type!r} of {other.where}; '
        "give one of them a topic of its own"
    )


def _same_statement(new: EventSpec, old: EventSpec) -> bool:
    """The same class statement, run again (a module imported anew, also as ``__main__``)."""
    if new.cls.__qualname__ != old.cls.__qualname__:
        return False
    modules = {new.cls.__module__, old.cls.__module__}
    return len(modules) == 1 or bool(modules & _MAIN)


def _replaces(new: EventSpec, old: EventSpec) -> bool:
    """The newer of two clashing classes wins: the same statement again, or classes of two functions
    (tests declare their own; the older one's function is over)."""
    functions = {spec.cls.__qualname__.rpartition("<locals>")[0] for spec in (new, old)}
    return _same_statement(new, old) or (len(functions) == 2 and "" not in functions)


def _fields(cls: Any) -> tuple[str, ...]:
    """The fields of a class that ``@event`` was put on."""
    if not isinstance(cls, type):
        raise ConfigurationError(f"@event(...) belongs on a class, not on {cls!r}")
    if _is_generated(cls):
        return tuple(vars(cls)["DESCRIPTOR"].fields_by_name)
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    if hasattr(cls, "model_fields") and hasattr(cls, "model_validate") and hasattr(cls, "model_dump"):
        return tuple(cls.model_fields)
    raise ConfigurationError(
        f"@event(...) on {cls.__module__}.{cls.__qualname__}: it is no dataclass, attrs class, pydantic model, "
        "generated Protobuf class or Struct; derive it from eventkeel.Event, or put @dataclass below @event(...)"
    )


def _not_an_event(cls: type[Any]) -> str:
    where = f"{cls.__module__}.{cls.__qualname__}"
    if cls in _bases:
        return f'{where} names no topic, so it is only a base for events; write class …(Event, topic="…", key="…")'
    return f'{where} is no event; derive it from eventkeel.Event, or put @event(topic="…", key="…") on it'


def _listed(fields: tuple[str, ...]) -> str:
    return ", ".join(fields) or "(it has no fields)"
