"""Declaring topics and groups, inside the writer's transaction."""

from __future__ import annotations

import os

import apsw

from eventkeel.ports.transport import Finding, GroupWant, TopicWant, Topology
from eventkeel.transports.sqlite.append import SQL


def declare(connection: apsw.Connection, want: Topology, *, apply: bool) -> list[Finding]:
    """Make what is missing (``apply``) or only compare. What exists is never altered."""
    topics: dict[str, int] = {name: count for name, count, _ in connection.execute(SQL["topics"])}
    findings = [_topic(connection, topic, topics, apply) for topic in want.topics]
    for group in want.groups:
        findings += _group(connection, group, topics, apply)
    return findings


def _topic(connection: apsw.Connection, want: TopicWant, topics: dict[str, int], apply: bool) -> Finding:
    what = f"topic {want.name}"
    if want.name in topics:
        if topics[want.name] == want.partitions:
            return Finding("same", what)
        return Finding(
            "refused",
            what,
            f"it has {topics[want.name]} partitions, {want.partitions} are asked for; changing them would move keys "
            f"and lose their order: ask for {topics[want.name]}, or use a new topic",
        )
    if not want.name or want.partitions < 1:
        return Finding("refused", what, "a topic has a name and at least one partition")
    if not apply:
        return Finding("refused", what, "it does not exist, and nothing may be created here")
    for left_behind in ("forget_partitions", "forget_progress"):
        connection.execute(SQL[left_behind], (want.name,))
    connection.execute(SQL["add_topic"], (want.name, want.partitions, os.urandom(8).hex()))
    connection.executemany(SQL["add_partition"], [(want.name, number) for number in range(want.partitions)])
    topics[want.name] = want.partitions
    return Finding("created", what, f"{want.partitions} partitions")


def _group(connection: apsw.Connection, want: GroupWant, topics: dict[str, int], apply: bool) -> list[Finding]:
    what = f"group {want.name}"
    store = connection.execute(SQL["group_store"], (want.name,)).fetchone()
    if store is not None and store[0] != want.store_id:
        return [
            Finding(
                "refused",
                what,
                f"another store ({store[0]}) consumes under this name, and each of the two would miss what the other "
                f"took; give this service a group of its own, or, if that store is gone for good, delete the row: "
                f"delete from groups where name = '{want.name}'",
            )
        ]
    unknown = [topic for topic in want.topics if topic not in topics]
    if unknown:
        return [Finding("refused", what, f"topic {', '.join(unknown)} does not exist on this broker")]
    if store is None and not apply:
        return [Finding("refused", what, "it does not exist, and nothing may be created here")]
    findings = [Finding("same", what)] if store is not None else [Finding("created", what)]
    if store is None:
        connection.execute(SQL["add_group"], (want.name, want.store_id))
    for topic in want.topics:
        (there,) = connection.execute(SQL["has_subscription"], (want.name, topic)).fetchone() or (0,)
        if there:
            continue
        if apply:
            connection.execute(SQL["add_subscription"], (want.name, topic))
        findings.append(Finding("created" if apply else "refused", f"group {want.name} on topic {topic}"))
    return findings
