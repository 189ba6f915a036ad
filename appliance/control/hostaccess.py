"""Names of the mesh for processes of this host, for as long as the appliance runs (`host_access`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.host.resolvconf import ResolverSettings, choose_server
from appliance.errors import MeshboxError, cause
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.config.options import Config
    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat
    from appliance.model.visitors import ConnectTo, Visitors

log = structlog.get_logger()

LOOK = 30.0
"""Seconds between checks whether another program has rewritten the resolver's settings, as DHCP clients do."""
SETTLE = 5.0
"""Seconds from a new service to new settings: systemd refuses what is started more than five times in ten seconds."""


class HostAccess:
    """Keeps resolver settings and route in place, or undoes what a former run has left."""

    def __init__(
        self, config: Config, visitors: Visitors, faults: Faults, *, services: Callable[[], frozenset[str]]
    ) -> None:
        """Touch nothing yet. `services` are those of the mesh that exist now."""
        self._config = config
        self._visitors = visitors
        self._faults = faults
        self._names = ResolverSettings(resolv_conf=config.resolv_conf, vip_range=config.vip_range)
        self._services = services
        self._domains: frozenset[str] | None = None
        """What was put last."""
        self._moved = trio.Event()
        self._keeping = trio.CancelScope()
        self._stopped = False

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep everything in place until `stop`. Started once it is, or could not be: that is reported and retried."""
        connect_to = self._visitors.host
        if connect_to is None:
            await self.undo()
            task_status.started()
            return
        with trio.CancelScope() as self._keeping:
            while not self._stopped:
                self._moved = trio.Event()
                self._domains = self._wanted(connect_to)
                try:
                    await self._names.apply(
                        choose_server(self._visitors.dns_listen), port=self._config.dns_port, domains=self._domains
                    )
                except MeshboxError as error:
                    self._faults.report("host names", "names of the mesh do not reach this host; will try again", error)
                else:
                    self._faults.over("host names")
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                if await beat.wait(self._moved, LOOK):
                    await beat.sleep(SETTLE)

    def changed(self) -> None:
        """Say that services may have come or gone."""
        connect_to = self._visitors.host
        if self._domains is not None and connect_to is not None and self._wanted(connect_to) != self._domains:
            self._moved.set()

    def _wanted(self, connect_to: ConnectTo) -> frozenset[str]:
        names = self._services() if connect_to.everything else {str(a.name) for a in connect_to.allowances}
        return frozenset({*names, self._config.suffix})

    async def stop(self) -> None:
        """Undo everything, whether or not the appliance is being cancelled; a second call does nothing."""
        self._stopped = True
        self._keeping.cancel()
        if self._visitors.host is not None:
            with trio.CancelScope(shield=True):
                await self.undo()

    async def undo(self) -> None:
        """Put back what is there of ours."""
        try:
            undone = await self._names.revert()
        except Exception as error:  # noqa: BLE001 — nothing else must fail with it
            log.warning("this host's resolver settings could not be put back; run meshbox cleanup", cause=cause(error))
        else:
            if undone:
                log.info("this host's resolver settings are as before", undone=undone)
