"""The pure parts: retry, blame, watermark, assignment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkeel.errors import ConfigurationError, FinalError, MalformedMessage
from eventkeel.message import Slice
from eventkeel.policy.assignment import plan, quota
from eventkeel.policy.blame import split
from eventkeel.policy.crowding import Crowding
from eventkeel.policy.retry import Retry, backoff, decide
from eventkeel.policy.watermark import Watermark


def test_a_failure_is_retried_in_place_then_parked_then_dead() -> None:
    policy = Retry(attempts=6, first=1.0, factor=2.0, jitter=0.0)
    kinds = [decide(policy, ValueError(), attempt, 0.5, parked=False).kind for attempt in range(1, 7)]
    assert kinds == ["now", "now", "now", "later", "later", "dead"]


def test_backoff_grows_from_first_to_cap_after_the_retries_in_place() -> None:
    policy = Retry(attempts=0, first=1.0, factor=2.0, cap=10.0, jitter=0.0, in_place=())
    waits = [decide(policy, ValueError(), attempt, 0.5, parked=True).wait for attempt in range(1, 7)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_spreads_both_ways_within_its_share() -> None:
    policy = Retry(first=10.0, jitter=0.2)
    assert backoff(policy, 0, 0.0) == pytest.approx(8.0)
    assert backoff(policy, 0, 1.0) == pytest.approx(12.0)


@pytest.mark.parametrize("error", [FinalError("no"), MalformedMessage("not-json", "x")])
def test_a_final_error_is_dead_at_once(error: BaseException) -> None:
    assert decide(Retry(), error, 1, 0.5, parked=False).kind == "dead"


def test_a_policy_can_name_its_own_final_errors() -> None:
    assert decide(Retry(final=(KeyError,)), KeyError("x"), 1, 0.5, parked=False).kind == "dead"


def test_more_than_a_quarter_second_in_place_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"0\.25"):
        Retry(in_place=(0.2, 0.1))


def test_known_blame_splits_into_before_alone_after() -> None:
    assert split("abcde", 2) == [["a", "b"], ["c"], ["d", "e"]]
    assert split("abc", 0) == [["a"], ["b", "c"]]
    assert split("abc", 2) == [["a", "b"], ["c"]]


def test_unknown_blame_runs_all_one_by_one() -> None:
    assert split("abc", None) == [["a"], ["b"], ["c"]]


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.randoms())
def test_only_the_contiguous_prefix_is_settled(positions: list[int], random: object) -> None:
    taken = sorted(positions)
    order = list(taken)
    random.shuffle(order)  # type: ignore[attr-defined]
    mark, done = Watermark(taken[0]), set[int]()
    for position in taken:
        mark.take(position)
    for position in order:
        mark.finish(position)
        done.add(position)
        missing = [p for p in taken if p not in done]
        assert mark.base is not None
        assert mark.base == (taken[-1] + 1 if not missing else mark.base)
        assert all(p in done for p in taken if p < mark.base)
        assert not missing or mark.base <= missing[0]
    assert mark.running == 0


def slices(count: int) -> list[Slice]:
    return [Slice("t", n) for n in range(count)]


@given(st.integers(1, 9), st.integers(0, 20))
def test_quotas_add_up_and_differ_by_one_at_most(members: int, count: int) -> None:
    names = [f"m{n}" for n in range(members)]
    shares = [quota(count, names, name) for name in names]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 6), st.integers(1, 16), st.randoms())
def test_members_taking_turns_end_with_every_slice_owned_once(members: int, count: int, random: object) -> None:
    names = [f"m{n}" for n in range(members)]
    owners: dict[Slice, str] = {}
    for _ in range(members * 4):
        for me in names:
            mine = {s for s, owner in owners.items() if owner == me}
            taken = {s: owner for s, owner in owners.items() if owner != me}
            take, release = plan(slices(count), names, me, mine, taken)
            assert not (set(take) & owners.keys()), "took what is somebody else's"
            for s in release:
                del owners[s]
            for s in take:
                owners[s] = me
    counts = [list(owners.values()).count(name) for name in names]
    assert len(owners) == count
    assert max(counts) - min(counts) <= 1


def test_units_shrink_where_they_collide_and_grow_again_slowly() -> None:
    crowding = Crowding(100)
    crowding.collided(100)
    assert crowding.limit == 25
    crowding.collided(100)  # begun before: it says nothing new
    assert crowding.limit == 25
    for _ in range(10):
        crowding.collided(crowding.limit)
    assert crowding.limit == 1

    def units_until_it_grows() -> int:
        before, count = crowding.limit, 0
        while crowding.limit == before:
            crowding.passed(crowding.limit)
            count += 1
        return count

    patience = units_until_it_grows()
    assert crowding.limit == 2 and patience > 100
    while crowding.limit < 100:
        crowding.passed(crowding.limit)
    crowding.collided(100)
    assert units_until_it_grows() < patience  # what was forgiven is forgotten


def test_a_unit_that_was_not_full_says_nothing_about_larger_ones() -> None:
    crowding = Crowding(100)
    crowding.collided(100)
    for _ in range(1000):
        crowding.passed(3)
    assert crowding.limit == 25
