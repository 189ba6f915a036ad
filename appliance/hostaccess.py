"""Names of the mesh for processes of this host, for as long as the appliance runs (`host_access`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.hostnames import HostNames
from appliance.errors import MeshboxError

if TYPE_CHECKING:
    from appliance.config import Config
    from appliance.logs import Faults
    from appliance.model.visitors import Visitors

log = structlog.get_logger()

LOOK = 30.0
"""Seconds between looks whether somebody has rewritten the resolver's settings, as DHCP clients do."""


class HostAccess:
    """Keeps resolver settings and route in place, or undoes what a former run has left."""

    def __init__(self, config: Config, visitors: Visitors, faults: Faults) -> None:
        """Touch nothing yet."""
        self._config = config
        self._visitors = visitors
        self._faults = faults
        self._names = HostNames(resolv_conf=config.resolv_conf, vip_range=config.vip_range)
        self._keeping = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep everything in place until `stop`. Started once it is, or could not be: that is reported and retried."""
        connect_to = self._visitors.host
        if connect_to is None:
            await self.undo()
            task_status.started()
            return
        with self._keeping:
            while True:
                try:
                    await self._names.put(
                        sorted(self._visitors.dns_listen),
                        port=self._config.dns_port,
                        connect_to=connect_to,
                        suffix=self._config.suffix,
                    )
                except MeshboxError as error:
                    self._faults.report("host names", "names of the mesh do not reach this host; will try again", error)
                else:
                    self._faults.over("host names")
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(LOOK)

    async def stop(self) -> None:
        """Undo everything, whether or not the appliance is being cancelled; once more does nothing."""
        self._keeping.cancel()
        if self._visitors.host is not None:
            with trio.CancelScope(shield=True):
                await self.undo()

    async def undo(self) -> None:
        """Put back what is there of ours."""
        try:
            undone = await self._names.undo()
        except MeshboxError as error:
            log.warning("this host's resolver settings could not be put back; run meshbox cleanup", cause=str(error))
        else:
            if undone:
                log.info("this host's resolver settings are as before", undone=undone)
