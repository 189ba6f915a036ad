"""Readiness probes: dial a container's TCP port until it accepts a connection for the first time.

The dial leaves from the host's namespace, as the proxy's does. One task for each port ends with the first success, or
when the port is no longer wanted. An accepted connection is closed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.heartbeat import UNWATCHED
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Probe

REDIAL = Schedule((0.05, 0.1, 0.2, 0.4, 0.8, 1.0))
"""Seconds until the next dial."""
DIAL_TIMEOUT = 1.0
"""Seconds that a dial may take."""


class Prober:
    """Dials what is wanted. `accepted` is called once for each probe that succeeds, which then counts as done."""

    def __init__(self, accepted: Callable[[Probe], None]) -> None:
        """Probes begin when run() has started."""
        self._accepted = accepted
        self._nursery: trio.Nursery | None = None
        self._wanted: frozenset[Probe] = frozenset()
        self._under_way: dict[Probe, trio.CancelScope] = {}

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
            self._under_way.clear()

    def want(self, probes: AbstractSet[Probe]) -> None:
        """Probe exactly these from now on; what is already being dialled goes on undisturbed."""
        self._wanted = frozenset(probes)
        if self._nursery is None:
            return
        for probe in [probe for probe in self._under_way if probe not in self._wanted]:
            self._under_way.pop(probe).cancel()
        for probe in self._wanted - self._under_way.keys():
            scope = self._under_way[probe] = trio.CancelScope()
            self._nursery.start_soon(self._dial_until_accepted, probe, scope)

    async def _dial_until_accepted(self, probe: Probe, scope: trio.CancelScope) -> None:
        failures = 0
        with scope:
            while not await accepts(probe.address, probe.port):
                failures += 1
                await trio.sleep(REDIAL.after(failures))
            if self._under_way.get(probe) is scope:
                del self._under_way[probe]
                self._accepted(probe)


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
