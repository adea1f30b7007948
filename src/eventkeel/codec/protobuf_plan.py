"""An event class and a generated message side by side: which field is which, made once at start-up.

What cannot be told apart later is refused here. A field without presence is not on the wire where it is
nought; so where such a field has a default in the class that is not nought, nobody could tell "not said" from
"nought was said", and the .proto file has to say ``optional``. Fields without a default are written always,
also when they are nought, and a body without them is malformed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
from msgspec import inspect

from eventkeel.codec import numbers
from eventkeel.codec import protobuf_kinds as kinds
from eventkeel.codec import protobuf_wire as wire
from eventkeel.errors import ConfigurationError

_ARRAYS = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)
_MISSING: Any = object()


class Declared(msgspec.Struct, frozen=True):
    """One field of a class, of whatever make."""

    attribute: str
    name: str
    """As ``msgspec.convert`` and pydantic call it."""
    node: inspect.Type
    default: Any
    """``_MISSING`` where it has none."""


class Member(msgspec.Struct, frozen=True):
    """One field of the class with its field of the message."""

    attribute: str
    name: str
    field: str
    present: bool
    """The message can say whether it was set."""
    nullable: bool
    read: Callable[[Any], Any]
    arguments: Callable[[Any], Any] | None
    """Makes what the generated class takes; None for those that are written as bytes."""
    content: Callable[[Any], bytes] | None
    """Makes whole fields, behind the others."""
    nought: bytes
    """What is written where the value is nought and has to be there all the same."""


class Plan:
    """Between the events of a class and the messages of a generated class."""

    __slots__ = ("members", "message", "names", "shape", "where")

    def __init__(self, where: str, message: Any) -> None:
        self.where = where
        self.message = message
        self.shape = wire.Shape(message.DESCRIPTOR.name)
        self.members: list[Member] = []
        self.names: dict[str, str] = {}
        """Field of the message -> its name in the class."""

    def values(self, message: Any) -> dict[str, Any]:
        """What is in a message, under the names that the class uses. Raises msgspec.ValidationError."""
        found: dict[str, Any] = {}
        for member in self.members:
            if not member.present or message.HasField(member.field):
                try:
                    found[member.name] = member.read(getattr(message, member.field))
                except (ValueError, OverflowError) as error:
                    raise msgspec.ValidationError(f"its {member.field}: {error}") from error
            elif member.nullable:
                found[member.name] = None
        return found

    def body(self, event: Any) -> bytes:
        """The bytes of an event. Raises ValueError or TypeError where a value does not fit."""
        arguments: dict[str, Any] = {}
        more: list[bytes] = []
        for member in self.members:
            value = getattr(event, member.attribute)
            if value is None:
                continue
            try:
                if member.content is not None:
                    more.append(member.content(value))
                    continue
                assert member.arguments is not None
                said = arguments[member.field] = member.arguments(value)
                if member.nought and wire.left_out(said):
                    more.append(member.nought)
            except (ValueError, TypeError, OverflowError, AttributeError) as error:
                raise ValueError(f"its {member.attribute}: {error}") from error
        return b"".join([self.message(**arguments).SerializeToString(deterministic=True), *more])


def plan_of(where: str, cls: Any, message: Any) -> Plan:
    """Raises ConfigurationError where class and message do not fit together, saying what to change."""
    return _Planner(where).plan(inspect.type_info(cls), message)


class _Planner:
    """Makes the plans of one event class; a class inside itself has one."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._plans: dict[tuple[Any, str], Plan] = {}
        self._shapes: dict[str, wire.Shape] = {}

    def plan(self, node: Any, message: Any) -> Plan:
        descriptor = message.DESCRIPTOR
        known = self._plans.get((node.cls, descriptor.full_name))
        if known is not None:
            return known
        plan = self._plans[node.cls, descriptor.full_name] = Plan(self._where, message)
        inner: dict[str, Plan] = {}
        required = []
        for declared in _declared(node):
            field = descriptor.fields_by_name.get(declared.attribute)
            if field is None:
                self._refuse(
                    f"{declared.attribute} is no field of {descriptor.full_name}, which has "
                    f"{', '.join(descriptor.fields_by_name)}; the names have to be the same"
                )
            plan.members.append(self._member(declared, field, inner))
            plan.names[field.name] = declared.name
            if not field.is_repeated and declared.default is _MISSING and not kinds.bare(declared.node)[1]:
                required.append(field.number)
        for field in descriptor.fields:
            plan.shape.fields[field.number] = wire.field_of(field, self._inner_shape(field, inner))
        required += [each.number for each in descriptor.fields if each.is_required]
        plan.shape.required = tuple(dict.fromkeys(required))
        return plan

    def _inner_shape(self, field: Any, inner: dict[str, Plan]) -> wire.Shape | None:
        if field.message_type is None:
            return None
        shape = inner[field.name].shape if field.name in inner else None
        if not _is_map(field):
            return shape or wire.shape_of(field.message_type, self._shapes)
        entry = wire.Shape(field.message_type.name, closed=True)
        for part in field.message_type.fields:
            bare = None if part.message_type is None else shape or wire.shape_of(part.message_type, self._shapes)
            entry.fields[part.number] = wire.field_of(part, bare)
        return entry

    def _member(self, declared: Declared, field: Any, inner: dict[str, Plan]) -> Member:
        node, nullable = kinds.bare(declared.node)
        if _is_map(field):
            read, arguments, content = self._map(declared, field, node, inner)
        elif field.is_repeated:
            read, arguments, content = self._list(declared, field, node, inner)
        elif field.message_type is not None:
            read, written = self._value(declared, field, node, inner)
            arguments, content = None, lambda value: wire.prefixed(field.number, written(value))
        else:
            read, arguments = self._value(declared, field, node, inner)
            content = None
        implicit = not field.is_repeated and not field.has_presence
        if implicit:
            self._check_default(declared, field, arguments)
        return Member(
            attribute=declared.attribute,
            name=declared.name,
            field=field.name,
            present=not field.is_repeated and field.has_presence,
            nullable=nullable and declared.default is _MISSING,
            read=read,
            arguments=arguments,
            content=content,
            nought=wire.nought(wire.field_of(field, None), field.number)
            if implicit and declared.default is _MISSING
            else b"",
        )

    def _value(self, declared: Declared, field: Any, node: inspect.Type, inner: dict[str, Plan]) -> kinds.Pair:
        if field.message_type is None:
            pair = kinds.scalar(field, node)
        elif field.type == wire.GROUPED:
            pair = None
        else:
            pair = kinds.message(field, node)
            if pair is None and _is_object(node) and not field.message_type.full_name.startswith("google.protobuf."):
                plan = inner[field.name] = self.plan(node, field.message_type._concrete_class)
                pair = plan.values, plan.body
        if pair is None:
            self._refuse(
                f"{declared.attribute} is {_called(node)} here and {_kind_name(field)} in "
                f"{field.containing_type.full_name}; one cannot be the other without loss"
            )
        return pair

    def _list(
        self, declared: Declared, field: Any, node: inspect.Type, inner: dict[str, Plan]
    ) -> tuple[kinds.Convert, kinds.Convert | None, kinds.Convert | None]:
        if not isinstance(node, _ARRAYS):
            self._refuse(f"{declared.attribute} is repeated in {field.containing_type.full_name}; make it a list")
        read, write = self._value(declared, field, node.item_type, inner)
        if field.message_type is None:
            return _each(read), _each(write), None
        number = field.number
        return _each(read), None, lambda values: b"".join([wire.prefixed(number, write(each)) for each in values])

    def _map(
        self, declared: Declared, field: Any, node: inspect.Type, inner: dict[str, Plan]
    ) -> tuple[kinds.Convert, kinds.Convert | None, kinds.Convert | None]:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        if not isinstance(node, inspect.DictType) or kinds.scalar(key, node.key_type) != (kinds.same, kinds.same):
            self._refuse(
                f"{declared.attribute} is a map in {field.containing_type.full_name}; make it a dict with the same keys"
            )
        found: dict[str, Plan] = {}
        read, write = self._value(declared, value, kinds.bare(node.value_type)[0], found)
        if found:
            inner[field.name] = found[value.name]
        if value.message_type is None:
            return _each_value(read), _each_value(write), None

        def content(values: Any) -> bytes:
            entries = [
                wire.key_of_entry(key.type, name) + wire.prefixed(2, write(values[name])) for name in sorted(values)
            ]
            return b"".join([wire.prefixed(field.number, each) for each in entries])

        return _each_value(read), None, content

    def _check_default(self, declared: Declared, field: Any, write: kinds.Convert | None) -> None:
        default = declared.default
        if default is _MISSING and not kinds.bare(declared.node)[1]:
            return
        assert write is not None
        default = None if default is _MISSING else default
        if default is None or write(default) != field.default_value:
            self._refuse(
                f"{declared.attribute} may be left out and is then {default!r}, and in "
                f"{field.containing_type.full_name} a field that is left out is {field.default_value!r}; "
                f"write `optional` in front of it in the .proto file, which changes no bytes that were written before"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigurationError(f"event {self._where}, Protobuf: {what}")


def _each(convert: kinds.Convert) -> kinds.Convert:
    return lambda values: [convert(each) for each in values]


def _each_value(convert: kinds.Convert) -> kinds.Convert:
    return lambda values: {name: convert(values[name]) for name in values}


# ------------------------------------------------------------------ classes and descriptors, looked at


def _declared(node: Any) -> list[Declared]:
    if isinstance(node, inspect.CustomType):  # a pydantic model
        model: Any = node.cls
        return [
            Declared(
                name,
                field.alias or name,
                inspect.type_info(field.annotation),
                _MISSING if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in model.model_fields.items()
        ]
    return [
        Declared(field.name, field.encode_name, field.type, _MISSING if field.required else _default(field))
        for field in node.fields
    ]


def _default(field: inspect.Field) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return None if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _is_object(node: inspect.Type) -> bool:
    if isinstance(node, inspect.StructType):
        return not node.array_like and node.tag is None
    return isinstance(node, inspect.DataclassType) or (
        isinstance(node, inspect.CustomType) and numbers.is_model(node.cls)
    )


def _is_map(field: Any) -> bool:
    return bool(field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry)


def _called(node: inspect.Type) -> str:
    cls = getattr(node, "cls", None)
    return f"a {type(node).__name__.removesuffix('Type').lower() if cls is None else cls.__name__}"


_NAMES = {
    wire.DOUBLE: "double", wire.FLOAT: "float", wire.INT64: "int64", wire.UINT64: "uint64", wire.INT32: "int32",
    wire.FIXED_64: "fixed64", wire.FIXED_32: "fixed32", wire.BOOL: "bool", wire.STRING: "string",
    wire.BINARY: "bytes", wire.UINT32: "uint32", wire.SFIXED_32: "sfixed32", wire.SFIXED_64: "sfixed64",
    wire.SINT32: "sint32", wire.SINT64: "sint64",
}  # fmt: skip


def _kind_name(field: Any) -> str:
    if field.message_type is not None:
        return f"a {'group' if field.type == wire.GROUPED else field.message_type.full_name}"
    if field.enum_type is not None:
        return f"the enum {field.enum_type.full_name}"
    return f"a {_NAMES[field.type]}"
