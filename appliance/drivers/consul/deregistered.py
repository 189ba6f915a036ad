"""Machines that are not registered any more although they may live.

When a Consul server dies, the other servers take it out of the catalogue after some seconds, and with it the machine
beside it, whose appliance goes on as last known. No appliance ever deregisters its own machine. So a machine that
vanishes is treated like one that is not heard of: nothing is sent to it, but it may still call. Its right ends after a
while, since its address may go to another computer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Machine

MAY_CALL = 3600.0
"""Seconds for which a machine that vanished may still call."""


class Deregistered:
    """The machines that vanished less than `MAY_CALL` ago. A restart counts anew."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Call `changed` when the time of a machine is over."""
        self._changed = changed
        self._found: dict[str, tuple[Machine, float]] = {}

    @property
    def machines(self) -> tuple[Machine, ...]:
        """All of them, none healthy."""
        return tuple(machine for machine, _ in self._found.values())

    def note(self, before: Mapping[str, Machine], now: Mapping[str, Machine]) -> None:
        """Add the machines that have vanished; drop those whose name or address is registered again."""
        end = trio.current_time() + MAY_CALL
        gone = {node: (replace(before[node], healthy=False), end) for node in before.keys() - now.keys()}
        taken = {machine.address for machine in now.values()}
        self._found = {
            node: (machine, until)
            for node, (machine, until) in (self._found | gone).items()
            if node not in now and machine.address not in taken
        }

    def clear(self) -> None:
        """Forget all of them."""
        self._found.clear()

    async def forget(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Drop each when its time is over, until cancelled."""
        task_status.started()
        while True:
            now = trio.current_time()
            # A machine that vanishes during the sleep has all its time before it.
            await beat.sleep(min((until for _, until in self._found.values()), default=now + MAY_CALL) - now)
            now = trio.current_time()
            left = {node: one for node, one in self._found.items() if one[1] > now}
            if left.keys() != self._found.keys():
                self._found = left
                self._changed()
