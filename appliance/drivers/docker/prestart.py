"""Containers whose namespace exists but whose program does not run yet: the moment at which rules must go in.

The start of a container (Docker 20.10; libnetwork's `SetKey`, called from runc's prestart hook):

1. Docker reserves the addresses and sends the `network connect` event.
2. runc's init stands in a new namespace, and Docker binds that to a file in its netns directory.
3. Interfaces are moved in and get their addresses, 50 to 110 ms after the file.
4. runc starts the program; the `start` event follows some 30 ms later.

Nothing here waits for Docker that it may answer late. Inspect blocks until all of that is over, and an engine that has
run for a while does not describe a network while it joins a container to it. So the container is published twice:

- At once, with its networks and without addresses. The processes in the namespace say whose it is, events say which
  networks it is on, and these are known from before. That is enough for its rules; DNS lets its questions wait.
- With its addresses, which the namespace has as soon as its interfaces are there, or which Docker describes, whichever
  comes first. Then names work.

The descriptions of the networks also say which MAC and addresses any container on a bridge may use, labelled or not
(members.py). They count more than what the namespace shows, which its program may change.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.docker.http import NotFoundError
from appliance.drivers.docker.network import attach_by_address, attach_by_name
from appliance.drivers.netns import addresses, directory, identity, owner
from appliance.errors import MeshboxError
from appliance.heartbeat import UNWATCHED
from appliance.model.network import Netns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ipaddress import IPv4Address

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.members import MemberStore
    from appliance.drivers.docker.types import Joined, Listed
    from appliance.drivers.docker.workloads import WorkloadStore
    from appliance.drivers.netns.owner import Owner
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import Attachment, DockerNetwork

log = structlog.get_logger()

PATIENCE = 10.0
"""Seconds in which a namespace may get addresses; a slower start is seen by its `start` event."""
LONGEST = 120.0
"""Seconds after which a start is no longer followed that is not over: a slow Docker answers each call in 30 s."""
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
        members: MemberStore,
        *,
        listed: Callable[[str], Awaitable[Listed | None]],
        list_networks: Callable[[], Awaitable[None]],
        inspect: Callable[[str], None],
        failed: Callable[[str, Exception], None] = lambda _path, _error: None,
    ) -> None:
        """`netns_dir` need not exist yet.

        `listed` returns a container's list entry with its labels judged, `list_networks` brings the store's networks up
        to date; both raise MeshboxError. `inspect` is called with the id of each container whose start has come to
        nothing, `failed` with the file and error of a start that cannot be followed.
        """
        self._netns_dir = netns_dir
        self._docker = docker
        self._store = store
        self._members = members
        self._listed = listed
        self._list_networks = list_networks
        self._inspect = inspect
        self._failed = failed
        self._sees_processes = False
        """Whether the host's processes can be seen (--pid=host); then a namespace without a container is a build's."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch until cancelled, beginning with the files that are there. Started once the watch stands."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    old = _files(self._netns_dir)
                    with directory.watch_directory(self._netns_dir) as changes:
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        while True:
                            change = await beat.until(changes.__anext__)
                            if change.present:
                                follow = partial(self._follow, change.path, new=change.path not in old, beat=beat)
                                nursery.start_soon(follow)
                            else:
                                old.discard(change.path)
                                self._abandon(change.path)
                except MeshboxError as error:
                    log.warning("rules come late to starting containers", cause=str(error))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await beat.sleep(WATCH_AGAIN)

    def _abandon(self, path: str) -> None:
        container_id = self._store.abandon_start(path)
        if container_id is not None:
            self._inspect(container_id)

    async def _follow(self, path: str, *, new: bool, beat: Heartbeat) -> None:
        """Follow one start. Whatever goes wrong with it is its own problem."""
        try:
            with beat.another(f"following the start at {path}", LONGEST):
                await self._follow_start(path, new=new)
        except Exception as error:  # noqa: BLE001 — also a look into /proc with no descriptor left
            self._failed(path, error)

    async def _follow_start(self, path: str, *, new: bool) -> None:
        netns_id = await identity.wait_namespace(path)
        if netns_id is None:
            return
        netns = Netns(id=netns_id, path=path)
        try:
            found = await owner.find_owner(path)
            container_id = self._container(found, new=new)
            if container_id is None:
                return
            start = _Start(container_id, netns, found)
            if not await self._is_workload(container_id):
                if new:  # else it is listed with all others
                    await self._ask_networks(start, await self._networks_of(container_id))
                return
            networks = await self._networks_of(container_id)
            start.places = await self._places(networks)
            await self._publish(start, start.places)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_inside, start, len(networks))
                if await self._describe(start, networks):
                    nursery.cancel_scope.cancel()
        except MeshboxError as error:
            _comes_late(netns, error)

    def _container(self, found: Owner | None, *, new: bool) -> str | None:
        self._sees_processes = self._sees_processes or found is not None
        if new and not self._sees_processes:
            return self._store.only_connecting()
        return found.container if found is not None else None

    async def _is_workload(self, container_id: str) -> bool:
        """Return whether it is a workload that can have rules; the list is asked where no event has named it yet."""
        if container_id not in self._store.by_id:
            listed = await self._listed(container_id)
            if listed is None or not self._store.add(listed):
                return False
        return self._store.by_id[container_id].problem is None

    async def _networks_of(self, container_id: str) -> tuple[str, ...]:
        """Return the names of its networks, in the order in which inspect will show them."""
        networks = self._store.connecting.get(container_id)
        if not networks:  # the events are behind
            listed = await self._docker.listed(container_id)
            networks = list(listed.networks) if listed is not None else []
        return tuple(sorted(networks))

    async def _places(self, networks: tuple[str, ...]) -> tuple[Attachment, ...]:
        """Return its places on networks, without addresses; networks as new as itself are asked for."""
        places = attach_by_name(networks, self._store.networks)
        if not places and any(name not in self._store.networks for name in networks):
            await self._list_networks()
            places = attach_by_name(networks, self._store.networks)
        return places

    async def _describe(self, start: _Start, networks: tuple[str, ...]) -> bool:
        """Publish it as Docker describes it; return whether that told its addresses."""
        try:
            joined = await self._ask_networks(start, networks)
            found = tuple(one.address for one in joined if one.address is not None)
            if found:
                await self._publish(start, await self._attach(start, found))
        except MeshboxError as error:
            if identity.identify(start.netns.path) == start.netns.id:
                words = "what Docker gave a starting container comes late; its addresses are not held to ports yet"
                log.warning(words, netns=start.netns.path, cause=str(error))
            return False
        return bool(found)

    async def _ask_networks(self, start: _Start, networks: tuple[str, ...]) -> tuple[Joined, ...]:
        """Return what its networks have for it already, and note it with all that is on bridges."""
        began = time.time()
        found: list[tuple[DockerNetwork, Joined]] = []
        for network in networks:
            try:
                members = await self._docker.members(network)
            except NotFoundError:
                continue
            if start.container_id in members.joined:
                found.append((members.network, members.joined[start.container_id]))
        joined = tuple(one for _, one in found)
        if identity.identify(start.netns.path) == start.netns.id:  # an answer may come long after the end
            self._members.put(start.container_id, start.netns, joined, {n.name: n for n, _ in found}, since=began)
        return joined

    async def _follow_inside(self, start: _Start, expected: int) -> None:
        """Publish it with the first address that its namespace has, and with those of further networks as they come."""
        netns = start.netns
        published: tuple[IPv4Address, ...] = ()
        try:
            found = await addresses.wait(netns.path, timeout=PATIENCE)
            while found and identity.identify(netns.path) == netns.id:
                if found != published:
                    published = found
                    places = await self._attach(start, found)
                    if places != start.places and not await self._publish(start, places):
                        return
                if len(found) >= expected > 0:
                    return
                await trio.sleep(LOOK_AGAIN)
                if not self._store.is_starting(start.container_id, netns):
                    return
                found = await addresses.read(netns.path)
        except MeshboxError as error:
            _comes_late(netns, error)

    async def _attach(self, start: _Start, found: tuple[IPv4Address, ...]) -> tuple[Attachment, ...]:
        """Return its places with these addresses, and those without one yet, so that its rules stay as they are."""
        attachments, foreign = attach_by_address(found, self._store.networks.values())
        if foreign:  # its network may be as new as the container itself
            await self._list_networks()
            attachments, _ = attach_by_address(found, self._store.networks.values())
        there = {a.network for a in attachments}
        return tuple(sorted((*attachments, *(p for p in start.places if p.network not in there)), key=_network))

    async def _publish(self, start: _Start, attachments: tuple[Attachment, ...]) -> bool:
        """Publish it, so that its rules are in place when its program starts; return as `begin_start` does."""
        if start.published and not self._store.is_starting(start.container_id, start.netns):
            return False  # it runs, or has ended: Docker has said so
        more = self._store.begin_start(start.container_id, start.netns, attachments, start.process)
        start.published = start.published or self._store.is_starting(start.container_id, start.netns)
        return more


class _Start:
    """One start that is followed."""

    def __init__(self, container_id: str, netns: Netns, found: Owner | None) -> None:
        self.container_id = container_id
        self.netns = netns
        self.process = found.process if found is not None else None
        self.places: tuple[Attachment, ...] = ()
        """Without addresses, as of the first moment."""
        self.published = False


def _network(place: Attachment) -> str:
    return place.network


def _comes_late(netns: Netns, error: MeshboxError) -> None:
    if identity.identify(netns.path) == netns.id:
        log.warning("rules of a starting container come late", netns=netns.path, cause=str(error))


def _files(netns_dir: str) -> set[str]:
    try:
        return {str(path) for path in Path(netns_dir).absolute().iterdir()}
    except OSError:
        return set()
