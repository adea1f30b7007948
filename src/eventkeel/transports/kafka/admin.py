"""Questions to the broker, and what is declared there. All of it by the names that the broker knows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names, imported there
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from eventkeel.errors import BrokerUnavailable, ConfigurationError
from eventkeel.transports.kafka import errors
from eventkeel.transports.kafka.settings import LARGEST_BATCH, Options

K = TypeVar("K")
V = TypeVar("V")

Place = tuple[str, int]
"""A partition as the broker knows it: topic and number."""

_FIRST: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_NEXT: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
PATIENCE = 10.0
"""Seconds that one question may take, asked again where nobody answered."""
ONCE = 3.0
"""Seconds for which it waits for one broker's answer."""


class Topic(msgspec.Struct, frozen=True):
    """A topic as it is now."""

    id: str
    """Given anew when a topic is made again under the same name; empty where the broker has no such ids."""
    partitions: int


class Commit(msgspec.Struct, frozen=True):
    """Next position of a group on a partition, and the words that came with it."""

    at: int
    words: str


class Admin:
    """Raises BrokerUnavailable where the broker does not answer, and ConfigurationError where it never will."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._heard: list[KafkaError] = []
        settings: dict[str, Any] = {**options.for_admin(), "error_cb": self._heard.append}
        self._client = AdminClient(settings)
        self._bystanders: dict[str, Consumer] = {}

    async def hello(self, patience: float) -> None:
        """Returns when the broker has answered."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            try:
                await loop.run_in_executor(None, lambda: self._client.list_topics(timeout=min(1.0, patience)))
                return
            except KafkaException as error:
                self._client.poll(0)  # calls back with what went wrong, which this error does not say
                fatal = [each for each in self._heard if errors.is_fatal(each, opening=True)]
                if fatal or loop.time() > until:
                    # That all are down follows on what says why, unless one took the connection and hung up.
                    told = fatal[:1] or [each for each in self._heard if each.code() != KafkaError._ALL_BROKERS_DOWN]
                    what = "does not answer; start it, or correct its URL"
                    if self._heard and not told:
                        what = (
                            "hangs up; correct security.protocol in its URL (plaintext, ssl, sasl_plaintext, sasl_ssl)"
                        )
                    raise self.trouble(KafkaException(told[-1]) if told else error, what, opening=True) from error

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those that exist."""
        wanted = sorted(set(names))
        if not wanted:
            return {}
        described = await self._all(
            lambda: self._client.describe_topics(TopicCollection(wanted), request_timeout=ONCE),
            but=errors.MISSING,
        )
        return {name: Topic(_id(found.topic_id), len(found.partitions)) for name, found in described.items()}

    async def ends(self, places: Iterable[Place], *, first: bool = False) -> dict[Place, int]:
        """Position that the next message will get (``first``: position of the oldest), of partitions that exist."""
        spec = _FIRST if first else _NEXT
        wanted = {TopicPartition(*place): spec for place in sorted(set(places))}
        if not wanted:
            return {}
        found = await self._all(
            lambda: self._client.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ONCE
            ),
            but=errors.MISSING,
        )
        return {(place.topic, place.partition): result.offset for place, result in found.items()}

    async def all_topics(self) -> dict[str, int]:
        """Every topic with our prefix, and its number of partitions."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, lambda: self._client.list_topics(timeout=PATIENCE))
        except KafkaException as error:
            raise self.trouble(error, "did not answer") from error
        prefix = self._options.prefix
        return {
            name: len(topic.partitions)
            for name, topic in found.topics.items()
            if topic.error is None and name.startswith(prefix) and not name.startswith("__")
        }

    async def commits(self, group: str, places: Iterable[Place]) -> dict[Place, Commit]:
        """The positions that the group has committed of ``places``."""
        parts = [TopicPartition(*place) for place in sorted(set(places))]
        if not parts:
            return {}
        found = await self._as_member(group, lambda bystander: bystander.committed(parts, timeout=PATIENCE))
        return {
            (each.topic, each.partition): Commit(each.offset, each.metadata or "")
            for each in found
            if each.error is None and each.offset >= 0
        }

    async def commit(self, group: str, commits: Mapping[Place, Commit]) -> bool:
        """Commit for a group that has no members. False: it has some, and nothing was committed."""
        parts = [TopicPartition(*place, each.at, each.words) for place, each in commits.items()]
        try:
            done = await self._as_member(
                group, lambda bystander: bystander.commit(offsets=parts, asynchronous=False) or []
            )
        except BrokerUnavailable as error:
            cause = error.__cause__
            if cause is not None and errors.code(cause) in errors.HAS_MEMBERS:
                return False
            raise
        return all(each.error is None for each in done)

    async def _as_member(self, group: str, ask: Callable[[Consumer], list[TopicPartition]]) -> list[TopicPartition]:
        """Ask as a client of the group that does not join it.

        Not by the library's admin client: it ends the process where a coordinator is only just moving.
        """
        loop = asyncio.get_running_loop()
        until, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            try:
                if group not in self._bystanders:
                    settings = {**self._options.for_consumer(group), "log_level": 2}
                    self._bystanders[group] = Consumer(settings)
                bystander = self._bystanders[group]
                async with asyncio.timeout(PATIENCE + 5):
                    return await loop.run_in_executor(None, ask, bystander)
            except (KafkaException, TimeoutError) as error:
                if errors.code(error) not in errors.MOVING or time.monotonic() > until:
                    raise self.trouble(error, "did not answer") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    def close(self) -> None:
        """Returns at once; the connections are closed on a thread."""
        bystanders, self._bystanders = list(self._bystanders.values()), {}

        def end() -> None:
            for bystander in bystanders:
                bystander.close()

        if bystanders:
            threading.Thread(target=end, name="eventkeel-kafka-close", daemon=True).start()

    async def create(self, name: str, partitions: int) -> str:
        """Make a topic. Empty: it is there, made by us or by somebody else meanwhile; else why not."""
        options = self._options
        settings = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete", **options.create}
        topic = NewTopic(name, partitions, options.replication, config=settings)
        until = time.monotonic() + PATIENCE
        while True:
            (future,) = self._client.create_topics([topic], request_timeout=ONCE).values()
            try:
                await self._answer(future)
                return ""
            except (KafkaException, TimeoutError) as error:
                found = errors.inner(error)
                if found is not None and found.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    return ""
                # The same error for a cluster that is too small and for one whose brokers are only just coming back.
                starting = found is not None and "fenced" in found.str()
                if found is None or starting or found.retriable() or found.code() < 0:  # below 0: nobody answered
                    if not (starting or errors.code(error) in errors.SILENT) or time.monotonic() > until:
                        raise self.trouble(error, f"did not create topic {name!r}") from error
                    await self._look_around()
                    await asyncio.sleep(0.2)
                    continue
                return errors.text(error)

    async def settings(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """The settings of topics; of those that we may not see, none."""
        wanted = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
        if not wanted:
            return {}
        forbidden = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
        found = await self._all(
            lambda: self._client.describe_configs(wanted, request_timeout=ONCE), but=errors.MISSING | forbidden
        )
        return {
            resource.name: {name: entry.value for name, entry in entries.items() if entry.value is not None}
            for resource, entries in found.items()
        }

    async def limits(self, names: Sequence[str]) -> dict[str, int]:
        """The largest batch that each topic takes."""
        found = await self.settings(names)
        return {name: int(found.get(name, {}).get("max.message.bytes", LARGEST_BATCH)) for name in names}

    # -- answers

    async def _answer(self, future: Future[V]) -> V:
        return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE + 5)

    async def _all(self, ask: Callable[[], Mapping[K, Future[V]]], *, but: Iterable[int]) -> dict[K, V]:
        """The answers, without those that failed with an error in ``but``. A broker that is about to know the
        answer (a new leader, a new coordinator) is asked again."""
        passed, until, pause = frozenset(but), time.monotonic() + PATIENCE, 0.02
        while True:
            answers: dict[K, V] = {}
            trouble: BaseException | None = None
            for key, future in ask().items():
                try:
                    answers[key] = await self._answer(future)
                except (KafkaException, TimeoutError) as error:
                    if errors.code(error) not in passed:
                        trouble = error
            if trouble is None:
                return answers
            if errors.code(trouble) not in errors.MOVING | errors.SILENT or time.monotonic() > until:
                raise self.trouble(trouble, "did not answer") from trouble
            if errors.code(trouble) in errors.SILENT:
                await self._look_around()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def _look_around(self) -> None:
        """Hear from any broker which brokers there are and who speaks for them. The library would go on waiting
        for the one that it knows, however long it has been dead, as nothing else makes it ask here."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(KafkaException):
            await loop.run_in_executor(None, lambda: self._client.list_topics(timeout=ONCE))

    def trouble(
        self, error: BaseException, what: str, *, opening: bool = False
    ) -> BrokerUnavailable | ConfigurationError:
        """The error to raise for one of the library."""
        found = errors.inner(error)
        if found is not None and errors.is_fatal(found, opening=opening):
            return ConfigurationError(self._options.masked(f"broker {self._options.name}: {errors.advice(found)}"))
        said = errors.text(error) if str(error) else type(error).__name__
        return BrokerUnavailable(self._options.masked(f"broker {self._options.name} {what}: {said}"))


def _id(uuid: Any) -> str:
    text = str(uuid or "")
    return "" if set(text) <= {"A"} else text
