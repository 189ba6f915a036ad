"""What runs here: Docker's containers as `Workload` facts, kept up to date.

Events carry nothing but "look at this container again": it is inspected and its entry replaced. Three things act
at once, because waiting for inspect would be too late: `die` and `destroy`, after which nothing may be sent there, and
a new file in Docker's netns directory, which tells of a container before its program runs (drivers/newborn.py).

Everything is listed afresh after each reconnect and every 30 s. While Docker is away, the last known facts stay.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from appliance.drivers.docker import labels
from appliance.drivers.docker.http import NotFoundError
from appliance.drivers.docker.prestart import PrestartWatch, StartingContainer
from appliance.drivers.docker.probe import Prober
from appliance.drivers.docker.workloads import WorkloadStore
from appliance.errors import RetryError
from appliance.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from ipaddress import IPv4Address

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.types import Event, Inspected
    from appliance.model.facts import DockerNetwork, Probe, Workload
    from appliance.model.network import NetnsId

NETNS_DIR = "/var/run/docker/netns"
FULL_LIST = 30.0
"""Seconds between full lists."""
FIRST_LOOK = 10.0
"""Seconds that the first list waits for inspects, which block while Docker starts a container."""
INSPECTS = 16
"""Inspects under way at once."""
RECONNECT = (0.2, 5.0)
"""Seconds until Docker is tried again: doubling from the first to the last."""


class Bell(Protocol):
    """Rung at every change."""

    def __call__(self, *, urgent: bool = False) -> None:
        """`urgent`: the next pass must not wait for quiet."""


class Inventory:
    """The labelled containers and the networks of this host."""

    def __init__(
        self,
        docker: Docker,
        *,
        netns_dir: str = NETNS_DIR,
        bell: Bell,
        fresh_netns: Callable[[NetnsId], None] = lambda _: None,
        faults: Faults | None = None,
    ) -> None:
        """`netns_dir` is Docker's netns directory as the appliance sees it.

        `fresh_netns` is told of each new namespace before the bell rings: the kernel uses inode numbers again, so
        rules remembered for this number are those of a namespace that is gone.
        """
        self._docker = docker
        self._bell = bell
        self._faults = faults or Faults()
        self._store = WorkloadStore(
            netns_dir=Path(netns_dir), changed=self._publish, fresh_netns=fresh_netns, faults=self._faults
        )
        self._prestart = PrestartWatch(netns_dir, self)
        self._prober = Prober(lambda p: self._store.accepted(p.workload_id, p.netns, p.port))
        self._limit = trio.CapacityLimiter(INSPECTS)
        self._connecting: dict[str, list[str]] = {}
        """Containers on their way from `network connect` to `start`, oldest first → ids of those networks."""
        self._sharing: dict[str, str] = {}
        self._looking: set[str] = set()
        self._look_again: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self.workloads: tuple[Workload, ...] = ()
        self.networks: tuple[DockerNetwork, ...] = ()
        self.connected = False
        self.counts = {"lists": 0, "events": 0, "inspects": 0, "reconnects": 0}
        """Since the start."""

    @property
    def seen_before_start(self) -> int:
        """How many containers were seen before their program ran."""
        return self._store.seen_before_start

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow Docker until cancelled. Started once everything was listed once."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._prober.run)
                await nursery.start(self._follow)
                await nursery.start(self._prestart.run)
                nursery.start_soon(self._list_now_and_then)
                task_status.started()
        finally:
            self._nursery = None

    def probe(self, wanted: frozenset[Probe]) -> None:
        """Dial exactly these from now on, each until it accepts, which `Workload.accepting` then says."""
        self._prober.want(wanted)

    def _publish(self, *, urgent: bool) -> None:
        self.workloads = tuple(sorted(self._store.table.values(), key=lambda w: (w.docker_name, w.id)))
        self._bell(urgent=urgent)

    # -- following Docker

    async def _follow(self, *, task_status: trio.TaskStatus[None]) -> None:
        since = time.time()
        pause = RECONNECT[0]
        listed = False
        while True:
            cause: object = "the stream of events ended"
            try:
                async with self._docker.events(since=since) as events:
                    await self._list(wait=not listed)
                    self._set_connected(True)
                    pause = RECONNECT[0]
                    if not listed:
                        listed = True
                        task_status.started()
                    async for event in events:
                        since = max(since, event.time)
                        self.counts["events"] += 1
                        self._take(event)
            except RetryError as error:
                cause = error
            self.counts["reconnects"] += 1
            self._faults.report("docker", "Docker is away; what was last known stays", cause)
            self._set_connected(False)
            await trio.sleep(pause)
            pause = min(pause * 2, RECONNECT[1])

    def _set_connected(self, connected: bool) -> None:  # noqa: FBT001 — it is the value of a field
        if connected:
            self._faults.over("docker")
        if self.connected != connected:
            self.connected = connected
            self._bell()

    async def _list_now_and_then(self) -> None:
        while True:
            await trio.sleep(FULL_LIST)
            if self.connected:
                await self._or_report(self._list)

    async def _or_report(self, listing: Callable[[], Awaitable[None]]) -> None:
        try:
            await listing()
        except RetryError as error:
            self._faults.report("docker list", "listing failed; will try again", error)
        else:
            self._faults.over("docker list")

    async def _list(self, *, wait: bool = False) -> None:
        known = set(self._store.table)  # what an event brings while the list is on its way is not missing from it
        await self._list_networks()
        listed = await self._docker.containers()
        self.counts["lists"] += 1
        for gone in known - {entry.id for entry in listed}:
            self._remove(gone)
        looks = [entry.id for entry in listed if self._store.sketch(entry)]
        if not (wait and await self._look_at_all(looks)):
            for container_id in looks:
                self._look(container_id)

    async def _look_at_all(self, looks: Iterable[str]) -> bool:
        """Wait until all were inspected; return whether that came to an end in good time."""
        with trio.move_on_after(FIRST_LOOK) as patience:
            async with trio.open_nursery() as nursery:
                for container_id in looks:
                    self._look(container_id, nursery)
        return not patience.cancelled_caught

    async def _list_networks(self) -> None:
        networks = tuple(sorted(await self._docker.networks(), key=lambda n: n.name))
        if networks != self.networks:
            self.networks = networks
            self._store.networks = {n.name: n for n in networks}
            self._bell()

    def _take(self, event: Event) -> None:
        action = event.action.partition(":")[0]  # `health_status: healthy`
        if event.kind == "network":
            self._take_network(action, event.id, event.attributes.get("container", ""))
            return
        for sharer in [workload for workload, owner in self._sharing.items() if owner == event.id]:
            self._look(sharer)
        if action in {"start", "die", "destroy"}:
            self._connecting.pop(event.id, None)
        if action == "destroy":
            self._remove(event.id)
            if event.id in self._looking:
                self._look(event.id)  # the answer that is under way may be older, and would bring it back
        elif self._store.sketch(event.listed()):
            if action == "die":
                self._store.died(event)
            if action != "create":  # inspect would wait for the start that follows, whose event brings the rest
                self._look(event.id)

    def _take_network(self, action: str, network_id: str, container_id: str) -> None:
        if not container_id:
            if self._nursery is not None:
                self._nursery.start_soon(self._or_report, self._list_networks)
        elif self._store.is_settled(container_id):
            self._look(container_id)
        elif action == "connect":
            self._connecting.setdefault(container_id, []).append(network_id)
        else:
            self._connecting.pop(container_id, None)
            if self._store.is_starting(container_id):  # it failed; Docker removes the namespace's file a minute later
                self._look(container_id)

    def _remove(self, container_id: str) -> None:
        self._connecting.pop(container_id, None)
        self._sharing.pop(container_id, None)
        self._faults.drop(lambda key: key == ("inspect", container_id))
        self._store.remove(container_id)

    # -- looking at one container

    def _look(self, container_id: str, nursery: trio.Nursery | None = None) -> None:
        """Inspect it soon; if that is under way already, once more after."""
        nursery = nursery or self._nursery
        if container_id in self._looking or nursery is None:
            self._look_again.add(container_id)
        else:
            self._looking.add(container_id)
            nursery.start_soon(self._look_until_fresh, container_id)

    async def _look_until_fresh(self, container_id: str) -> None:
        try:
            while True:
                self._look_again.discard(container_id)
                async with self._limit:
                    inspected = await self._docker.inspect(container_id)
                    owner = await self._owner(inspected)
                self.counts["inspects"] += 1
                if any(j.network not in self._store.networks for j in inspected.joined):
                    await self._list_networks()
                if container_id not in self._look_again:  # else an event came meanwhile: this may be old
                    break
            self._faults.over(("inspect", container_id))
            self._store.seen(inspected, owner)
        except NotFoundError:
            self._remove(container_id)
        except RetryError as error:
            self._faults.report(("inspect", container_id), "looking at a container failed; will try again", error)
        finally:
            self._looking.discard(container_id)
            self._look_again.discard(container_id)

    async def _owner(self, inspected: Inspected) -> Inspected | None:
        other = labels.shared_with(inspected.listed.network_mode)
        if other is None:
            return None
        try:
            owner = await self._docker.inspect(other)
        except NotFoundError:
            return None
        self._sharing[inspected.listed.id] = owner.listed.id
        return owner

    # -- containers whose program does not run yet (drivers/newborn.py, Parent)

    def only_connecting(self) -> str | None:
        """Return the container between `network connect` and `start`, if there is exactly one."""
        return next(iter(self._connecting)) if len(self._connecting) == 1 else None

    async def concerns(self, container_id: str) -> bool:
        """Return whether it is a workload that can have rules; the list is asked where no event has told of it yet."""
        if container_id not in self._store.table:
            listed = await self._docker.listed(container_id)
            if listed is None or not self._store.sketch(listed):
                return False
        return self._store.table[container_id].problem is None

    async def reserved(self, container_id: str) -> tuple[IPv4Address, ...]:
        """Return the addresses that Docker's networks have for it already."""
        networks: Iterable[str] = self._connecting.get(container_id, ())
        if not networks:  # the events are behind
            listed = await self._docker.listed(container_id)
            networks = listed.networks if listed is not None else ()
        found = []
        for network in tuple(networks):
            try:
                members = await self._docker.members(network)
            except NotFoundError:
                continue
            if container_id in members.addresses:
                found.append(members.addresses[container_id])
        return tuple(found)

    async def born(self, starting: StartingContainer) -> bool:
        """Publish it, so that its rules are in place when its program starts."""
        _, strange = labels.attach_by_address(starting.addresses, self.networks)
        if strange:
            await self._list_networks()  # its network is as new as itself
        return self._store.born(starting)

    def awaits(self, container_id: str) -> bool:
        """Return whether its program does not run yet, as far as one knows."""
        return self._store.is_starting(container_id)

    def vanished(self, path: str) -> None:
        """Look again at a container whose start came to nothing."""
        container_id = self._store.vanished(path)
        if container_id is not None:
            self._look(container_id)
