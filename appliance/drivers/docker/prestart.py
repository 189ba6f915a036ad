"""Containers whose namespace exists but whose program does not run yet: the moment at which rules must go in.

The start of a container (Docker 20.10; libnetwork's `SetKey`, called from runc's prestart hook):

1. Docker reserves the addresses and sends the `network connect` event.
2. runc's init stands in a new namespace, and Docker binds that to a file in its netns directory.
3. Interfaces are moved in and get their addresses, 50 to 110 ms after the file.
4. runc starts the program; the `start` event follows some 30 ms later.

Inspect blocks until all of that is over, and the list shows no address. So the container is found by the processes in
the namespace, and its addresses in the descriptions of the networks, which have them from the beginning. Where those
have none, the addresses are read inside the namespace as soon as they are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.docker.http import NotFoundError
from appliance.drivers.docker.network import attach_by_address
from appliance.drivers.netns import addresses, directory, identity, owner
from appliance.errors import MeshboxError
from appliance.model.network import Netns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from ipaddress import IPv4Address

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.workloads import WorkloadStore

log = structlog.get_logger()

PATIENCE = 10.0
"""Seconds in which a namespace may get addresses; a slower start is seen by its `start` event."""
LOOK_AGAIN = 0.02
"""Seconds between checks for the addresses of further networks, until the container has started."""
WATCH_AGAIN = 10.0
"""Seconds until a watch that the host refused is tried again."""


class PrestartWatch:
    """Follows each file of Docker's netns directory from its appearance until its container has addresses."""

    def __init__(
        self,
        netns_dir: str,
        docker: Docker,
        store: WorkloadStore,
        *,
        list_networks: Callable[[], Awaitable[None]],
        inspect: Callable[[str], None],
        failed: Callable[[str, Exception], None] = lambda _path, _error: None,
    ) -> None:
        """`netns_dir` need not exist yet.

        `list_networks` brings the store's networks up to date; it raises MeshboxError. `inspect` is called with the id
        of each container whose start has come to nothing, `failed` with the file and error of a start that cannot be
        followed.
        """
        self._netns_dir = netns_dir
        self._docker = docker
        self._store = store
        self._list_networks = list_networks
        self._inspect = inspect
        self._failed = failed
        self._sees_processes = False
        """Whether the host's processes can be seen (--pid=host); then a namespace without a container is a build's."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled, beginning with the files that are there. Started once the watch stands."""
        waiting = True
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    old = _files(self._netns_dir)
                    with directory.watch_directory(self._netns_dir) as changes:
                        if waiting:
                            waiting = False
                            task_status.started()
                        async for change in changes:
                            if change.present:
                                nursery.start_soon(self._follow, change.path, change.path not in old)
                            else:
                                old.discard(change.path)
                                self._abandon(change.path)
                except MeshboxError as error:
                    log.warning("rules come late to starting containers", cause=str(error))
                if waiting:
                    waiting = False
                    task_status.started()
                await trio.sleep(WATCH_AGAIN)

    def _abandon(self, path: str) -> None:
        container_id = self._store.abandon_start(path)
        if container_id is not None:
            self._inspect(container_id)

    async def _follow(self, path: str, new: bool) -> None:  # noqa: FBT001 — start_soon passes no keywords
        netns_id = await identity.wait_namespace(path)
        if netns_id is None:
            return
        netns = Netns(id=netns_id, path=path)
        try:
            container_id = await self._find_container(path, new=new)
            if container_id is None or not await self._is_workload(container_id):
                return
            reserved = await self._reserved_addresses(container_id)
            if reserved:
                await self._publish(container_id, netns, reserved)
            else:
                with trio.move_on_after(PATIENCE):
                    await self._publish_from_inside(container_id, netns)
        except MeshboxError as error:
            if identity.identify(path) == netns_id:
                log.warning("rules of a starting container come late", netns=path, cause=str(error))
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one start
            self._failed(path, error)

    async def _find_container(self, path: str, *, new: bool) -> str | None:
        found = await owner.find_container(path)
        self._sees_processes = self._sees_processes or found is not None
        if new and not self._sees_processes:
            return self._store.only_connecting()
        return found

    async def _is_workload(self, container_id: str) -> bool:
        """Return whether it is a workload that can have rules; the list is asked where no event has named it yet."""
        if container_id not in self._store.by_id:
            listed = await self._docker.listed(container_id)
            if listed is None or not self._store.add(listed):
                return False
        return self._store.by_id[container_id].problem is None

    async def _reserved_addresses(self, container_id: str) -> tuple[IPv4Address, ...]:
        """Return the addresses that Docker's networks have for it already."""
        networks: Iterable[str] = self._store.connecting.get(container_id, ())
        if not networks:  # the events are behind
            listed = await self._docker.listed(container_id)
            networks = listed.networks if listed is not None else ()
        found = []
        for network in tuple(networks):
            try:
                members = await self._docker.members(network)
            except NotFoundError:
                continue
            if container_id in members:
                found.append(members[container_id])
        return tuple(found)

    async def _publish_from_inside(self, container_id: str, netns: Netns) -> None:
        """Publish it with its first address at once, and with those of further networks until it has started."""
        published: tuple[IPv4Address, ...] = ()
        found = await addresses.wait(netns.path, timeout=PATIENCE)
        while identity.identify(netns.path) == netns.id:
            if found != published:
                published = found
                if not await self._publish(container_id, netns, found):
                    return
            await trio.sleep(LOOK_AGAIN)
            if not self._store.is_starting(container_id):
                return
            found = await addresses.read(netns.path)

    async def _publish(self, container_id: str, netns: Netns, found: tuple[IPv4Address, ...]) -> bool:
        """Publish it, so that its rules are in place when its program starts; return as `begin_start` does."""
        attachments, foreign = attach_by_address(found, self._store.networks.values())
        if foreign:  # its network may be as new as the container itself
            await self._list_networks()
            attachments, _ = attach_by_address(found, self._store.networks.values())
        return self._store.begin_start(container_id, netns, attachments)


def _files(netns_dir: str) -> set[str]:
    try:
        return {str(path) for path in Path(netns_dir).absolute().iterdir()}
    except OSError:
        return set()
