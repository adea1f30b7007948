"""What a kafka:// URL says, what it may not say, and what is never repeated from it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from confluent_kafka import KafkaError, KafkaException

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.ports.transport import Refused, Unknown
from eventkeel.transports.kafka import KafkaTransport, errors
from eventkeel.transports.kafka.admin import Admin
from eventkeel.transports.kafka.settings import parse


def test_options_of_the_client_library_reach_it_unchanged() -> None:
    options = parse(
        "//a:1,b:2?security.protocol=SASL_SSL&sasl.password=a%26b+c&consumer.fetch.wait.max.ms=7&producer.linger.ms=3"
    )
    assert options.for_producer(1000) | {"bootstrap.servers": "a:1,b:2", "linger.ms": "3"} == options.for_producer(1000)
    consumer = options.for_consumer("g")
    assert (consumer["fetch.wait.max.ms"], consumer["sasl.password"]) == ("7", "a&b+c")
    assert "linger.ms" not in consumer
    assert "fetch.wait.max.ms" not in options.for_producer(1000)
    assert options.for_admin()["security.protocol"] == "SASL_SSL"


def test_what_would_lose_messages_cannot_be_chosen() -> None:
    for name in (
        "acks",
        "enable.auto.commit",
        "auto.offset.reset",
        "producer.enable.idempotence",
        "message.timeout.ms",
    ):
        with pytest.raises(ConfigurationError, match=name.rpartition("producer.")[2]):
            parse(f"//a:1?{name}=1")


def test_the_safe_settings_are_set() -> None:
    options = parse("//a:1")
    producer, consumer = options.for_producer(1_048_588), options.for_consumer("g")
    assert (producer["enable.idempotence"], producer["acks"], producer["message.timeout.ms"]) == (True, "all", 0)
    assert (producer["partitioner"], producer["enable.gapless.guarantee"]) == ("murmur2_random", True)
    assert (consumer["enable.auto.commit"], consumer["enable.auto.offset.store"]) == (False, False)
    assert (consumer["auto.offset.reset"], consumer["isolation.level"]) == ("error", "read_committed")
    assert consumer["partition.assignment.strategy"] == "cooperative-sticky"
    assert consumer["check.crcs"]
    assert not consumer["allow.auto.create.topics"]


def test_the_newer_group_protocol_leaves_to_the_broker_what_the_broker_decides() -> None:
    consumer = parse("//a:1?group.protocol=consumer").for_consumer("g")
    assert consumer["group.protocol"] == "consumer"
    assert not {"partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"} & consumer.keys()


@pytest.mark.parametrize(
    "url",
    ["", "//", "//a:x", "//u:secret@a:1", "//a:1/db", "//a:1?nothing", "//a:1?replication=no", "//a:1?replication=0"],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(url)
    assert "secret" not in str(raised.value)


def test_names_have_the_prefix_on_the_broker_alone() -> None:
    options = parse("//a:1?prefix=staging.")
    assert options.on_broker("orders") == "staging.orders"
    assert options.from_broker("staging.orders") == "orders"
    assert options.from_broker("orders") is None


def test_a_larger_message_can_be_allowed() -> None:
    assert parse("//a:1").max_body == 1_000_000
    assert parse("//a:1?message.max.bytes=9000000").max_body == 9_000_000 - 48_588
    with pytest.raises(ConfigurationError, match=r"message\.max\.bytes"):
        _ = parse("//a:1?message.max.bytes=many").max_body


@pytest.mark.asyncio
async def test_an_option_that_the_library_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.option") as raised:
        await KafkaTransport("//127.0.0.1:1?no.such.option=1&sasl.password=hush").open()
    assert "hush" not in str(raised.value)


def test_secrets_are_masked_in_what_the_library_says() -> None:
    options = parse("//a:1?sasl.password=hush&ssl.key.pem=PEM&sasl.username=ada")
    assert options.masked("user ada with hush and PEM") == "user ada with *** and ***"


def test_a_missing_driver_is_said_with_what_to_install() -> None:
    script = (
        "import sys; sys.modules['confluent_kafka'] = None\n"
        "from eventkeel.errors import ConfigurationError\n"
        "try: import eventkeel.transports.kafka\n"
        "except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'eventkeel[kafka]'" in done.stdout


# -- errors

E = KafkaError


@pytest.mark.parametrize(
    "code",
    [
        *(E.MSG_SIZE_TOO_LARGE, E.INVALID_RECORD, E.INVALID_TIMESTAMP, E.TOPIC_AUTHORIZATION_FAILED),
        *(E.POLICY_VIOLATION, E.TOPIC_EXCEPTION, E.RECORD_LIST_TOO_LARGE),
    ],
)
def test_what_no_repetition_helps_is_refused_for_good(code: int) -> None:
    outcome = errors.outcome(KafkaError(code), "orders")
    assert isinstance(outcome, Refused)
    assert outcome.final
    assert "orders" in outcome.reason


@pytest.mark.parametrize("code", [E.UNKNOWN_TOPIC_OR_PART, E._UNKNOWN_TOPIC, E._UNKNOWN_PARTITION])
def test_a_missing_topic_may_come_to_exist(code: int) -> None:
    outcome = errors.outcome(KafkaError(code), "orders")
    assert isinstance(outcome, Refused)
    assert not outcome.final


@pytest.mark.parametrize(
    "code",
    [
        *(E._TRANSPORT, E._TIMED_OUT, E._MSG_TIMED_OUT, E._PURGE_QUEUE, E._PURGE_INFLIGHT, E._GAPLESS_GUARANTEE),
        *(E.NOT_LEADER_FOR_PARTITION, E.NOT_ENOUGH_REPLICAS, E.NOT_ENOUGH_REPLICAS_AFTER_APPEND, E.REQUEST_TIMED_OUT),
        *(E._FATAL, E.OUT_OF_ORDER_SEQUENCE_NUMBER, E.KAFKA_STORAGE_ERROR, E._AUTHENTICATION),
    ],
)
def test_everything_else_may_have_been_stored_and_is_sent_again(code: int) -> None:
    assert isinstance(errors.outcome(KafkaError(code), "orders"), Unknown)


@pytest.mark.parametrize(
    ("code", "fatal", "fatal_at_first"),
    [
        (E._ALL_BROKERS_DOWN, False, False),
        (E._TRANSPORT, False, False),
        (E._RESOLVE, False, False),
        (E._MAX_POLL_EXCEEDED, False, False),
        (E.COORDINATOR_NOT_AVAILABLE, False, False),
        (E.REBALANCE_IN_PROGRESS, False, False),
        (E.UNKNOWN_TOPIC_OR_PART, False, False),
        (E.SASL_AUTHENTICATION_FAILED, False, True),
        (E._AUTHENTICATION, False, True),
        (E._SSL, False, True),
        (E.GROUP_AUTHORIZATION_FAILED, True, True),
        (E.TOPIC_AUTHORIZATION_FAILED, True, True),
        (E.INCONSISTENT_GROUP_PROTOCOL, True, True),
        (E.FENCED_INSTANCE_ID, True, True),
        (E.UNSUPPORTED_ASSIGNOR, True, True),
        (E._BAD_MSG, True, True),
        (E._FATAL, True, True),
    ],
)
def test_an_error_is_fatal_or_passing(code: int, fatal: bool, fatal_at_first: bool) -> None:
    error = KafkaError(code)
    assert (errors.is_fatal(error), errors.is_fatal(error, opening=True)) == (fatal, fatal_at_first)
    admin = Admin(parse("//127.0.0.1:1?sasl.password=hush"))
    raised = admin.trouble(KafkaException(error), "did not answer", opening=True)
    assert isinstance(raised, ConfigurationError if fatal_at_first else BrokerUnavailable)
    assert errors.text(error) in str(raised)


def test_what_would_leave_a_gap_is_no_passing_thing() -> None:
    assert {E._AUTO_OFFSET_RESET, E.OFFSET_OUT_OF_RANGE, E._LOG_TRUNCATION, E._BAD_MSG} <= errors.GAPS
