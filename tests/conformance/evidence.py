"""Tests of our own that prove scenarios on one broker or store, besides those that are marked: what has to hurt a
server, or speaks of its own ways. A plugin for pytest: ``-p tests.conformance.evidence``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Proof(NamedTuple):
    ids: str
    """Scenarios, with spaces in between."""
    test: str
    """``tests/file.py::name``"""
    broker: str = ""
    store: str = ""


_SQLITE, _KAFKA = "tests/transports/test_sqlite.py", "tests/transports/test_kafka.py"
_OWNERS, _FAULTS = "tests/stores/test_postgres_owners.py", "tests/stores/test_postgres_faults.py"
_CONFIRMATIONS, _ORDER = "tests/transports/test_kafka_confirmations.py", "tests/stores/test_postgres_order.py"
_KAFKA_OUTAGES, _RABBIT_OUTAGES = "tests/transports/test_kafka_outages.py", "tests/transports/test_rabbitmq_outages.py"

PROOFS = (
    # The broker is full or blocks its publishers, does not answer, loses what it had declared.
    Proof("X8b", f"{_SQLITE}::test_a_full_disk_refuses_the_wave_and_is_survived", "sqlite"),
    Proof("X8b", f"{_SQLITE}::test_a_wave_that_waits_too_long_for_the_lock_is_unknown_and_never_stored", "sqlite"),
    Proof("X8b", f"{_KAFKA_OUTAGES}::test_a_broker_that_hangs_makes_a_wave_unknown_in_time_and_loses_nothing", "kafka"),
    Proof("X8b", f"{_RABBIT_OUTAGES}::test_a_memory_alarm_delays_and_loses_nothing", "rabbitmq"),
    Proof("T14", f"{_RABBIT_OUTAGES}::test_a_topic_without_any_binding_takes_nothing_and_says_so", "rabbitmq"),
    Proof("T14", f"{_KAFKA}::test_a_topic_that_was_deleted_is_refused_and_not_waited_for_each_time", "kafka"),
    Proof(
        "T14", f"{_SQLITE}::test_where_sqlite_ends_the_transaction_itself_nobody_is_told_that_it_was_stored", "sqlite"
    ),
    Proof("T14", f"{_CONFIRMATIONS}::test_what_a_silent_broker_does_not_confirm_in_time_is_unknown", "kafka"),
    # Restarted, killed, cut off.
    Proof("W15", f"{_SQLITE}::test_a_killed_publisher_loses_nothing_that_was_confirmed", "sqlite"),
    Proof("W15", f"{_KAFKA_OUTAGES}::test_a_killed_broker_that_comes_back_is_survived_by_sender_and_reader", "kafka"),
    Proof("W15", f"{_RABBIT_OUTAGES}::test_a_killed_node_loses_nothing_that_was_confirmed", "rabbitmq"),
    Proof("W15", f"{_RABBIT_OUTAGES}::test_killed_connections_lose_nothing_and_keep_the_order", "rabbitmq"),
    # A group's place.
    Proof("K3", f"{_SQLITE}::test_positions_that_are_gone_are_said_and_gaps_are_passed", "sqlite"),
    Proof("K3", f"{_SQLITE}::test_a_topic_made_again_is_another_one", "sqlite"),
    Proof("K3", f"{_KAFKA}::test_a_position_that_retention_has_passed_is_refused", "kafka"),
    Proof("K3", f"{_KAFKA}::test_retention_that_overtakes_a_waiting_reader_stops_it", "kafka"),
    Proof("K3", f"{_KAFKA}::test_a_topic_made_again_is_refused_at_the_start_and_noticed_while_it_is_read", "kafka"),
    Proof("K3", f"{_KAFKA}::test_a_group_whose_commits_another_client_made_keeps_them", "kafka"),
    Proof("K3", f"{_KAFKA}::test_a_compacted_topic_is_refused", "kafka"),
    Proof(
        "K3",
        f"{_RABBIT_OUTAGES}::test_a_deleted_queue_halts_the_group_until_the_command_that_it_names_was_run",
        "rabbitmq",
    ),
    Proof("K3", f"{_RABBIT_OUTAGES}::test_another_number_of_partitions_is_a_new_generation", "rabbitmq"),
    # Members, as the broker sees them.
    Proof("K4 C1", f"{_KAFKA}::test_a_member_that_joins_gets_what_the_other_gives_back", "kafka"),
    Proof("K4", f"{_KAFKA}::test_a_member_that_does_not_give_back_in_time_loses_it", "kafka"),
    Proof("K4", f"{_KAFKA}::test_a_handler_slower_than_the_poll_interval_does_not_cost_the_membership", "kafka"),
    # Wake-ups are a help and not what it rests on.
    Proof("C3", f"{_SQLITE}::test_without_datagrams_the_poll_finds_what_is_new", "sqlite"),
    Proof("C3", f"{_FAULTS}::test_a_lost_listener_comes_back_and_tells_what_it_may_have_missed", store="postgres"),
    Proof("C2", f"{_OWNERS}::test_a_killed_process_holds_up_nobody", store="postgres"),
    Proof("C3", f"{_OWNERS}::test_two_takers_of_one_slice_get_different_epochs_and_one_keeps_it", store="postgres"),
    Proof("X3", f"{_OWNERS}::test_a_zombie_relay_removes_and_marks_nothing", store="postgres"),
    Proof("X4", f"{_ORDER}::test_a_relay_that_reads_by_id_never_meets_a_lower_one_of_a_key_later", store="postgres"),
    Proof(
        "S7", "tests/stores/test_hazards.py::test_two_processes_that_purge_at_once_forget_nothing_new", store="sqlite"
    ),
    Proof(
        "S2",
        "tests/stores/test_sqlite.py::test_a_process_killed_inside_its_transaction_leaves_nothing_of_it",
        store="sqlite",
    ),
    Proof("S2", f"{_FAULTS}::test_a_killed_server_comes_back_and_so_does_the_store", store="postgres"),
)


def missing() -> list[str]:
    """Proofs whose test is not there (any more)."""
    gone = []
    for proof in PROOFS:
        path, _, name = proof.test.partition("::")
        text = (ROOT / path).read_text("utf-8") if (ROOT / path).exists() else ""
        if f"def {name}(" not in text:
            gone.append(proof.test)
    return gone


@pytest.hookimpl(tryfirst=True)  # before -m scenario is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    of: dict[str, list[Proof]] = {}
    for proof in PROOFS:
        of.setdefault(proof.test, []).append(proof)
    for item in items:
        for proof in of.get(item.nodeid.partition("[")[0], ()):
            item.add_marker(pytest.mark.scenario(*proof.ids.split(), broker=proof.broker, store=proof.store))
