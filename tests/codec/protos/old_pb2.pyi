from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Booking(_message.Message):
    __slots__ = ("id", "nights", "state", "guest", "remark")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OPEN: _ClassVar[Booking.State]
        DONE: _ClassVar[Booking.State]
    OPEN: Booking.State
    DONE: Booking.State
    class Guest(_message.Message):
        __slots__ = ("name",)
        NAME_FIELD_NUMBER: _ClassVar[int]
        name: str
        def __init__(self, name: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NIGHTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GUEST_FIELD_NUMBER: _ClassVar[int]
    REMARK_FIELD_NUMBER: _ClassVar[int]
    id: str
    nights: int
    state: Booking.State
    guest: Booking.Guest
    remark: str
    def __init__(self, id: _Optional[str] = ..., nights: _Optional[int] = ..., state: _Optional[_Union[Booking.State, str]] = ..., guest: _Optional[_Union[Booking.Guest, _Mapping]] = ..., remark: _Optional[str] = ...) -> None: ...
