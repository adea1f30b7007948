"""Who owns which slice: take, fence, lease, balance. The store is the judge.

Broker callbacks and leases are hints that make takeovers quick; what makes them safe is the epoch
in the store, checked inside every unit of work: a zombie's commit fails, however late it wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from eventkeel.engine.context import RELAY, SENDS_ONLY, Context, relay_slices
from eventkeel.engine.faults import point
from eventkeel.engine.lanes import Lane
from eventkeel.engine.lifecycle import Part
from eventkeel.engine.membership import Membership
from eventkeel.engine.work import Share
from eventkeel.errors import GroupHalted, PositionError
from eventkeel.message import Position, Slice
from eventkeel.policy.assignment import plan
from eventkeel.ports.store import Mark, Owned, OwnerRow
from eventkeel.ports.transport import SliceLag

HURRY = 1.0
"""Seconds between two looks for slices that ended: one that ends again and again is left to the usual turns."""
REJOIN = 4
"""Fences in a row on one slice that the broker says is ours, after which the group is left and joined anew."""


class Ownership(Part):
    """Keeps this member's leases, and starts and stops slices as they come and go."""

    name = "ownership"

    def __init__(self, context: Context, subscription: Membership | None, lanes: list[Lane]) -> None:
        super().__init__(context)
        self._subscription, self._lanes = subscription, lanes
        # However often it fails, because the broker is away: the leases in the store are renewed in time.
        self.longest_wait = context.numbers.lease / 5
        self.shares: dict[Slice, Share] = {}
        self.relays: dict[Slice, int] = {}
        """The outbox shards that this process may send, with their epochs."""
        self.renewed_at = float("-inf")
        self._moving = asyncio.Lock()
        self._settled_at = context.clock.monotonic()
        self._passed: set[Share] = set()
        self._paused: set[Share] = set()
        self._given: set[Slice] = set()
        """What a broker that assigns says is ours: begun as long as it says so, whatever else goes wrong."""
        self._fences: dict[Slice, int] = {}
        self._not_before: dict[Slice, float] = {}
        self._hurried_at = float("-inf")
        self.halted = ""
        """Why the group stands still until an operator has acted; empty: it does not."""

    # -- leases --------------------------------------------------------------------------------

    async def run_once(self) -> None:
        numbers, clock = self.context.numbers, self.context.clock
        if clock.monotonic() - self.renewed_at >= numbers.lease / 3:
            await self.balance()
        await self._take_what_was_given()
        await self._let_go_on()
        if self._passed:
            passed, self._passed = self._passed, set()
            await self.settle(passed)
        await self.flush()
        await self.pause(min(numbers.lease / 3, numbers.settle_every))

    async def balance(self) -> None:
        """Renew what is ours, then take or give back until every member has its share."""
        context, numbers = self.context, self.context.numbers
        began = context.clock.monotonic()
        held = {**{slice: share.epoch for slice, share in self.shares.items() if share.live}, **self.relays}
        view = await context.store.lease(
            context.group, context.member, held, ttl=numbers.lease, now=context.clock.now()
        )
        self.renewed_at = began
        # What a unit found fenced is not ours any more either: kept here, it would never be taken again.
        fenced = [slice for slice, share in self.shares.items() if not share.live]
        await self.lost([*view.lost, *fenced])
        shards = relay_slices(context.store.caps.relay_shards)
        await self._share_out(shards, view.members, view.owners)
        if self._subscription is not None and not context.transport.caps.assigns and not self.halted:
            # Asked again at every turn: a topic may have come into being since.
            slices = sorted(await context.transport.slices(context.group, context.routes.topics))
            consuming = [member for member in view.members if not member.startswith(SENDS_ONLY)]
            await self._share_out(slices, consuming, view.owners)

    async def _share_out(self, slices: Sequence[Slice], members: Sequence[str], owners: Sequence[OwnerRow]) -> None:
        me, now = self.context.member, self.context.clock.now()
        taken = {
            row.slice: row.owner
            for row in owners
            if row.owner and row.owner != me and row.until > now and row.owner in members
        }
        mine = self.relays.keys() | self.shares.keys()
        take, release = plan(slices, members, me, mine, taken)
        if release:
            await self.release(release)
        if take:
            await self.assigned(take, force=False)

    async def _let_go_on(self) -> None:
        """Partitions in which a key has as many parked as may be are paused, and tried again each turn."""
        stalled = [share for share in self.shares.values() if share.stalled]
        if self._subscription is not None and set(stalled) != self._paused:
            await self._subscription.pause([s.slice for s in self._paused if s.live and s not in stalled], False)
            await self._subscription.pause([share.slice for share in stalled if share not in self._paused], True)
            self._paused = set(stalled)
        for share in stalled:
            share.stalled = False
        if stalled:
            for lane in self._lanes:
                lane.wake()

    # -- a broker that assigns -----------------------------------------------------------------

    async def given(self, slices: Sequence[Slice]) -> None:
        """The broker says that these are ours (besides those that it said before). Whoever held them is fenced off."""
        self._given.update(slices)
        for slice in slices:
            self._fences.pop(slice, None)
            self._not_before.pop(slice, None)
        await self.assigned(slices, force=True)

    async def revoked(self, slices: Sequence[Slice]) -> None:
        """The broker wants them for somebody else, and waits for us."""
        self._given.difference_update(slices)
        await self.release(slices)

    async def taken_away(self, slices: Sequence[Slice]) -> None:
        """The broker has given them to somebody else already; or, where we assign, they ended there: look at once."""
        self._given.difference_update(slices)
        await self.lost(slices)
        now = self.context.clock.monotonic()
        if not self.context.transport.caps.assigns and now - self._hurried_at >= HURRY:
            self._hurried_at = now
            self._look_at_once()

    def _look_at_once(self) -> None:
        """The next turn renews the leases, and with them sees what is ours, before its time."""
        self.renewed_at = float("-inf")
        self.wake()

    async def _take_what_was_given(self) -> None:
        """Slices that were lost to a fence, or could not be begun, and that the broker still says are ours."""
        now = self.context.clock.monotonic()
        missing = self._given - self.shares.keys()
        if any(self._fences.get(slice, 0) >= REJOIN for slice in missing):
            await self._rejoin()
            return
        if take := sorted(slice for slice in missing if now >= self._not_before.get(slice, now)):
            await self.assigned(take, force=True)

    async def _rejoin(self) -> None:
        """Somebody else holds that the broker has given it the same slices: let the broker decide anew."""
        assert self._subscription is not None
        self._given.clear()
        self._fences.clear()
        self._not_before.clear()
        await self.release(list(self.shares))
        await self._subscription.renew()

    def _count_fence(self, slice: Slice) -> None:
        """Another process took it. Where the broker still gives it to us, one of the two is mistaken, and will be told
        so by the broker soon: until then they must not take it from each other all the time."""
        count = self._fences[slice] = self._fences.get(slice, 0) + 1
        wait = min(8.0, 0.5 * 2.0**count) * (0.5 + self.context.dice())
        self._not_before[slice] = self.context.clock.monotonic() + wait

    # -- a group that stands still -------------------------------------------------------------

    async def halt(self, reason: str) -> None:
        """Give back every slice of the group and take none. The outbox is sent all the same."""
        self.halted = reason
        error = GroupHalted(reason)
        for observer in self.context.observers:
            observer.trouble(f"{self.context.service} group {self.context.group}", error)
        await self.release(list(self.shares))

    def resume(self) -> None:
        """It is mended."""
        self.halted = ""
        self._look_at_once()

    # -- slices come and go --------------------------------------------------------------------

    async def assigned(self, slices: Sequence[Slice], *, force: bool) -> None:
        """Take the epochs in the store, then let the slices flow."""
        if self._stopping:
            return
        context, numbers = self.context, self.context.numbers
        async with self._moving:
            if context.transport.caps.assigns:  # meanwhile it may have been revoked, or begun in another turn
                slices = [
                    slice
                    for slice in slices
                    if slice.topic == RELAY or (slice in self._given and slice not in self.shares)
                ]
            if self.halted:  # meanwhile
                slices = [slice for slice in slices if slice.topic == RELAY]
            if not slices:
                return
            owned = await context.store.take(
                context.group, context.member, slices, ttl=numbers.lease, now=context.clock.now(), force=force
            )
            point("owner.taken")
            flowing = [one for one in owned if one.slice.topic != RELAY]
            hints: dict[Slice, SliceLag] = {}
            if flowing:
                hints = {lag.slice: lag for lag in await context.transport.lag(context.group)}
            for one in owned:
                if one.slice.topic == RELAY:
                    self.relays[one.slice] = one.epoch
                elif context.transport.caps.assigns and one.slice not in self._given:
                    continue  # taken away while we asked: begun by a share that nobody fills, it would never be again
                else:
                    await self._begin(one, hints.get(one.slice))
                for observer in context.observers:
                    observer.owned(one.slice, one.epoch, one.suspect)

    async def _begin(self, owned: Owned, lag: SliceLag | None) -> None:
        """Start = min(store, broker): the inbox absorbs what is read again, nothing can be skipped."""
        numbers = self.context.numbers
        position, incarnation = owned.position, owned.incarnation
        starts = [(position, incarnation)]
        if lag is not None and lag.settled is not None:
            if position is None and numbers.start == "group":
                # Adoption of a group that another system kept; recorded by the first progress.
                starts = [(lag.settled, lag.incarnation)]
            elif position is not None and lag.settled < position and numbers.start != "store":
                starts.insert(0, (lag.settled, incarnation))  # where that is gone, the store's own will do
        if numbers.start == "earliest":
            starts.append((None, ""))  # somebody has read the error, and said so
        for position, incarnation in starts[:-1]:
            try:
                await self._flow(owned, position, incarnation)
            except PositionError:
                continue
            return
        await self._flow(owned, *starts[-1])

    async def _flow(self, owned: Owned, position: int | None, incarnation: str) -> None:
        assert self._subscription is not None
        numbers = self.context.numbers
        suspect = numbers.batch_size * numbers.lanes if owned.suspect else 0
        share = self.shares[owned.slice] = Share(owned.slice, owned.epoch, incarnation, position, suspect)
        if position is not None and owned.position is not None and position < owned.position:
            share.handled = owned.position
        try:
            at = None if position is None else Position(position, incarnation)
            await self._subscription.begin(owned.slice, at)
        except BaseException:
            self.shares.pop(owned.slice, None)  # nothing flows: another turn has to begin it
            raise

    async def release(self, slices: Iterable[Slice]) -> None:
        """Give slices back in good order: nothing new begins, what runs ends, progress is stored."""
        async with self._moving:
            slices = tuple(slices)
            marks: list[Mark] = []
            gone: list[Slice] = []
            for slice in slices:
                if slice in self.relays:
                    marks.append(Mark(slice, self.relays.pop(slice), None, ""))
                    continue
                share = self.shares.pop(slice, None)
                if share is None:
                    continue
                share.live = False
                gone.append(slice)
                for lane in self._lanes:
                    await lane.quiet(share)
                marks.append(self._mark(share))
                if share.dirty and self._subscription is not None:
                    await self._subscription.settle(slice, share.to_settle())
            # Before the store is told, which may fail: a slice that flows for nobody would use up the budget.
            # And those that never began: a broker that revokes waits for each that it named.
            if self._subscription is not None:
                await self._subscription.release([slice for slice in slices if slice.topic != RELAY])
            if marks:
                await self.context.store.progress(self.context.group, marks, release=True, now=self.context.clock.now())
            for slice in gone:
                for observer in self.context.observers:
                    observer.released(slice)

    async def lost(self, slices: Iterable[Slice]) -> None:
        """They belong to somebody else: nothing of them is stored any more."""
        gone = []
        for slice in slices:
            self.relays.pop(slice, None)
            share = self.shares.pop(slice, None)
            if share is not None:
                share.live = False
                gone.append(slice)
                if slice in self._given:
                    self._count_fence(slice)
        if gone and self._subscription is not None:
            await self._subscription.release(gone)

    def fenced(self, slices: Iterable[Slice]) -> None:
        """A unit found another epoch: stop these slices at once, tidy up in the next turn."""
        for slice in slices:
            share = self.shares.get(slice)
            if share is not None:
                share.live = False
        self._look_at_once()

    # -- progress ------------------------------------------------------------------------------

    async def settle(self, shares: Iterable[Share]) -> None:
        """Tell the broker what is finished. Memory only at the adapter: no wait for its disk."""
        if self._subscription is None:
            return
        for share in shares:
            if share.live and share.dirty:
                await self._subscription.settle(share.slice, share.to_settle())

    def passed_over(self, share: Share) -> None:
        if not self._passed:
            self.wake()
        self._passed.add(share)

    async def flush(self) -> None:
        """Store next positions, at most once per ``settle_every`` seconds."""
        now = self.context.clock.monotonic()
        if now - self._settled_at < self.context.numbers.settle_every:
            return
        self._settled_at = now
        shares = [s for s in self.shares.values() if s.live and not s.each and s.watermark.base != s.stored]
        if not shares:
            return
        marks = [self._mark(share) for share in shares]
        refused = await self.context.store.progress(
            self.context.group, marks, release=False, now=self.context.clock.now()
        )
        for share, mark in zip(shares, marks, strict=True):
            share.stored = mark.position
            if share.slice not in refused:
                self._fences.pop(share.slice, None)
        if refused:
            await self.lost(refused)
        point("progress.flushed")

    def _mark(self, share: Share) -> Mark:
        base = None if share.each else share.watermark.base
        return Mark(share.slice, share.epoch, base, share.incarnation)

    async def leave(self) -> None:
        """Release everything and say goodbye: the others need not wait for the leases to run out."""
        await self.release([*self.shares, *self.relays])
        await self.context.store.leave(self.context.group, self.context.member)
