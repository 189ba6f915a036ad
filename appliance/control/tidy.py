"""Removing our Docker network when nothing needs it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from appliance.errors import RetryError
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat


class OwnsNetwork(Protocol):
    """What has made our Docker network (`Deployer`)."""

    async def tidy(self) -> bool:
        """Remove the network if nothing uses it. Raises RetryError."""


class NetworkTidier:
    """Removes our Docker network each time after the last container that needed it."""

    def __init__(self, deployer: OwnsNetwork, faults: Faults) -> None:
        self._deployer = deployer
        self._faults = faults
        self._unneeded = trio.Event()

    def unneeded(self) -> None:
        """Say that there is the network, and nothing that needs it."""
        self._unneeded.set()

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Remove it until cancelled. What fails is tried again when the next pass says that it is not needed."""
        task_status.started()
        while True:
            await beat.wait(self._unneeded)
            self._unneeded = trio.Event()
            try:
                await self._deployer.tidy()
            except RetryError as error:
                self._faults.report("tidy", "cannot remove the Docker network; will try again", error)
            else:
                self._faults.over("tidy")
