"""What the library's errors mean: passing ones go away by waiting, fatal ones need an operator."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from eventkeel.ports.transport import Refused, Unknown

_REFUSED_FOR_GOOD = {
    KafkaError.MSG_SIZE_TOO_LARGE: "it is larger than the topic takes (max.message.bytes)",
    KafkaError.RECORD_LIST_TOO_LARGE: "it is larger than a segment of the topic",
    KafkaError.INVALID_RECORD: "the topic's rules refuse it (a compacted one takes no message without a key)",
    KafkaError.INVALID_TIMESTAMP: "the topic refuses its time; let the topic have message.timestamp.type=LogAppendTime",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not write to the topic; give it the right, then redrive",
    KafkaError.TOPIC_EXCEPTION: "no topic can have this name",
    KafkaError.POLICY_VIOLATION: "a policy of the broker refuses it",
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: "the topic's message format is too old for headers",
}

MISSING = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        100,  # UNKNOWN_TOPIC_ID: made again under the same name
    }
)
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
MOVING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_CONTROLLER,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)
"""Whoever answers is changing: ask again."""
SILENT = frozenset({KafkaError._TIMED_OUT, KafkaError._TRANSPORT})
"""The broker that was asked does not answer; another one may."""
HAS_MEMBERS = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.NON_EMPTY_GROUP,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)
"""A commit without membership meets a group that has members."""
GAPS = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError._LOG_TRUNCATION,
        KafkaError._NO_OFFSET,
        KafkaError._BAD_MSG,
        KafkaError._BAD_COMPRESSION,
    }
)
"""Of a consumer: it could only go on by leaving something out."""

_ACCESS = "the broker does not let this user in; correct sasl.username, sasl.password and sasl.mechanism in its URL"
_FATAL = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not read the topic; give it the right READ",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not use the group; give it the right READ on the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not do that on the cluster",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: (
        "the group has members of another kind of client, or with another way of assigning; give this service a group "
        "of its own"
    ),
    KafkaError.FENCED_INSTANCE_ID: "another process uses the same group.instance.id; each needs its own",
    KafkaError.UNRELEASED_INSTANCE_ID: "another process uses the same group.instance.id; each needs its own",
    KafkaError.UNSUPPORTED_ASSIGNOR: "the broker does not know the assignor; leave group.remote.assignor out",
    KafkaError.UNSUPPORTED_VERSION: "the broker is too old for this option; group.protocol=consumer needs Kafka 4",
    KafkaError.GROUP_MAX_SIZE_REACHED: "the group has as many members as the broker allows",
    KafkaError.INVALID_SESSION_TIMEOUT: "the broker does not allow this session.timeout.ms",
    KafkaError._UNSUPPORTED_FEATURE: "the client library cannot do what the URL's options ask for",
    KafkaError._INVALID_ARG: "an option in the broker's URL is not valid",
    KafkaError._BAD_MSG: "a message is damaged on the broker or on its way (its checksum is wrong)",
    KafkaError._BAD_COMPRESSION: "a message is damaged: it cannot be decompressed",
    KafkaError._FATAL: "the client cannot go on",
}
"""Errors of consumers and of questions that no waiting mends, and what to do. Every other one passes."""
_FATAL_AT_FIRST = {
    KafkaError.SASL_AUTHENTICATION_FAILED: _ACCESS,
    KafkaError._AUTHENTICATION: _ACCESS,
    KafkaError.UNSUPPORTED_SASL_MECHANISM: _ACCESS,
    KafkaError._SSL: "the encrypted connection could not be made; correct security.protocol and ssl.… in the URL",
}
"""Fatal where the broker is opened. Once it has let us in, they are its own trouble, and pass with it."""


def code(error: BaseException) -> int:
    """The library's number for an error of it; 0: it is none."""
    found = inner(error)
    return 0 if found is None else int(found.code())


def inner(error: BaseException) -> KafkaError | None:
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return error if isinstance(error, KafkaError) else None


def text(error: KafkaError | BaseException) -> str:
    found = error if isinstance(error, KafkaError) else inner(error)
    return str(error) if found is None else f"{found.name()}: {found.str()}"


def option(said: str) -> str:
    """What the library says of its options, with what to write where it does not say so itself."""
    if "mechanism GSSAPI" in said:  # its default, which it was built without
        return f"write sasl.mechanism=SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN into the URL ({said})"
    for name in ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location"):
        if f"{name} failed" in said:
            return f"{name} has to be the path of a PEM file that can be read ({said})"
    return said


def is_fatal(error: KafkaError, *, opening: bool = False) -> bool:
    """No waiting and no reconnecting mends it."""
    return error.fatal() or error.code() in _FATAL or (opening and error.code() in _FATAL_AT_FIRST)


def advice(error: KafkaError) -> str:
    """What happened, and what to do about it where somebody can."""
    hint = _FATAL.get(error.code()) or _FATAL_AT_FIRST.get(error.code())
    return text(error) if hint is None else f"{hint} ({text(error)})"


def outcome(error: KafkaError, topic: str) -> Refused | Unknown:
    """What a failed delivery report says about its message."""
    number = error.code()
    if number in _REFUSED_FOR_GOOD:
        return Refused(f"topic {topic!r}: {_REFUSED_FOR_GOOD[number]} ({text(error)})")
    if number in MISSING:
        return missing(topic)
    return Unknown(f"topic {topic!r}: {text(error)}")


def missing(topic: str) -> Refused:
    return Refused(
        f"topic {topic!r} does not exist on this broker; it is created when a service that publishes or handles it is "
        "started",
        final=False,
    )
