"""What runs here: Docker's containers as `Workload` facts, kept up to date.

An event only says which container to inspect again; its entry is then replaced. Three things act at once, because
inspect would answer too late. After `die` and `destroy` nothing may be sent to the container. A new file in Docker's
netns directory shows a container before its program runs (prestart.py).

Everything is listed afresh after each reconnect and every 30 s. While Docker is away, the last known facts stay.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from appliance.drivers.docker.http import NotFoundError
from appliance.drivers.docker.prestart import PrestartWatch
from appliance.drivers.docker.probe import Prober
from appliance.drivers.docker.types import Unreadable
from appliance.drivers.docker.workload import shared_with
from appliance.drivers.docker.workloads import WorkloadStore
from appliance.errors import RetryError, cause
from appliance.faults import Faults
from appliance.retry import Schedule
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.types import Event, Inspected, Listed
    from appliance.model.facts import DockerNetwork, Probe, Workload
    from appliance.model.network import NetnsId

NETNS_DIR = "/var/run/docker/netns"
FULL_LIST = 30.0
"""Seconds between full lists."""
FIRST_LIST = 10.0
"""Seconds that the first list waits for inspects, which block while Docker starts a container."""
INSPECTS = 16
"""Inspects under way at once."""
STARTING = "starting"
"""Of faults: a start that could not be followed, by its namespace's file."""
RECONNECT = Schedule((0.2, 0.4, 0.8, 1.6, 3.2, 5.0))
"""Seconds until Docker is tried again."""


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

        `fresh_netns` is called with each new namespace before the bell rings: the kernel uses inode numbers again, so
        rules remembered for this number are those of a namespace that is gone.
        """
        self._docker = docker
        self._bell = bell
        self._faults = faults or Faults()
        self._store = WorkloadStore(
            netns_dir=Path(netns_dir), changed=self._publish, fresh_netns=fresh_netns, faults=self._faults
        )
        self._prestart = PrestartWatch(
            netns_dir,
            docker,
            self._store,
            list_networks=self._list_networks,
            inspect=self._inspect,
            failed=lambda path, error: self._faults.report(
                (STARTING, path), "a starting container is passed over until Docker shows it", cause(error)
            ),
        )
        self._prober = Prober(lambda p: self._store.accepted(p.workload_id, p.netns, p.port))
        self._limit = trio.CapacityLimiter(INSPECTS)
        self._sharing: dict[str, str] = {}
        """Containers → the container whose network they share."""
        self._inspecting: set[str] = set()
        self._inspect_again: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self.workloads: tuple[Workload, ...] = ()
        self.networks: tuple[DockerNetwork, ...] = ()
        self.connected = False
        self.counts = {"lists": 0, "events": 0, "inspects": 0, "reconnects": 0, "unreadable": 0}
        """Since the start."""
        self._passed_over: dict[str, set[str]] = {"container": set(), "network": set(), "event": set()}
        """Ids of entries that could not be read, by kind, since the last list."""

    @property
    def seen_before_start(self) -> int:
        """How many containers were seen before their program ran."""
        return self._store.seen_before_start

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow Docker until cancelled. Started once everything was listed once."""
        self._docker.complain = self._complain
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
        """Dial exactly these from now on, each until it accepts, which `Workload.accepting` then says.

        Those that have accepted, or ended, since the plan that wants them was begun are left out.
        """
        self._prober.want(frozenset(p for p in wanted if self._store.awaits(p.workload_id, p.netns, p.port)))

    def _publish(self, *, urgent: bool) -> None:
        self.workloads = tuple(sorted(self._store.by_id.values(), key=lambda w: (w.docker_name, w.id)))
        self._bell(urgent=urgent)

    # -- following Docker

    async def _follow(self, *, task_status: trio.TaskStatus[None]) -> None:
        since = time.time()
        failures = 0
        listed = False
        while True:
            why: object = "the stream of events ended"
            try:
                async with self._docker.events(since=since) as events:
                    await self._list(wait=not listed)
                    self._set_connected(True)
                    failures = 0
                    if not listed:
                        listed = True
                        task_status.started()
                    async for event in events:
                        since = max(since, event.time)
                        self.counts["events"] += 1
                        try:
                            self._take(event)
                        except Exception as error:  # noqa: BLE001 — it is the problem of this one event
                            self._complain("event", Unreadable(id=event.id, cause=cause(error)))
            except RetryError as error:
                why = error
            self.counts["reconnects"] += 1
            self._faults.report("docker", "Docker is away; what was last known stays", why)
            self._set_connected(False)
            failures += 1
            await trio.sleep(RECONNECT.after(failures))

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
            self._faults.report("docker list", "cannot list containers and networks; will try again", error)
        else:
            self._faults.over("docker list")

    async def _list(self, *, wait: bool = False) -> None:
        known = set(self._store.by_id)  # one that an event adds during the call is not missing
        await self._list_networks()
        with self._listing("event"), self._listing("container"):
            listed = await self._docker.containers()
            self.counts["lists"] += 1
            labelled = [entry.id for entry in listed if self._add(entry)]
            passed_over = self._passed_over["container"]
            if "" not in passed_over:  # else one of those that seem to be missing is perhaps there
                for gone in known - {entry.id for entry in listed} - passed_over:
                    self._remove(gone)
        self._faults.drop(lambda key: isinstance(key, tuple) and key[0] == STARTING and not Path(key[1]).exists())
        if not (wait and await self._inspect_all(labelled)):
            for container_id in labelled:
                self._inspect(container_id)

    async def _inspect_all(self, labelled: Iterable[str]) -> bool:
        """Wait until all were inspected; return False when that took too long."""
        with trio.move_on_after(FIRST_LIST) as patience:
            async with trio.open_nursery() as nursery:
                for container_id in labelled:
                    self._inspect(container_id, nursery)
        return not patience.cancelled_caught

    async def _list_networks(self) -> None:
        with self._listing("network"):
            listed = await self._docker.networks()
        passed_over = self._passed_over["network"]
        named = {n.name for n in listed}
        kept = [n for n in self.networks if n.name not in named and (n.name in passed_over or "" in passed_over)]
        networks = tuple(sorted((*listed, *kept), key=lambda n: n.name))
        if networks != self.networks:
            self.networks = networks
            self._store.networks = {n.name: n for n in networks}
            self._bell()

    # -- what cannot be read

    def _complain(self, kind: str, entry: Unreadable) -> None:
        """Name and count an entry of Docker's that is passed over."""
        self.counts["unreadable"] += 1
        self._passed_over[kind].add(entry.id)
        words = f"what Docker says of a {kind} cannot be read; it is passed over"
        self._faults.report((kind, plain(entry.id)), words, entry.cause, id=plain(entry.id))

    @contextmanager
    def _listing(self, kind: str) -> Iterator[None]:
        """Note that entries can be read again, or are gone, unless this list passes them over, too, or fails."""
        former, self._passed_over[kind] = self._passed_over[kind], set()
        try:
            yield
        except BaseException:
            self._passed_over[kind] |= former
            raise
        for entry in former - self._passed_over[kind]:
            self._faults.over((kind, plain(entry)))

    def _add(self, entry: Listed) -> bool:
        try:
            return self._store.add(entry)
        except Exception as error:  # noqa: BLE001 — it is the problem of this one container
            self._complain("container", Unreadable(id=entry.id, cause=cause(error)))
            return False

    # -- events

    def _take(self, event: Event) -> None:
        action = event.action.partition(":")[0]  # `health_status: healthy`
        if event.kind == "network":
            self._take_network(action, event.id, event.attributes.get("container", ""))
            return
        for sharer in [workload for workload, owner in self._sharing.items() if owner == event.id]:
            self._inspect(sharer)
        if action in {"start", "die", "destroy"}:
            self._store.end_connecting(event.id)
        if action == "destroy":
            self._remove(event.id)
            if event.id in self._inspecting:
                self._inspect(event.id)  # an answer under way may be older, and would bring it back
        elif self._store.add(event.listed()):
            if action == "die":
                self._store.died(event)
            if action != "create":  # inspect would wait for the start; its event brings the rest
                self._inspect(event.id)

    def _take_network(self, action: str, network_id: str, container_id: str) -> None:
        if not container_id:
            if self._nursery is not None:
                self._nursery.start_soon(self._or_report, self._list_networks)
        elif self._store.is_settled(container_id):
            self._inspect(container_id)
        elif action == "connect":
            self._store.begin_connecting(container_id, network_id)
        else:
            self._store.end_connecting(container_id)
            if self._store.is_starting(container_id):  # it failed; Docker removes the namespace's file a minute later
                self._inspect(container_id)

    def _remove(self, container_id: str) -> None:
        self._sharing.pop(container_id, None)
        self._faults.drop(lambda key: key == ("inspect", container_id))
        self._store.remove(container_id)

    # -- inspecting one container

    def _inspect(self, container_id: str, nursery: trio.Nursery | None = None) -> None:
        """Inspect it soon. If that is under way already, inspect it once more afterwards."""
        nursery = nursery or self._nursery
        if container_id in self._inspecting or nursery is None:
            self._inspect_again.add(container_id)
        else:
            self._inspecting.add(container_id)
            nursery.start_soon(self._inspect_until_fresh, container_id)

    async def _inspect_until_fresh(self, container_id: str) -> None:
        try:
            while True:
                self._inspect_again.discard(container_id)
                async with self._limit:
                    inspected = await self._docker.inspect(container_id)
                    owner = await self._owner(inspected)
                self.counts["inspects"] += 1
                if any(j.network not in self._store.networks for j in inspected.joined):
                    await self._list_networks()
                if container_id not in self._inspect_again:  # else an event came meanwhile: this answer may be old
                    break
            self._faults.over(("inspect", container_id))
            self._store.update(inspected, owner)
        except NotFoundError:
            self._remove(container_id)
        except RetryError as error:
            self._faults.report(("inspect", container_id), "cannot inspect a container; will try again", error)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one container
            self.counts["unreadable"] += 1
            words = "what Docker says of a container cannot be used; it is passed over"
            self._faults.report(("inspect", container_id), words, cause(error))
        finally:
            self._inspecting.discard(container_id)
            self._inspect_again.discard(container_id)

    async def _owner(self, inspected: Inspected) -> Inspected | None:
        other = shared_with(inspected.listed.network_mode)
        if other is None:
            return None
        try:
            owner = await self._docker.inspect(other)
        except NotFoundError:
            return None
        self._sharing[inspected.listed.id] = owner.listed.id
        return owner
