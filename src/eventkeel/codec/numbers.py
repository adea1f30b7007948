"""What msgspec lets pass and other languages do not: text where a number belongs, and numbers beyond bounds.

msgspec reads ``"99.99"`` into a Decimal field; Go, Java and Node call that malformed, and a service that
accepted it would disagree with its neighbours about the same message. So a type with Decimal fields gets
a *guard*: a second decoder of the same shape in which each Decimal is ``int | float``. It looks at nothing
else and keeps nothing, so amounts are never rounded; it also refuses 1e999, as those languages do.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

Guard = Callable[[bytes], Any]

_NUMBER = int | float
_ARRAYS = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)
_BESIDE = (inspect.NoneType, inspect.IntType, inspect.FloatType)
_OBJECTS = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)


def guard_of(cls: Any) -> Guard | None:
    """The guard of an event class, or None where no Decimal is in it."""
    return _decoder(_shape(inspect.type_info(cls), ()))


def is_model(cls: Any) -> bool:
    """A pydantic model (or what looks like one): this package does not depend on pydantic."""
    return hasattr(cls, "model_fields") and hasattr(cls, "model_validate") and hasattr(cls, "model_dump")


def hides_nan(cls: Any) -> bool:
    """A float that is not finite is written as null, which some field of this class would take."""
    return _has_float(inspect.type_info(cls), ())


def _decoder(shape: Any) -> Guard | None:
    return None if shape is None else msgspec.json.Decoder(shape).decode


def _shape(node: inspect.Type, above: tuple[type, ...]) -> Any:
    """The mirror of a type, or None where there is nothing to look at.

    A type inside itself is looked at once: the mirror of a recursive type would have no end.
    """
    if isinstance(node, inspect.DecimalType):
        return _NUMBER
    if isinstance(node, inspect.Metadata):
        return _shape(node.type, above)
    if isinstance(node, _ARRAYS):
        item = _shape(node.item_type, above)
        return None if item is None else list[item]  # type: ignore[valid-type]
    if isinstance(node, inspect.TupleType):
        items = [_shape(each, above) for each in node.item_types]
        if all(item is None for item in items):
            return None
        return tuple[tuple(Any if item is None else item for item in items)]  # type: ignore[misc]
    if isinstance(node, inspect.DictType):
        value = _shape(node.value_type, above)
        return None if value is None else dict[str, value]  # type: ignore[valid-type]
    if isinstance(node, inspect.UnionType):
        return _union(node, above)
    if isinstance(node, _OBJECTS) and node.cls not in above:
        return _mirror(node, (*above, node.cls))
    if isinstance(node, inspect.CustomType) and is_model(node.cls) and node.cls not in above:
        return _model_mirror(node.cls, (*above, node.cls))
    return None


def _mirror(node: Any, above: tuple[type, ...]) -> Any:
    shapes = [(field.encode_name, _shape(field.type, above)) for field in node.fields]
    if all(shape is None for _, shape in shapes) or getattr(node, "array_like", False):
        return None
    tag = getattr(node, "tag", None)
    options = {} if tag is None else {"tag": tag, "tag_field": node.tag_field}
    return _object(node.cls.__name__, [pair for pair in shapes if pair[1] is not None], **options)


def _model_mirror(cls: Any, above: tuple[type, ...]) -> Any:
    shapes = []
    for name, field in cls.model_fields.items():
        shape = _shape(inspect.type_info(field.annotation), above)
        if shape is not None:
            shapes.append((field.alias or name, shape))
    return _object(cls.__name__, shapes) if shapes else None


def _object(name: str, shapes: list[tuple[str, Any]], **options: Any) -> Any:
    fields = [
        (f"f{index}", shape | msgspec.UnsetType, msgspec.field(default=msgspec.UNSET, name=wire))
        for index, (wire, shape) in enumerate(shapes)
    ]
    return msgspec.defstruct(name, fields, **options)


def _union(node: inspect.UnionType, above: tuple[type, ...]) -> Any:
    """Unions with None, numbers and tagged classes; what else may stand there is left to msgspec."""
    members: list[Any] = []
    found = False
    for each in node.types:
        shape = _shape(each, above)
        found = found or shape is not None
        if shape is None:
            if not isinstance(each, _BESIDE):
                return None
            shape = None if isinstance(each, inspect.NoneType) else _NUMBER
        members.append(shape)
    return functools.reduce(operator.or_, members) if found else None


def _has_float(node: inspect.Type, above: tuple[type, ...]) -> bool:
    if isinstance(node, inspect.FloatType | inspect.AnyType | inspect.RawType | inspect.CustomType):
        return True
    cls = getattr(node, "cls", None)
    if cls in above:
        return False
    inner: list[inspect.Type] = []
    for name in ("type", "item_type", "key_type", "value_type"):
        found = getattr(node, name, None)
        if isinstance(found, inspect.Type):
            inner.append(found)
    inner += [each for name in ("item_types", "types") for each in getattr(node, name, ())]
    inner += [field.type for field in getattr(node, "fields", ())]
    return any(_has_float(each, above if cls is None else (*above, cls)) for each in inner)
