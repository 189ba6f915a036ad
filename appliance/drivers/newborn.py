"""Containers whose namespace exists but whose program does not run yet: the moment at which rules must go in.

Docker's start of a container (20.10, libnetwork's `SetKey` called from runc's prestart hook): endpoints are made
(`network connect` event) → runc's init stands in a new namespace → that namespace is bound to a file in Docker's
netns directory → interfaces are moved in and get their addresses → runc starts the program → `start` event. The file
appears 80 to 200 ms before the program; inspect blocks until all is over and the list shows no address, so
owner and addresses are read from the namespace itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from appliance.drivers import netns as namespaces
from appliance.errors import MeshboxError
from appliance.model.facts import Netns

if TYPE_CHECKING:
    from ipaddress import IPv4Address

log = structlog.get_logger()

PATIENCE = 10.0
"""Seconds in which a namespace may get addresses; a start that takes longer is seen by its `start` event."""
LOOK_AGAIN = 0.02
"""Seconds between looks for the addresses of further networks, until the container has started."""
WATCH_AGAIN = 10.0
"""Seconds until a watch that the host refused is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newborn:
    """A namespace, its container, and the addresses it has so far."""

    container_id: str
    netns: Netns
    addresses: tuple[IPv4Address, ...]


class Parent(Protocol):
    """Who wants to know of newborns."""

    def oldest_connecting(self) -> str | None:
        """Return the id of the container whose `network connect` came first and whose `start` has not come yet."""

    async def concerns(self, container_id: str) -> bool:
        """Return whether this container's rules are ours. Raises MeshboxError."""

    async def born(self, newborn: Newborn) -> bool:
        """Take in what is known so far; return whether later addresses are of interest."""

    def vanished(self, path: str) -> None:
        """Take in that the file of a namespace is gone."""


class NewbornWatch:
    """Follows each file of Docker's netns directory from its appearance until its container has addresses."""

    def __init__(self, directory: str, parent: Parent) -> None:
        """`directory` need not exist yet."""
        self._directory = directory
        self._parent = parent

    async def run(self) -> None:
        """Watch until cancelled, beginning with the files that are there."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    with namespaces.watch_directory(self._directory) as changes:
                        async for change in changes:
                            if change.present:
                                nursery.start_soon(self._follow, change.path)
                            else:
                                self._parent.vanished(change.path)
                except MeshboxError as error:
                    log.warning("rules come late to starting containers", cause=str(error))
                await trio.sleep(WATCH_AGAIN)

    async def _follow(self, path: str) -> None:
        netns_id = await namespaces.appeared(path)
        if netns_id is None:
            return
        try:
            container_id = await namespaces.pid_owner(path) or self._parent.oldest_connecting()
            if container_id is not None and await self._parent.concerns(container_id):
                with trio.move_on_after(PATIENCE):
                    await self._tell_addresses(container_id, Netns(id=netns_id, path=path))
        except MeshboxError as error:
            if namespaces.identify(path) == netns_id:
                log.warning("rules of a starting container come late", netns=path, cause=str(error))

    async def _tell_addresses(self, container_id: str, netns: Netns) -> None:
        """Tell of its first address at once, and of further ones while they are of interest."""
        told: tuple[IPv4Address, ...] = ()
        found = await namespaces.wait_addresses(netns.path, timeout=PATIENCE)
        while namespaces.identify(netns.path) == netns.id:
            if found != told:
                told = found
                newborn = Newborn(container_id=container_id, netns=netns, addresses=found)
                if not await self._parent.born(newborn):
                    return
            await trio.sleep(LOOK_AGAIN)
            found = await namespaces.addresses(netns.path)
