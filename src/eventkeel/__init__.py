"""Eventkeel: publish in your database transaction, handle in your database transaction, and every
event takes effect once, in order per key."""

from eventkeel.errors import (
    BrokerUnavailable,
    CommitUnknown,
    ConfigurationError,
    EventkeelError,
    Fenced,
    FinalError,
    MalformedMessage,
    NestedTransaction,
    NotYetSupported,
    PublishError,
    RowsMismatch,
    SignatureError,
    StatementRefused,
    StepRefused,
    StoreUnavailable,
    TransactionAborted,
    TransactionClosed,
    TransactionError,
    UnknownType,
)
from eventkeel.event import Event, event
from eventkeel.handling import SyncTransaction, Transaction
from eventkeel.message import Delivery, Headers
from eventkeel.policy.retry import Retry
from eventkeel.service import Service
from eventkeel.steps import Steps, SyncSteps

__all__ = [
    "BrokerUnavailable",
    "CommitUnknown",
    "ConfigurationError",
    "Delivery",
    "Event",
    "EventkeelError",
    "Fenced",
    "FinalError",
    "Headers",
    "MalformedMessage",
    "NestedTransaction",
    "NotYetSupported",
    "PublishError",
    "Retry",
    "RowsMismatch",
    "Service",
    "SignatureError",
    "StatementRefused",
    "StepRefused",
    "Steps",
    "StoreUnavailable",
    "SyncSteps",
    "SyncTransaction",
    "Transaction",
    "TransactionAborted",
    "TransactionClosed",
    "TransactionError",
    "UnknownType",
    "event",
]
