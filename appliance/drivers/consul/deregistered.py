"""Machines that are not registered any more although they may live.

A Consul server that dies is taken out of the catalogue by the others after some seconds, and with it the machine beside
it, whose appliance goes on as last known. No appliance ever takes its machine out itself. So a machine that vanishes is
like one that is not heard of: used for nothing, while it may still call; but not for ever, since its address may become
somebody else's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.model.facts import Machine

MAY_CALL = 3600.0
"""Seconds for which a machine that vanished may still call."""


class Deregistered:
    """Those that vanished less than `MAY_CALL` ago. A restart forgets when that was, and counts anew."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Call `changed` when the time of one is over."""
        self._changed = changed
        self._found: dict[str, tuple[Machine, float]] = {}

    @property
    def machines(self) -> tuple[Machine, ...]:
        """They, as machines that are not healthy."""
        return tuple(machine for machine, _ in self._found.values())

    def note(self, before: Mapping[str, Machine], now: Mapping[str, Machine]) -> None:
        """Take what has vanished of the registered machines; drop those whose name or address is registered again."""
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

    async def forget(self) -> None:
        """Drop each when its time is over, until cancelled."""
        while True:
            now = trio.current_time()
            # Who vanishes during the sleep has all its time before it.
            await trio.sleep_until(min((until for _, until in self._found.values()), default=now + MAY_CALL))
            now = trio.current_time()
            left = {node: one for node, one in self._found.items() if one[1] > now}
            if left.keys() != self._found.keys():
                self._found = left
                self._changed()
