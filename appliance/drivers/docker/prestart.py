"""Containers whose namespace exists but whose program does not run yet: the moment at which rules must go in.

Docker's start of a container (20.10, libnetwork's `SetKey` called from runc's prestart hook): addresses are reserved
(`network connect` event) → runc's init stands in a new namespace → that namespace is bound to a file in Docker's
netns directory → interfaces are moved in and get their addresses, 50 to 110 ms after the file → runc starts the program
→ `start` event, some 30 ms later. Inspect blocks until all is over and the list shows no address. So the owner is read
from the namespace itself, and its addresses from the networks' own descriptions, which have them from the beginning;
where those do not tell, they are read inside the namespace as soon as they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from appliance.drivers.netns import identity as namespaces
from appliance.errors import MeshboxError
from appliance.model.network import Netns

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
class StartingContainer:
    """A namespace, its container, and the addresses it has so far."""

    container_id: str
    netns: Netns
    addresses: tuple[IPv4Address, ...]


class Parent(Protocol):
    """Who wants to know of seen_before_start."""

    def only_connecting(self) -> str | None:
        """Return the id of the container between `network connect` and `start`, if there is exactly one."""

    async def concerns(self, container_id: str) -> bool:
        """Return whether this container's rules are ours. Raises MeshboxError."""

    async def reserved(self, container_id: str) -> tuple[IPv4Address, ...]:
        """Return the addresses that Docker's networks have for it, as far as they tell. Raises MeshboxError."""

    async def born(self, starting: StartingContainer) -> bool:
        """Take in what is known so far; return whether later addresses are of interest. Raises MeshboxError."""

    def awaits(self, container_id: str) -> bool:
        """Return whether the container's program does not run yet."""

    def vanished(self, path: str) -> None:
        """Take in that the file of a namespace is gone."""


class PrestartWatch:
    """Follows each file of Docker's netns directory from its appearance until its container has addresses."""

    def __init__(self, directory: str, parent: Parent) -> None:
        """`directory` need not exist yet."""
        self._directory = directory
        self._parent = parent
        self._sees_owners = False
        """Whether the host's processes can be seen (--pid=host); then a namespace of nobody known is a build's."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled, beginning with the files that are there. Started once the watch stands."""
        waiting = True
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    old = _files(self._directory)
                    with namespaces.watch_directory(self._directory) as changes:
                        if waiting:
                            waiting = False
                            task_status.started()
                        async for change in changes:
                            if change.present:
                                nursery.start_soon(self._follow, change.path, change.path not in old)
                            else:
                                old.discard(change.path)
                                self._parent.vanished(change.path)
                except MeshboxError as error:
                    log.warning("rules come late to starting containers", cause=str(error))
                if waiting:
                    waiting = False
                    task_status.started()
                await trio.sleep(WATCH_AGAIN)

    async def _follow(self, path: str, new: bool) -> None:  # noqa: FBT001 — start_soon passes no keywords
        netns_id = await namespaces.wait_namespace(path)
        if netns_id is None:
            return
        try:
            container_id = await namespaces.find_container(path)
            self._sees_owners = self._sees_owners or container_id is not None
            if new and not self._sees_owners:
                container_id = self._parent.only_connecting()
            if container_id is not None and await self._parent.concerns(container_id):
                netns = Netns(id=netns_id, path=path)
                addresses = await self._parent.reserved(container_id)
                if addresses:
                    await self._parent.born(
                        StartingContainer(container_id=container_id, netns=netns, addresses=addresses)
                    )
                else:
                    with trio.move_on_after(PATIENCE):
                        await self._look_inside(container_id, netns)
        except MeshboxError as error:
            if namespaces.identify(path) == netns_id:
                log.warning("rules of a starting container come late", netns=path, cause=str(error))

    async def _look_inside(self, container_id: str, netns: Netns) -> None:
        """Tell of its first address at once, and of those of further networks until it has started."""
        told: tuple[IPv4Address, ...] = ()
        found = await namespaces.wait_addresses(netns.path, timeout=PATIENCE)
        while namespaces.identify(netns.path) == netns.id:
            if found != told:
                told = found
                starting = StartingContainer(container_id=container_id, netns=netns, addresses=found)
                if not await self._parent.born(starting):
                    return
            await trio.sleep(LOOK_AGAIN)
            if not self._parent.awaits(container_id):
                return
            found = await namespaces.addresses(netns.path)


def _files(directory: str) -> set[str]:
    try:
        return {str(path) for path in Path(directory).absolute().iterdir()}
    except OSError:
        return set()
