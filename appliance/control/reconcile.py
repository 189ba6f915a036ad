"""The one loop: facts → wanted state → difference → steps, and only what succeeded is remembered.

Events carry nothing: whatever moves rings the bell, and the next pass looks at everything afresh. Start, change,
failure, restart and drift are the same path.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import trio

from appliance.errors import MeshboxError
from appliance.model import state as st
from appliance.plan.compile import Compiler
from appliance.plan.diff import apply, diff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable

    from appliance.faults import Faults
    from appliance.model.facts import Snapshot
    from appliance.model.names import Destination
    from appliance.model.network import NetnsId, Zone

T = TypeVar("T")

DEBOUNCE = 0.05
"""Seconds of quiet after which a pass begins."""
MOST_DEBOUNCE = 1.0
"""Seconds after which a pass begins although the bell still rings."""
FULL_PASS = 30.0
"""Seconds between passes that observe everything afresh."""
TURN = 16
"""Steps that take no time of their own, such as opening sockets, that are taken before traffic has its turn."""
RETRY = (0.2, 1.0, 2.0, 5.0, 10.0)
"""Seconds until the next pass after the 1st, 2nd, … pass in a row with a failed step; the last value repeats."""


class Reconciler:
    """Keeps this host's network state what the facts say it should be."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        carry_out: Callable[[st.Step], Awaitable[None]],
        faults: Faults,
        after_pass: Callable[[Snapshot], Awaitable[float]],
    ) -> None:
        """`carry_out` does what a step says, and raises OSError or MeshboxError when that fails.

        `after_pass` gets each snapshot once its steps were applied (to plan containers).

        It returns in how many seconds at most the next pass has to come.
        """
        self._snapshot = snapshot
        self._carry_out = carry_out
        self._faults = faults
        self._after_pass = after_pass
        self._compiler = Compiler()
        self._bell = trio.Event()
        self._urgent = False
        self._tried: set[st.Subject] = set()
        self._standing: set[NetnsId] = set()
        """Namespaces where a change was refused, so that the rules before it are in force."""
        self._edited: set[NetnsId] = set()
        self._host_edited = False
        """What was forgotten since the pass compared: its own steps do not make that known again."""
        self._failures = 0
        self._due = FULL_PASS
        self.have = st.HostState()
        self.want = st.HostState()
        self.unusable_ports: frozenset[int] = frozenset()
        self.passes = 0
        self.steps = 0

    def ring(self, *, urgent: bool = False) -> None:
        """Say that something has changed; `urgent` begins the next pass without waiting for quiet."""
        self._bell.set()
        if urgent:
            self._urgent = True

    def forget_ruleset(self, netns: NetnsId) -> None:
        """Somebody else changed the table in this namespace: push it anew."""
        self._standing.discard(netns)
        self._edited.add(netns)
        if netns in self.have.rulesets or netns in self.want.rulesets:  # in place, or a push of it is under way
            self._forget_edited()
            self.ring(urgent=True)

    def _forget(self, namespaces: set[NetnsId]) -> None:
        kept = {netns: ruleset for netns, ruleset in self.have.rulesets.items() if netns not in namespaces}
        self.have = replace(self.have, rulesets=kept)

    def forget_host_ruleset(self) -> None:
        """Somebody else changed the host's table: push it anew."""
        self._host_edited = True
        self._forget_edited()
        self.ring(urgent=True)

    def _forget_edited(self) -> None:
        if self._edited:
            self._forget(self._edited)
        if self._host_edited:
            self.have = replace(self.have, host_ruleset=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reconcile until cancelled. Started once the first pass is through."""
        await self.reconcile()
        task_status.started()
        while True:
            pause = RETRY[min(self._failures, len(RETRY)) - 1] if self._failures else FULL_PASS
            with trio.move_on_after(min(pause, self._due)):
                await self._bell.wait()
                await self._quiet()
            await self.reconcile()

    async def _quiet(self) -> None:
        with trio.move_on_after(MOST_DEBOUNCE):
            while not self._urgent:
                self._bell = trio.Event()
                with trio.move_on_after(DEBOUNCE) as calm:
                    await self._bell.wait()
                if calm.cancelled_caught:
                    return

    async def reconcile(self) -> None:
        """Make one pass."""
        self._bell = trio.Event()
        self._urgent = False
        self.passes += 1
        facts = self._snapshot()
        facts = replace(facts, unusable_ports=facts.unusable_ports | self.unusable_ports)
        self._standing &= {w.netns.id for w in facts.workloads if w.netns is not None}
        self.want = await _in_turns(self._compiler.compile(facts))
        if self.want.shortage:
            self._faults.report(
                "plan", "not all names and destinations fit; those that do are served", self.want.shortage
            )
        else:
            self._faults.over("plan")
        self._tried = set()
        await _pause()
        self._edited, self._host_edited = set(), False
        steps = diff(self.have, self.want)
        await _pause()
        complete = await self._apply_all(steps, facts)
        self._failures = 0 if complete else self._failures + 1
        self._faults.drop(lambda key: isinstance(key, st.Subject) and key not in self._tried)
        self._due = await self._after_pass(facts)

    async def _apply_all(self, steps: Iterable[st.Step], facts: Snapshot) -> bool:
        """Apply steps in order, namespaces side by side; return whether all succeeded."""
        unlocked: set[NetnsId] = set()
        complete = True
        for kind, group in groupby(steps, type):
            tried = list(group)
            if kind is st.SetZone:
                tried = [
                    st.SetZone(zone=self._zone_without(s.zone, unlocked, facts))
                    for s in tried
                    if isinstance(s, st.SetZone)
                ]
            elif kind is st.Register:  # whoever is sent here must find a listener
                tried = [s for s in tried if isinstance(s, st.Register) and self._listens(s.registration.destination)]
            done: list[st.Step] = []
            if kind in (st.PushRuleset, st.DropRuleset):
                async with trio.open_nursery() as nursery:
                    for step in tried:
                        nursery.start_soon(self._try, step, done)
            else:
                for number, step in enumerate(tried, start=1):
                    await self._try(step, done)
                    if not number % TURN:
                        await _pause()
            self.have = apply(done, self.have)
            self._forget_edited()
            self._standing -= {s.after.netns.id for s in done if isinstance(s, st.PushRuleset)}
            self.steps += len(done)
            if len(done) < len(tried):
                complete = False
                refused = [s for s in tried if isinstance(s, st.PushRuleset) and s not in done]
                self._standing |= {s.after.netns.id for s in refused if s.before is not None} - self._edited
                unlocked |= {s.after.netns.id for s in refused}
                self._forget(unlocked)  # a refused change says that what is there is not what we think
                if not self.unusable_ports <= facts.unusable_ports:
                    self.ring(urgent=True)
                    break
        return complete

    def _zone_without(self, zone: Zone, unlocked: set[NetnsId], facts: Snapshot) -> Zone:
        """Leave out the views of workloads whose rules are not in place: their names would not work yet.

        Where the rules before a refused change are in force, names that it had and still may have stay.
        """
        if not unlocked:
            return zone
        former = {} if self.have.zone is None else self.have.zone.views
        views = dict(zone.views)
        for workload in facts.workloads:
            if workload.netns is not None and workload.netns.id in unlocked:
                for address in workload.addresses:
                    view = views.pop(address, frozenset())
                    if workload.netns.id in self._standing and address in former:
                        views[address] = former[address] & view
        return replace(zone, views=views)

    def _listens(self, destination: Destination) -> bool:
        return destination in self.have.listeners

    async def _try(self, step: st.Step, done: list[st.Step]) -> None:
        key = st.subject_of(step)
        self._tried.add(key)
        try:
            await self._carry_out(step)
        except (OSError, MeshboxError) as error:
            if isinstance(step, st.OpenListener) and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                self.unusable_ports |= {step.listener.port}
            elif isinstance(step, st.PushHostRuleset):
                self.have = replace(self.have, host_ruleset=None)
            self._faults.report(key, f"{key.kind} failed; will try again", error, subject=key.about)
        else:
            self._faults.over(key)
            done.append(step)


async def _in_turns(work: Generator[None, None, T]) -> T:
    """Do a work turn by turn, with traffic in between: it shares this thread."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
        await _pause()


async def _pause() -> None:
    """Let traffic have its turn: other processes that want this CPU, then what shares this thread.

    A scheduler that looks at its slices only at clock ticks (4 ms) would let a client or a server wait to the end of a
    plan.
    """
    os.sched_yield()
    await trio.lowlevel.checkpoint()
