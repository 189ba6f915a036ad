"""The one loop: facts → wanted state → difference → steps, and only what succeeded is remembered.

Events carry nothing: whatever moves rings the bell, and the next pass looks at everything afresh. Start, change,
failure, restart and drift are the same path.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from appliance.control.attempts import Attempts
from appliance.errors import MeshboxError, cause
from appliance.heartbeat import UNWATCHED, StuckError
from appliance.model import state as st
from appliance.plan.compile import Compiler
from appliance.plan.containers import kept_addresses
from appliance.plan.diff import apply, diff
from appliance.plan.withheld import must_wait, zone_without

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Snapshot
    from appliance.model.network import NetnsId
    from appliance.plan.compile import Plan

T = TypeVar("T")
K = TypeVar("K")

DEBOUNCE = 0.05
"""Seconds of quiet after which a pass begins."""
MOST_DEBOUNCE = 1.0
"""Seconds after which a pass begins although the bell still rings."""
URGENT = 20.0
"""Most passes a second that begin without waiting for quiet. Beyond that what is urgent waits as other things do."""
FULL_PASS = 30.0
"""Seconds between passes that observe everything afresh."""
FRESH = 50.0
"""Seconds after a pass for which port claims count as what the facts say; the next full one comes before that."""
PATIENCE = 0.6
"""The part of this part's time without progress after which steps under way are stuck; then it goes on without them."""
GIVE_WAY = 0.001
"""Seconds after which other processes that want this CPU get it. Each time may cost 4 ms where another one is busy: a
short plan, as for a container that starts, must not pay that at each of its turns."""
TURN = 16
"""Steps that take no time of their own, such as opening sockets, that are taken before traffic has its turn."""
SIDE_BY_SIDE = (st.PushRuleset, st.DropRuleset, st.AddRoute, st.DropRoute)
"""Steps inside namespaces that spend their time waiting for other programs."""


class Followers(Protocol):
    """What else is done with each plan."""

    def begin(self, plan: Plan) -> None:
        """Do what need not wait for its steps."""

    async def finish(self, plan: Plan, facts: Snapshot) -> None:
        """Do the rest, once its steps were taken, even if some have failed."""


class Reconciler:
    """Keeps this host's network state what the facts say it should be."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        carry_out: Callable[[st.Step], Awaitable[None]],
        faults: Faults,
        followers: Followers,
    ) -> None:
        """`carry_out` does what a step says, and raises whatever keeps it from that."""
        self._snapshot = snapshot
        self._carry_out = carry_out
        self._faults = faults
        self._followers = followers
        self._compiler = Compiler()
        self._bell = trio.Event()
        self._urgent = False
        self._urgencies = self._answered = 0
        """How often it rang for something urgent, and how often when facts were last looked at."""
        self._gave_way = 0.0
        """When other processes last got this CPU, on the clock of `time.perf_counter`."""
        self._beat = UNWATCHED
        self._hurries = URGENT
        self._hurries_at = 0.0
        """How many more passes could begin without waiting for quiet, at that time on Trio's clock."""
        self._attempts = Attempts(partial(self.ring, urgent=True))
        self._standing: set[NetnsId] = set()
        """Namespaces where a change was refused, so that the rules before it are in force."""
        self._edited: set[NetnsId] = set()
        self._locked: set[NetnsId] = set()
        """Namespaces whose rules this pass has tried, or will."""
        self._between: list[st.Step] = []
        """Steps that this pass has taken beyond its plan."""
        self._host_edited = False
        """What was forgotten since the pass compared: its own steps do not make that known again."""
        self._compared = -inf
        """When the last pass had ended, on Trio's clock."""
        self._ended = 0
        """The number of that pass."""
        self._pass_ended = trio.Event()
        self._next = inf
        """When the next pass has to come, on Trio's clock."""
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
            self._urgencies += 1

    def forget_ruleset(self, netns: NetnsId) -> None:
        """Somebody else changed the table in this namespace: push it anew."""
        self._standing.discard(netns)
        self._attempts.renew(str(netns))
        self._edited.add(netns)
        if netns in self.have.rulesets or netns in self.want.rulesets:  # in place, or a push of it is under way
            self._forget_edited()
            self.ring(urgent=True)

    def _forget(self, namespaces: set[NetnsId]) -> None:
        """Assume that nothing of ours is there: no rules, and neither the door nor the route that need them."""
        if namespaces:
            self.have = replace(
                self.have,
                rulesets=_without(self.have.rulesets, namespaces),
                doors=_without(self.have.doors, namespaces),
                routes=_without(self.have.routes, namespaces),
            )

    def forget_host_ruleset(self) -> None:
        """Somebody else changed a table of the host's: push both anew."""
        self._attempts.renew("host")
        self._host_edited = True
        self._forget_edited()
        self.ring(urgent=True)

    def _forget_edited(self) -> None:
        self._forget(self._edited)
        if self._host_edited:
            self.have = replace(self.have, host_ruleset=None, bridge_ruleset=None)

    async def settle(self) -> None:
        """Return once a pass has ended that began after this call."""
        begun = self.passes
        self.ring(urgent=True)
        while self._ended <= begun:
            await self._pass_ended.wait()

    def holds_claims(self) -> bool:
        """Whether this host's port claims are in place, and are what the facts said not long ago."""
        wanted = self.want.bridge_ruleset
        compared = trio.current_time() - self._compared <= FRESH
        return wanted is not None and self.have.bridge_ruleset == wanted and compared

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reconcile until cancelled. Started once the first pass is through. Run again, it knows what it had done."""
        self._beat = beat
        try:
            async with trio.open_nursery() as nursery:
                self._attempts.wait_in(nursery)
                await self.reconcile()
                task_status.started()
                while True:
                    with trio.move_on_at(self._next):
                        await beat.wait(self._bell)
                        await self._quiet()
                    await self.reconcile()
        finally:
            self._attempts.wait_in(None)

    async def _quiet(self) -> None:
        with trio.move_on_after(MOST_DEBOUNCE):
            while not (self._urgent and self._may_hurry()):
                self._urgent = False
                self._bell = trio.Event()
                with trio.move_on_after(DEBOUNCE) as calm:
                    await self._bell.wait()
                if calm.cancelled_caught:
                    return

    def _may_hurry(self) -> bool:
        now = trio.current_time()
        self._hurries = min(URGENT, self._hurries + (now - self._hurries_at) * URGENT)
        self._hurries_at = now
        if self._hurries < 1:
            return False
        self._hurries -= 1
        return True

    async def reconcile(self) -> None:
        """Make one pass."""
        self._bell = trio.Event()
        self._urgent = False
        self.passes += 1
        self._answered = self._urgencies
        now = trio.current_time()
        facts = self._facts()
        self._standing &= {w.netns.id for w in facts.workloads if w.netns is not None}
        plan = await self._in_turns(self._compiler.compile(facts))
        self.want = plan.want
        self._followers.begin(plan)
        if self.want.shortage:
            self._faults.report(
                "plan", "not all names and destinations fit; those that do are served", self.want.shortage
            )
        else:
            self._faults.over("plan")
        await self._pause()
        self._edited, self._host_edited = set(), False
        steps = diff(self.have, self.want)
        await self._pause()
        steps = (*steps, *await self._apply_all(steps, facts, now))
        subjects = {st.subject_of(step) for step in steps}
        self._attempts.end_pass(trio.current_time(), subjects)
        self._faults.drop(lambda key: isinstance(key, st.Subject) and key not in subjects)
        await self._followers.finish(plan, facts)
        if (plan.claims or plan.due < inf) and self.have.registrations.keys() != facts.announced:
            self.ring()  # what is announced need not be claimed
        self._compared, self._ended = trio.current_time(), self.passes
        self._pass_ended.set()
        self._pass_ended = trio.Event()
        self._next = min(trio.current_time() + min(FULL_PASS, plan.due), self._attempts.next_due(now))

    def _facts(self) -> Snapshot:
        facts = self._snapshot()
        return replace(
            facts,
            unusable_ports=facts.unusable_ports | self.unusable_ports,
            announced=frozenset(self.have.registrations),
            kept=kept_addresses(facts.workloads, self.want.rulesets),
        )

    async def _apply_all(self, steps: Iterable[st.Step], facts: Snapshot, now: float) -> list[st.Step]:
        """Apply steps in order, namespaces side by side; return those that were taken between them for new starts."""
        self._locked = {w.netns.id for w in facts.workloads if w.netns is not None}
        self._between = []
        unlocked: set[NetnsId] = set()
        for kind, group in groupby(steps, type):
            asked = list(group)
            if kind is st.SetZone:
                asked = self._zones(asked, facts, unlocked)
            tried = [s for s in asked if not must_wait(s, self.have) and not self._attempts.held(s, now)]
            done: list[st.Step] = []
            begun: dict[int, st.Step] = {}
            try:
                with self._beat.another(f"the step {kind.__name__}", self._beat.limit * PATIENCE) as beat:
                    await self._take(kind, tried, done, begun, beat)
            except StuckError as error:  # those after it are taken nevertheless
                for step in begun.values():
                    self._has_failed(step, error)
            finally:  # what was done is known also where this pass is cut short
                self.have = apply(done, self.have)
                self._forget_edited()
            self._standing -= _lockable(done)
            self.steps += len(done)
            if len(done) < len(asked):
                taken = set(map(id, done))
                left = [step for step in asked if id(step) not in taken]
                unlocked |= _lockable(left)
                self._standing |= _lockable(s for s in left if getattr(s, "before", None) is not None) - self._edited
                # A refused change means that what is there is not what we think.
                self._forget({s.after.netns.id for s in tried if isinstance(s, st.PushRuleset) and id(s) not in taken})
                if not self.unusable_ports <= facts.unusable_ports:
                    self.ring(urgent=True)
                    break
            await self._lock_new()
        return self._between

    async def _lock_new(self) -> None:
        """Push the rules of containers that have started since this pass began, and leave the rest to the next one.

        Their programs begin in 0.1 s, and a pass beside other work takes longer than that. Rules of a new namespace
        depend on no other step.
        """
        if self._urgencies == self._answered:
            return
        self._answered = self._urgencies
        facts = self._facts()
        new = {w.netns.id for w in facts.workloads if w.netns is not None and w.problem is None} - self._locked
        if not new:
            return
        self._locked |= new
        plan = await self._in_turns(self._compiler.compile(facts))
        self._edited -= new
        pushes: list[st.Step] = [
            st.PushRuleset(before=None, after=ruleset)
            for netns, ruleset in plan.want.rulesets.items()
            if netns in new and netns not in self.have.rulesets
        ]
        self._between += pushes
        done: list[st.Step] = []
        begun: dict[int, st.Step] = {}
        try:
            with self._beat.another("the rules of new namespaces", self._beat.limit * PATIENCE) as beat:
                await self._take(st.PushRuleset, pushes, done, begun, beat)
        except StuckError as error:
            for step in begun.values():
                self._has_failed(step, error)
        finally:
            self.have = apply(done, self.have)
            self._forget_edited()

    def _zones(self, steps: Iterable[st.Step], facts: Snapshot, unlocked: AbstractSet[NetnsId]) -> list[st.Step]:
        """Return these zones without what does not work yet, and only those that differ from what there is."""
        zones = [
            zone_without(step.zone, self.have.zone, facts.workloads, unlocked, self._standing)
            for step in steps
            if isinstance(step, st.SetZone)
        ]
        return [st.SetZone(zone=zone) for zone in zones if zone != self.have.zone]

    async def _take(
        self,
        kind: type[st.Step],
        steps: list[st.Step],
        done: list[st.Step],
        begun: dict[int, st.Step],
        beat: Heartbeat,
    ) -> None:
        """Try steps of one kind; add those that succeed to `done`. `begun` has those that have not ended."""
        if kind in SIDE_BY_SIDE:
            async with trio.open_nursery() as nursery:
                for step in steps:
                    nursery.start_soon(self._try, step, done, begun, beat)
            return
        for number, step in enumerate(steps, start=1):
            await self._try(step, done, begun, beat)
            await self._lock_new()
            if not number % TURN:
                await self._pause()
                if kind is st.OpenDoor and self._bell.is_set():
                    break  # nothing waits for a door: the next pass opens the others

    async def _try(self, step: st.Step, done: list[st.Step], begun: dict[int, st.Step], beat: Heartbeat) -> None:
        """Take a step, and note whether it succeeded. After a failure it is unknown what is there.

        Refused rulesets are forgotten once all of their kind were tried, with the doors and routes that stand in them.
        """
        begun[id(step)] = step
        try:
            await self._carry_out(step)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one step
            self._has_failed(step, error)
        except BaseException:  # cut short
            self._is_unknown(step)
            if isinstance(step, st.PushRuleset):
                self._forget({step.after.netns.id})
            raise
        else:
            self._attempts.succeeded(step)
            self._faults.over(st.subject_of(step))
            done.append(step)
        del begun[id(step)]
        beat()
        self._beat()

    def _has_failed(self, step: st.Step, error: Exception) -> None:
        self._is_unknown(step)
        if isinstance(step, st.OpenListener) and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            self.unusable_ports |= {step.listener.port}
        if self._attempts.failed(step, error):
            subject = st.subject_of(step)
            words, fields = _words(step, subject)
            if isinstance(error, OSError | MeshboxError):
                self._faults.report(subject, words, error, **fields)
            else:
                self._faults.report(subject, words, cause(error), **fields, exc_info=error)

    def _is_unknown(self, step: st.Step) -> None:
        """Assume nothing of what a step has left half done."""
        if isinstance(step, st.PushHostRuleset):
            self.have = replace(self.have, host_ruleset=None)
        elif isinstance(step, st.PushBridgeRuleset):
            self.have = replace(self.have, bridge_ruleset=None)
        elif isinstance(step, st.AddRoute):
            self.have = replace(self.have, routes=_without(self.have.routes, {step.after.netns.id}))
        elif isinstance(step, st.OpenDoor):
            self.have = replace(self.have, doors=_without(self.have.doors, {step.after.netns.id}))

    async def _in_turns(self, work: Generator[None, None, T]) -> T:
        """Do some work turn by turn, with traffic in between: it shares this thread."""
        while True:
            try:
                next(work)
            except StopIteration as done:
                result: T = done.value
                return result
            await self._pause()

    async def _pause(self) -> None:
        """Let traffic have its turn: other processes that want this CPU, then what shares this thread.

        A scheduler that looks at its slices only at clock ticks (4 ms) would let a client or a server wait to the end
        of a plan.
        """
        if time.perf_counter() - self._gave_way >= GIVE_WAY:
            os.sched_yield()
            self._gave_way = time.perf_counter()
        await trio.lowlevel.checkpoint()
        self._beat()


def _without(mapping: Mapping[K, T], keys: AbstractSet[K]) -> dict[K, T]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _lockable(steps: Iterable[st.Step]) -> set[NetnsId]:
    """Return the namespaces of those steps that have to be done before names work there."""
    return {step.after.netns.id for step in steps if isinstance(step, st.PushRuleset | st.AddRoute)}


def _words(step: st.Step, subject: st.Subject) -> tuple[str, dict[str, str]]:
    """Return what a log line says when the step has failed, and what it is about."""
    if isinstance(step, st.OpenDoor):
        words = "cannot open the door of a container; its connections go through the host; will try again"
        return words, {"container": str(step.after.address), "netns": subject.about}
    return f"{subject.kind} failed; will try again", {"subject": subject.about}
