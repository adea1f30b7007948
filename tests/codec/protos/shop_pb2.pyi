import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_PLACED: _ClassVar[Status]
    STATUS_PAID: _ClassVar[Status]

class LaterStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LATER_STATUS_UNSPECIFIED: _ClassVar[LaterStatus]
    LATER_STATUS_SENT: _ClassVar[LaterStatus]
STATUS_UNSPECIFIED: Status
STATUS_PLACED: Status
STATUS_PAID: Status
LATER_STATUS_UNSPECIFIED: LaterStatus
LATER_STATUS_SENT: LaterStatus

class OrderCreated(_message.Message):
    __slots__ = ("order_id", "user_id", "amount")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    user_id: str
    amount: float
    def __init__(self, order_id: _Optional[str] = ..., user_id: _Optional[str] = ..., amount: _Optional[float] = ...) -> None: ...

class OrderCreatedInText(_message.Message):
    __slots__ = ("order_id", "user_id", "amount")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    user_id: str
    amount: str
    def __init__(self, order_id: _Optional[str] = ..., user_id: _Optional[str] = ..., amount: _Optional[str] = ...) -> None: ...

class OrderCreatedLater(_message.Message):
    __slots__ = ("order_id", "user_id", "amount", "coupon")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    COUPON_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    user_id: str
    amount: float
    coupon: str
    def __init__(self, order_id: _Optional[str] = ..., user_id: _Optional[str] = ..., amount: _Optional[float] = ..., coupon: _Optional[str] = ...) -> None: ...

class Unrelated(_message.Message):
    __slots__ = ("remark", "count")
    REMARK_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    remark: str
    count: int
    def __init__(self, remark: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class PaymentSucceeded(_message.Message):
    __slots__ = ("order_id", "amount")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    amount: str
    def __init__(self, order_id: _Optional[str] = ..., amount: _Optional[str] = ...) -> None: ...

class Line(_message.Message):
    __slots__ = ("sku", "quantity", "price")
    SKU_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    sku: str
    quantity: int
    price: str
    def __init__(self, sku: _Optional[str] = ..., quantity: _Optional[int] = ..., price: _Optional[str] = ...) -> None: ...

class Basket(_message.Message):
    __slots__ = ("id", "total", "weight", "count", "paid", "raw", "status", "at", "took", "note", "uuid", "lines", "tags", "stock", "by_name", "main", "priority", "web", "shop", "history", "small", "by_number", "by_shelf", "by_floor", "by_choice")
    class StockEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ByNameEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Line
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Line, _Mapping]] = ...) -> None: ...
    class ByNumberEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: Line
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[Line, _Mapping]] = ...) -> None: ...
    class ByShelfEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: Line
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[Line, _Mapping]] = ...) -> None: ...
    class ByFloorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: Line
        def __init__(self, key: _Optional[int] = ..., value: _Optional[_Union[Line, _Mapping]] = ...) -> None: ...
    class ByChoiceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: bool
        value: Line
        def __init__(self, key: _Optional[bool] = ..., value: _Optional[_Union[Line, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PAID_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    STOCK_FIELD_NUMBER: _ClassVar[int]
    BY_NAME_FIELD_NUMBER: _ClassVar[int]
    MAIN_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WEB_FIELD_NUMBER: _ClassVar[int]
    SHOP_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SMALL_FIELD_NUMBER: _ClassVar[int]
    BY_NUMBER_FIELD_NUMBER: _ClassVar[int]
    BY_SHELF_FIELD_NUMBER: _ClassVar[int]
    BY_FLOOR_FIELD_NUMBER: _ClassVar[int]
    BY_CHOICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    total: str
    weight: float
    count: int
    paid: bool
    raw: bytes
    status: Status
    at: _timestamp_pb2.Timestamp
    took: _duration_pb2.Duration
    note: _wrappers_pb2.StringValue
    uuid: str
    lines: _containers.RepeatedCompositeFieldContainer[Line]
    tags: _containers.RepeatedScalarFieldContainer[str]
    stock: _containers.ScalarMap[str, int]
    by_name: _containers.MessageMap[str, Line]
    main: Line
    priority: int
    web: str
    shop: int
    history: _containers.RepeatedScalarFieldContainer[Status]
    small: int
    by_number: _containers.MessageMap[int, Line]
    by_shelf: _containers.MessageMap[int, Line]
    by_floor: _containers.MessageMap[int, Line]
    by_choice: _containers.MessageMap[bool, Line]
    def __init__(self, id: _Optional[str] = ..., total: _Optional[str] = ..., weight: _Optional[float] = ..., count: _Optional[int] = ..., paid: _Optional[bool] = ..., raw: _Optional[bytes] = ..., status: _Optional[_Union[Status, str]] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., took: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., note: _Optional[_Union[_wrappers_pb2.StringValue, _Mapping]] = ..., uuid: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[Line, _Mapping]]] = ..., tags: _Optional[_Iterable[str]] = ..., stock: _Optional[_Mapping[str, int]] = ..., by_name: _Optional[_Mapping[str, Line]] = ..., main: _Optional[_Union[Line, _Mapping]] = ..., priority: _Optional[int] = ..., web: _Optional[str] = ..., shop: _Optional[int] = ..., history: _Optional[_Iterable[_Union[Status, str]]] = ..., small: _Optional[int] = ..., by_number: _Optional[_Mapping[int, Line]] = ..., by_shelf: _Optional[_Mapping[int, Line]] = ..., by_floor: _Optional[_Mapping[int, Line]] = ..., by_choice: _Optional[_Mapping[bool, Line]] = ...) -> None: ...

class BasketLater(_message.Message):
    __slots__ = ("id", "status", "history", "small")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SMALL_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: LaterStatus
    history: _containers.RepeatedScalarFieldContainer[LaterStatus]
    small: int
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[LaterStatus, str]] = ..., history: _Optional[_Iterable[_Union[LaterStatus, str]]] = ..., small: _Optional[int] = ...) -> None: ...

class Tree(_message.Message):
    __slots__ = ("id", "inner")
    ID_FIELD_NUMBER: _ClassVar[int]
    INNER_FIELD_NUMBER: _ClassVar[int]
    id: str
    inner: Tree
    def __init__(self, id: _Optional[str] = ..., inner: _Optional[_Union[Tree, _Mapping]] = ...) -> None: ...
