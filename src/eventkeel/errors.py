"""Every exception of Eventkeel, in one place.

    EventkeelError
    ├── ConfigurationError        refused at start-up; the message says what to change
    │   ├── SignatureError        a handler asks for something it cannot have
    │   ├── NotYetSupported       a feature this version refuses instead of ignoring
    │   ├── GroupTaken            another store consumes under this group's name
    │   └── PositionError         store and broker disagree about where to start
    ├── PublishError              this event cannot be published; raised in the author's own call
    ├── MalformedMessage          the bytes are not the event they claim to be        (final)
    │   └── LimitExceeded         refused before parsing: too large, too deep, too many
    ├── UnknownType               no class is declared for this type yet              (waits)
    ├── FinalError                raise it in a handler: no retry can help            (final)
    ├── StepRefused               a handler's steps cannot be journalled as asked      (final)
    ├── TransactionError          the transaction cannot go on as asked
    │   ├── TransactionAborted    it ended before its commit; nothing was applied
    │   ├── TransactionClosed     it is over; its handle was kept too long
    │   ├── NestedTransaction     a unit would wait for the unit it runs in
    │   ├── StatementRefused      begin, commit, rollback, attach … belong to the engine
    │   └── RowsMismatch          a guarded write touched another number of rows
    ├── AccessDenied              this actor may not do that to a service
    ├── GroupHalted               a group stands still until an operator has done what it says
    ├── Fenced                    another process owns this partition now
    ├── CommitUnknown             the answer to a commit was lost; the inbox will tell
    ├── Contention                another transaction was in the way                  (retry)
    ├── StoreUnavailable          the database did not answer in time                 (retry)
    └── BrokerUnavailable         the broker did not answer in time                   (retry)

``final`` says whether a retry can help: an error whose class has ``final = True`` goes to the
dead letters at once; every other error is retried by the consumer's retry policy.
"""

from __future__ import annotations


class EventkeelError(Exception):
    """Base of every error that Eventkeel raises on purpose."""

    final = False


class ConfigurationError(EventkeelError):
    """Refused at start-up. The message says what was found, where, and what to write instead."""

    final = True


class SignatureError(ConfigurationError):
    """A handler's signature asks for something that it cannot have."""


class NotYetSupported(ConfigurationError):
    """This version refuses the feature instead of accepting it without effect."""


class GroupTaken(ConfigurationError):
    """The broker knows this consumer group under another store's id."""


class PositionError(ConfigurationError):
    """Store and broker disagree about where the group stands; an operator has to choose."""


class PublishError(EventkeelError):
    """The event cannot be published: no topic, no key, too large, or not encodable."""

    final = True


class MalformedMessage(EventkeelError):
    """The bytes are not the event that they claim to be. No retry can help.

    ``reason`` is a short stable word for filters and metrics, such as ``not-json``.
    """

    final = True

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class LimitExceeded(MalformedMessage):
    """Refused before it was parsed."""


class UnknownType(EventkeelError):
    """No class is declared for this type in this process: usually a question of deploy order."""

    def __init__(self, topic: str, type: str) -> None:
        super().__init__(
            f"no event class is declared for type {type!r} on topic {topic!r}; its key waits until "
            f"a version that knows it is deployed (or the service says ignore({topic!r}, {type!r}))"
        )
        self.topic = topic
        self.type = type


class FinalError(EventkeelError):
    """Raise it in a handler to say that no retry can help: the delivery is dead-lettered."""

    final = True


class StepRefused(EventkeelError):
    """A handler's steps cannot go on as written: a name twice, a step after the transaction, a result that is no
    JSON. The message says what to write instead; no retry can help."""

    final = True


class TransactionError(EventkeelError):
    """The transaction cannot go on as asked."""


class TransactionAborted(TransactionError):
    """The transaction ended before its commit, so nothing of it was applied or settled.

    The usual cause is an SQL error that a handler caught outside ``tx.savepoint()``.
    """


class TransactionClosed(TransactionError):
    """The unit of work is over; its transaction was kept and used afterwards."""


class NestedTransaction(TransactionError):
    """A handler would wait for a transaction of its own service: it would wait for itself."""

    final = True


class StatementRefused(TransactionError):
    """Statements that begin or end transactions belong to the engine."""

    final = True


class RowsMismatch(TransactionError):
    """A write that said ``rows=n`` affected another number of rows."""


class AccessDenied(EventkeelError):
    """This actor may not ask for that, or do it. Raised by ``admin``, for every surface alike."""


class GroupHalted(EventkeelError):
    """Something of the group on the broker is gone: it handles nothing more until an operator has done what the message
    says. The process, its outbox and its other work go on; so does the group, by itself, once that is done."""


class Fenced(EventkeelError):
    """Another process has taken this partition: nothing of this unit may be committed."""


class CommitUnknown(EventkeelError):
    """The answer to COMMIT was lost. It may or may not have happened; the inbox will tell."""


class Contention(EventkeelError):
    """Another transaction was in the way: a lock did not come in time, a deadlock, or a serialization
    failure. Nobody's fault; the driver's own error is its ``__cause__``."""


class StoreUnavailable(EventkeelError):
    """The store did not answer in time; trying again can help."""


class BrokerUnavailable(EventkeelError):
    """The broker did not answer in time; trying again can help."""
