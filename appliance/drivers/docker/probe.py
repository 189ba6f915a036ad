"""Readiness probes: which declared ports of containers have a program now, and the way that reaches it.

The kernel is asked in the container's namespace (drivers/netns/listening.py): ten times a second while it starts, every
second then, and at once when the data plane was refused there. One task asks for all containers, and traffic has its
turn in between.

Two kinds of ports cannot be looked up. Rules of its own may lead a port of a container elsewhere: where no socket
shows, such a TCP port is dialled, seldom, and its UDP ports always count. And the kernel may not answer: then TCP ports
are dialled until they take a connection, which counts until the container ends, and UDP ports always count. No other
container is ever dialled: a program may take one connection only.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import listening
from appliance.heartbeat import UNWATCHED
from appliance.model.facts import BoundPort
from appliance.model.names import Protocol
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Probe, UnreachedPort
    from appliance.model.network import NetnsId

OFTEN, SELDOM = 0.1, 1.0
"""Seconds between look-ups of a container: while it starts or has just lost a port, and then."""
WORDS = 5.0
"""Seconds between questions who listens where nobody reaches it."""
STARTING = 30.0
"""Seconds after which it no longer starts, also where a port still has no program."""
SHARE = 100
"""One container's look-ups take at most this part of the time: with hundreds of ports they come less often."""
QUESTION = 8e-6
"""Seconds that one takes."""
REDIAL = Schedule((0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0))
"""Seconds until a container's ports are dialled again."""
REDIAL_BESIDE = Schedule((2.0, 4.0, 8.0, 15.0, 30.0))
"""The same where the look-up works, and nearly always comes first."""
DIAL_TIMEOUT = 1.0
"""Seconds that a dial may take."""
DIALS = 16
"""Dials under way at once."""
DIALS_OF_ONE = 4
"""The same of one container. Those whose packets it drops last DIAL_TIMEOUT each, and others wait their turn."""


class _ProbedRun:
    """One run of a container."""

    def __init__(self, probe: Probe, answered: AbstractSet[Protocol], now: float) -> None:
        self.probe = probe
        self.asked = tuple(
            (protocol, port)
            for protocol, port in probe.ports
            if protocol in answered and not (protocol is Protocol.UDP and probe.own_rules)
        )
        """The ports that are looked up."""
        self.taken = frozenset(
            BoundPort(protocol, port)
            for protocol, port in probe.ports
            if protocol is Protocol.UDP and (protocol, port) not in self.asked
        )
        """Those that always count."""
        self.until = now + STARTING
        """When it counts as started at the latest, on Trio's clock."""
        self.due = now
        """When it is looked up again."""
        self.words_due = now + SELDOM
        """When it is asked who listens where nobody reaches it."""
        self.looked = -inf
        self.namespace: listening.NamespacePorts | None = None
        self.found: frozenset[BoundPort] = frozenset()
        """As last looked up."""
        self.unreached: frozenset[UnreachedPort] = frozenset()
        self.dialled: frozenset[int] = frozenset()
        """TCP ports that have taken a dial since its start."""
        self.scope = trio.CancelScope()
        """Of the task that dials."""
        self.closed = False

    @property
    def bound(self) -> frozenset[BoundPort]:
        """Return the ports that count."""
        if not self.taken and not self.dialled:
            return self.found
        shown = {(bound.protocol, bound.port) for bound in self.found}
        dialled = (BoundPort(Protocol.TCP, port) for port in self.dialled if (Protocol.TCP, port) not in shown)
        return self.found | self.taken | frozenset(dialled)

    def missing(self) -> list[tuple[Protocol, int]]:
        """Return the ports that do not count."""
        there = {(bound.protocol, bound.port) for bound in self.bound}
        return [port for port in self.probe.ports if port not in there]

    def close(self) -> None:
        """Let go of it."""
        self.closed = True
        self.scope.cancel()
        self.leave()

    def leave(self) -> None:
        """Let go of its namespace, which is entered again for the next look-up."""
        if self.namespace is not None:
            self.namespace.close()
            self.namespace = None


class Prober:
    """Looks up what is wanted, and tells after each look-up what holds now."""

    def __init__(self, seen: Callable[[str, NetnsId, frozenset[BoundPort], frozenset[UnreachedPort]], None]) -> None:
        """Probes begin when run() has started. `seen` gets a container's id and its namespace, too."""
        self._seen = seen
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._wanted: frozenset[Probe] = frozenset()
        self._watched: dict[tuple[str, NetnsId, float], _ProbedRun] = {}
        self._pause = trio.CancelScope()
        self._looked = trio.Event()
        self._refusing: set[IPv4Address] = set()
        """Who has refused since it was last looked at once."""
        self._hurried = -inf
        self._turns = listening.QuestionTurns()
        self._dials = trio.CapacityLimiter(DIALS)
        self._answered: frozenset[Protocol] | None = None
        """What the kernel can be asked about; None until it was tried."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Probe until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    self._nursery = nursery
                    self._token = trio.lowlevel.current_trio_token()
                    self.want(self._wanted)
                    task_status.started()
                    while True:
                        await self._look_at_all(beat)
                        self._looked.set()
                        self._looked = trio.Event()
                        with trio.move_on_at(min((w.due for w in self._watched.values()), default=inf)) as self._pause:
                            await beat.sleep()
                finally:
                    self._nursery = None
        finally:
            self._token = None
            for watched in self._watched.values():
                watched.close()
            self._watched.clear()

    def want(self, probes: AbstractSet[Probe]) -> None:
        """Probe exactly these from now on; what is already under way goes on undisturbed."""
        self._wanted = frozenset(probes)
        if self._nursery is None:
            return
        wanted = {(p.workload_id, p.netns, p.started_at): p for p in self._wanted}
        for run in self._watched.keys() - wanted.keys():
            self._watched.pop(run).close()
        for run, probe in wanted.items():
            watched = self._watched.get(run)
            if watched is None or watched.probe != probe:
                self._watch(run, probe, watched)

    async def first_look(self) -> None:
        """Return once all that is wanted was looked up; at once where nothing runs."""
        await trio.lowlevel.checkpoint()
        while any(watched.looked == -inf for watched in self._watched.values()):
            await self._looked.wait()

    def hurry(self, address: IPv4Address) -> None:
        """Look up what has this address at once: it has refused a connection. For callbacks of the loop."""
        if self._token is not None:
            self._refusing.add(address)
            self._token.run_sync_soon(self._hurry, idempotent=True)

    def _hurry(self) -> None:
        now = trio.current_time()
        if now < self._hurried + OFTEN:
            return  # a container may refuse again and again; the next look-ups are not far
        self._hurried = now
        for watched in self._watched.values():
            if not self._refusing.isdisjoint(watched.probe.addresses):
                watched.due = min(watched.due, watched.looked + OFTEN)
        self._refusing.clear()
        self._pause.cancel()

    def _watch(self, run: tuple[str, NetnsId, float], probe: Probe, former: _ProbedRun | None) -> None:
        """Begin to watch a run, or go on with other addresses or ports."""
        if self._answered is None:
            self._answered = listening.answered()
        watched = self._watched[run] = _ProbedRun(probe, self._answered, trio.current_time())
        if former is not None:
            watched.dialled = frozenset(port for port in former.dialled if (Protocol.TCP, port) in probe.ports)
            watched.namespace, former.namespace = former.namespace, None
            former.close()
        looks = Protocol.TCP in self._answered
        if (probe.own_rules or not looks) and self._nursery is not None:
            self._nursery.start_soon(self._dial_now_and_then, watched, REDIAL_BESIDE if looks else REDIAL)
        self._pause.cancel()

    def _tell(self, watched: _ProbedRun) -> None:
        if not watched.closed:
            self._seen(watched.probe.workload_id, watched.probe.netns, watched.bound, watched.unreached)

    # -- looking

    async def _look_at_all(self, beat: Heartbeat) -> None:
        """Look at those that are due, one after the other."""
        now = trio.current_time()
        for watched in [w for w in self._watched.values() if w.due <= now]:
            before = self._turns.asked
            watched.looked = now
            complete = await self._look(watched, now)
            pause = max(SELDOM if complete else OFTEN, SHARE * QUESTION * (self._turns.asked - before))
            watched.due = (
                round((now + pause) / OFTEN) * OFTEN
            )  # many at the same moments, each of which wakes the process
            beat()

    async def _look(self, watched: _ProbedRun, now: float) -> bool:
        """Look up one container's ports, and tell; return whether there is no hurry to look again."""
        if not watched.asked:
            self._tell(watched)
            return True
        if watched.namespace is None:
            watched.namespace = listening.open_in(watched.probe.path, watched.probe.netns)
            await trio.lowlevel.checkpoint()
        namespace = watched.namespace
        if namespace is None or watched.closed:
            return True  # it has just ended, or no descriptor is left
        try:
            found = await namespace.bound(
                watched.probe.addresses, watched.asked, self._turns, from_host=watched.probe.own_rules
            )
            if not watched.found <= found:
                watched.until = now + STARTING  # its program may be back in a moment
            watched.found = found
            complete = len(watched.bound) == len(watched.probe.ports)
            watched.unreached = frozenset() if complete else await self._unreached(watched, namespace, now)
        except OSError:  # for example no memory for the answers: what was known stays
            watched.leave()
            return True
        self._tell(watched)
        return complete or now >= watched.until

    async def _unreached(
        self, watched: _ProbedRun, namespace: listening.NamespacePorts, now: float
    ) -> frozenset[UnreachedPort]:
        """Return which of the missing ports have a program that nobody reaches; asked seldom, since it is for words."""
        missing = [port for port in watched.missing() if port in watched.asked]
        if now < watched.words_due:
            return frozenset(known for known in watched.unreached if (known.protocol, known.port) in missing)
        watched.words_due = now + WORDS
        return await namespace.unreached(missing, self._turns)

    # -- dialling

    async def _dial_now_and_then(self, watched: _ProbedRun, schedule: Schedule) -> None:
        rounds = 0
        with watched.scope:
            if schedule is REDIAL_BESIDE:
                await trio.sleep(schedule.after(1))
            while True:
                left = iter([port for protocol, port in watched.missing() if protocol is Protocol.TCP])
                async with trio.open_nursery() as nursery:
                    for _ in range(DIALS_OF_ONE):
                        nursery.start_soon(self._dial_each, watched, left)
                rounds += 1
                await trio.sleep(schedule.after(rounds))

    async def _dial_each(self, watched: _ProbedRun, ports: Iterator[int]) -> None:
        for port in ports:
            async with self._dials:
                accepted = await accepts(watched.probe.addresses[0], port)
            if accepted:
                watched.dialled |= {port}
                self._tell(watched)


async def accepts(address: IPv4Address, port: int) -> bool:
    """Return whether something accepts a connection there within DIAL_TIMEOUT."""
    with trio.move_on_after(DIAL_TIMEOUT):
        try:
            with trio.socket.socket() as sock:
                await sock.connect((str(address), port))
        except OSError:  # it accepts nothing, or this process has no descriptor left
            return False
        return True
    return False
