"""The addresses of this host, read now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import addresses, identity
from appliance.errors import RetryError
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address

    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat


class HostAddresses:
    """The IPv4 addresses in the namespace that the appliance runs in, without loopback ones."""

    def __init__(self, *, bell: Callable[[], None], faults: Faults, every: float) -> None:
        """`bell` is rung when they have changed; they are read every so many seconds."""
        self._bell = bell
        self._faults = faults
        self._every = every
        self.now: frozenset[IPv4Address] = frozenset()
        """As they were read last."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Read them until cancelled. Started once they were read, or could not be: then the former ones stay."""
        while True:
            try:
                found = frozenset(await addresses.read(identity.HOST))
            except (OSError, RetryError) as error:
                self._faults.report("host addresses", "cannot read this host's addresses; the former ones stay", error)
            else:
                self._faults.over("host addresses")
                if found != self.now:
                    self.now = found
                    self._bell()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await beat.sleep(self._every)
