"""Readiness probes: find out when a container's TCP ports take connections for the first time.

The kernel is asked who listens in the container's namespace (drivers/netns/listening.py). A port may also take
connections without a socket of its own: rules in the container may lead it elsewhere. And this kernel may not answer.
So what the look-up does not show is dialled too, from the host's namespace: seldom, and few ports at a time. An
accepted connection is closed at once.

One task for each run of a container ends when all its ports were found, or when none is wanted any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio

from appliance.drivers.netns import listening
from appliance.heartbeat import UNWATCHED
from appliance.retry import Schedule

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Probe
    from appliance.model.network import NetnsId

LOOK_AGAIN = Schedule((0.05, 0.1, 0.2, 0.4, 0.8, 1.0))
"""Seconds until the next look-up of a container's ports."""
REDIAL = Schedule((0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0))
"""Seconds until its ports are dialled again."""
REDIAL_BESIDE = Schedule((2.0, 4.0, 8.0, 15.0, 30.0))
"""The same where the look-up works, and nearly always comes first."""
DIAL_TIMEOUT = 1.0
"""Seconds that a dial may take."""
DIALS = 16
"""Dials under way at once."""
DIALS_OF_ONE = 4
"""The same of one container. Those whose packets it drops last DIAL_TIMEOUT each, and others wait their turn."""


class ProbedRun(NamedTuple):
    """One run of a container, as probes name it."""

    workload_id: str
    netns: NetnsId
    address: IPv4Address
    path: str


@dataclass(slots=True)
class _Waiting:
    run: ProbedRun
    ports: set[int]
    """Those that have not been found yet."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Prober:
    """Looks for what is wanted. `accepted` is called once for each port that is found, which then counts as done."""

    def __init__(self, accepted: Callable[[str, NetnsId, frozenset[int]], None]) -> None:
        """Probes begin when run() has started. `accepted` gets a container's id, its namespace, and ports."""
        self._accepted = accepted
        self._nursery: trio.Nursery | None = None
        self._wanted: frozenset[Probe] = frozenset()
        self._waiting: dict[ProbedRun, _Waiting] = {}
        self._dials = trio.CapacityLimiter(DIALS)
        self._can_look: bool | None = None
        """Whether the kernel answers; None until it was tried."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Probe until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.want(self._wanted)
                task_status.started()
                await beat.sleep()
        finally:
            self._nursery = None
            self._waiting.clear()

    def want(self, probes: AbstractSet[Probe]) -> None:
        """Probe exactly these from now on; what is already under way goes on undisturbed."""
        self._wanted = frozenset(probes)
        if self._nursery is None:
            return
        wanted: dict[ProbedRun, set[int]] = {}
        for probe in self._wanted:
            run = ProbedRun(probe.workload_id, probe.netns, probe.address, probe.path)
            wanted.setdefault(run, set()).add(probe.port)
        for run in [run for run in self._waiting if run not in wanted]:
            self._waiting.pop(run).scope.cancel()
        for run, ports in wanted.items():
            waiting = self._waiting.get(run)
            if waiting is not None and ports <= waiting.ports:
                waiting.ports &= ports
                continue
            if waiting is not None:
                waiting.scope.cancel()
            waiting = self._waiting[run] = _Waiting(run, ports)
            self._nursery.start_soon(self._wait, waiting)

    async def _wait(self, waiting: _Waiting) -> None:
        with waiting.scope:
            sock = self._open(waiting.run)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._dial_now_and_then, waiting, REDIAL if sock is None else REDIAL_BESIDE)
                    if sock is not None:
                        nursery.start_soon(self._look_again_and_again, waiting, sock)
            finally:
                if sock is not None:
                    sock.close()

    def _open(self, run: ProbedRun) -> socket.socket | None:
        """Return a socket for look-ups in a container's namespace; None where there can be none."""
        if not run.path:
            return None
        if self._can_look is None:
            self._can_look = listening.works()
        return listening.open_in(run.path, run.netns) if self._can_look else None

    def _found(self, waiting: _Waiting, ports: AbstractSet[int]) -> None:
        """Tell that ports take connections; the last ones end the task."""
        found = frozenset(ports & waiting.ports)
        if not found or self._waiting.get(waiting.run) is not waiting:
            return
        waiting.ports -= found
        if not waiting.ports:
            del self._waiting[waiting.run]
            waiting.scope.cancel()
        self._accepted(waiting.run.workload_id, waiting.run.netns, found)

    async def _look_again_and_again(self, waiting: _Waiting, sock: socket.socket) -> None:
        looks = 0
        while True:
            try:
                self._found(waiting, await listening.listening(sock, waiting.run.address, sorted(waiting.ports)))
            except OSError:
                return  # for example no memory for the answers: they are dialled
            looks += 1
            await trio.sleep(LOOK_AGAIN.after(looks))

    async def _dial_now_and_then(self, waiting: _Waiting, schedule: Schedule) -> None:
        rounds = 0
        if schedule is REDIAL_BESIDE:
            await trio.sleep(schedule.after(1))
        while True:
            left = iter(sorted(waiting.ports))
            async with trio.open_nursery() as nursery:
                for _ in range(DIALS_OF_ONE):
                    nursery.start_soon(self._dial_each, waiting, left)
            rounds += 1
            await trio.sleep(schedule.after(rounds))

    async def _dial_each(self, waiting: _Waiting, ports: Iterator[int]) -> None:
        for port in ports:
            async with self._dials:
                accepted = await accepts(waiting.run.address, port)
            if accepted:
                self._found(waiting, {port})


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
