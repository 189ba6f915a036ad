"""What runs here: Docker's containers as `Workload` facts, kept up to date.

An event only says which container to inspect again; its entry is then replaced. Three things act at once, because
inspect would answer too late. After `die` and `destroy` nothing may be sent to the container. A new file in Docker's
netns directory shows a container before its program runs (prestart.py).

Everything is listed afresh after each reconnect and every 30 s. While Docker is away, the last known facts stay.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from math import inf, nextafter
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from appliance.drivers.docker.client import EVENTS_SILENCE
from appliance.drivers.docker.http import CALL_TIMEOUT, NotFoundError, SilentError
from appliance.drivers.docker.images import ImageLabels
from appliance.drivers.docker.inspects import Inspects
from appliance.drivers.docker.members import MemberStore
from appliance.drivers.docker.network import is_bridge
from appliance.drivers.docker.prestart import PrestartWatch
from appliance.drivers.docker.probe import Prober
from appliance.drivers.docker.types import Unreadable
from appliance.drivers.docker.workload import shared_with
from appliance.drivers.docker.workloads import WorkloadStore
from appliance.errors import RetryError, cause
from appliance.faults import Faults
from appliance.heartbeat import Part
from appliance.model.facts import RunState
from appliance.retry import Schedule
from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from ipaddress import IPv4Address

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.punctuality import Punctuality
    from appliance.drivers.docker.types import Event, Inspected, Listed
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import BridgeMember, DockerNetwork, Probe, Workload
    from appliance.model.network import NetnsId

NETNS_DIR = "/var/run/docker/netns"
FULL_LIST = 30.0
"""Seconds between full lists."""
FIRST_LIST = 10.0
"""Seconds that the first list waits for inspects, which block while Docker starts a container."""
LONGEST_LIST = 3 * CALL_TIMEOUT
"""Seconds without progress after which a list is stuck; a loaded Docker may need much of that."""
STARTING = "starting"
"""Of faults: a start that could not be followed, by its namespace's file."""
CHANGE_NOTHING = frozenset(
    {
        *("attach", "commit", "copy", "detach", "exec_create", "exec_detach", "exec_die", "exec_start"),
        *("export", "resize", "top"),
    }
)
"""Events of containers after which inspect would say the same. Health checks cause three each time."""
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
        image_labels: bool = False,
        bell: Bell,
        fresh_netns: Callable[[NetnsId], None] = lambda _: None,
        faults: Faults | None = None,
    ) -> None:
        """`netns_dir` is Docker's netns directory as the appliance sees it; with `image_labels` those of images count.

        `fresh_netns` is called with each new namespace before the bell rings: the kernel uses inode numbers again, so
        rules remembered for this number are those of a namespace that is gone.
        """
        self._docker = docker
        docker.complain = self._complain
        self._labelled = ImageLabels(docker, count_all=image_labels)
        self._bell = bell
        self._faults = faults or Faults()
        self._store = WorkloadStore(
            netns_dir=Path(netns_dir), changed=self._publish, fresh_netns=fresh_netns, faults=self._faults
        )
        self._inspects = Inspects(self._ask, self._cannot_inspect)
        self._members = MemberStore(changed=lambda: bell(urgent=True))
        self._prestart = PrestartWatch(
            netns_dir,
            docker,
            self._store,
            self._members,
            listed=self._labelled.listed,
            list_networks=self._list_networks,
            inspect=self._inspects.begin,
            failed=lambda path, error: self._faults.report(
                (STARTING, path), "a starting container is passed over until Docker shows it", cause(error)
            ),
        )
        self._prober = Prober(self._store.seen)
        self._sharing: dict[str, str] = {}
        """Containers → the container whose network they share."""
        self._meeting: set[str] = set()
        self._since = 0.0
        """When the last event was that was taken, in seconds since the epoch."""
        self._listed = False
        self.workloads: tuple[Workload, ...] = ()
        self.networks: tuple[DockerNetwork, ...] = ()
        self.connected = False
        self.counts = {"lists": 0, "events": 0, "inspects": 0, "reconnects": 0, "unreadable": 0}
        """Since the start."""
        self._passed_over: dict[str, set[str]] = {"container": set(), "network": set(), "event": set()}
        """Ids of entries that could not be read, by kind, since the last list."""

    @property
    def punctuality(self) -> Punctuality:
        """Whether rules were in place before programs ran."""
        return self._store.punctuality

    @property
    def parts(self) -> tuple[Part, ...]:
        """What follows Docker. All have started once everything was listed once."""
        return (
            Part(name="docker inspects", run=self._inspects.run),
            Part(name="prober", run=self._prober.run),
            Part(name="bridge members", run=self._members.run),
            Part(name="docker events", run=self._follow, silence=EVENTS_SILENCE + LONGEST_LIST),
            Part(name="starting containers", run=self._prestart.run),
            Part(name="docker lists", run=self._list_now_and_then, silence=LONGEST_LIST),
        )

    @property
    def members(self) -> tuple[BridgeMember, ...]:
        """The containers on bridge networks, labelled or not."""
        return self._members.members

    def probe(self, wanted: frozenset[Probe]) -> None:
        """Look up exactly these from now on; `Workload.bound` then says what holds.

        Those that have ended since the plan that wants them was begun are left out.
        """
        self._prober.want(frozenset(p for p in wanted if self._store.is_in(p.workload_id, p.netns)))

    async def first_look(self) -> None:
        """Return once all that is to be looked up was."""
        await self._prober.first_look()

    def refused(self, address: IPv4Address) -> None:
        """Look up at once which ports still have a program there. For callbacks of the loop."""
        self._prober.hurry(address)

    def _publish(self, *, urgent: bool) -> None:
        self.workloads = tuple(sorted(self._store.by_id.values(), key=lambda w: (w.docker_name, w.id)))
        self._bell(urgent=urgent)

    # -- following Docker

    async def _follow(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        self._since = time.time()
        failures = 0
        known = False
        """Whether no event can have been missed."""
        while True:
            why: object = "the stream of events ended"
            opened = False
            try:
                async with self._docker.events(since=self._since) as events:
                    opened = True
                    if not known:
                        await self._list(wait=not self._listed)
                        known = self._listed = True
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                    self._set_connected(True)
                    failures = 0
                    beat()
                    async for event in events:
                        beat()
                        self._take_or_complain(event)
            except SilentError as error:
                if opened and known:  # a quiet host: Docker tells what comes after the last event
                    self._since = nextafter(self._since, inf)
                    continue
                why = error
            except RetryError as error:
                why = error
            known = False
            self.counts["reconnects"] += 1
            self._faults.report("docker", "Docker is away; what was last known stays", why)
            self._set_connected(False)
            failures += 1
            await beat.sleep(RECONNECT.after(failures))

    async def catch_up(self) -> None:
        """Take all of Docker's events up to now, which the stream may bring once more. Raises RetryError."""
        async with self._docker.events(since=self._since, until=time.time()) as events:
            async for event in events:
                self._take_or_complain(event)

    def _take_or_complain(self, event: Event) -> None:
        self._since = max(self._since, event.time)
        self.counts["events"] += 1
        try:
            self._take(event)
        except Exception as error:  # noqa: BLE001 — it is the problem of this one event
            self._complain("event", Unreadable(id=event.id, cause=cause(error)))

    def _set_connected(self, connected: bool) -> None:  # noqa: FBT001 — it is the value of a field
        if connected:
            self._faults.over("docker")
        if self.connected != connected:
            self.connected = connected
            self._bell()

    async def _list_now_and_then(self, beat: Heartbeat, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await beat.sleep(FULL_LIST)
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
            listed = await self._labelled.containers()
            self.counts["lists"] += 1
            labelled = [entry.id for entry in listed if self._add(entry)]
            passed_over = self._passed_over["container"]
            if "" not in passed_over:  # else one of those that seem to be missing is perhaps there
                for gone in known - {entry.id for entry in listed} - passed_over:
                    self._remove(gone)
        self._faults.drop(lambda key: isinstance(key, tuple) and key[0] == STARTING and not Path(key[1]).exists())
        wanted = {*labelled, *await self._differing_members()}
        if not (wait and await self._inspect_all(wanted)):
            for container_id in wanted:
                self._inspects.begin(container_id)

    async def _differing_members(self) -> frozenset[str]:
        """Return the containers on bridge networks that are not known as these networks show them."""
        known = self._members.known()
        shown = []
        try:
            for network in filter(is_bridge, self.networks):
                with suppress(NotFoundError):
                    shown.append((network.name, (await self._docker.members(network.name)).joined))
        except RetryError as error:
            words = "cannot list who is on the bridge networks; what was last known stays; will try again"
            self._faults.report("docker members", words, error)
            return frozenset()
        self._faults.over("docker members")
        return self._members.differing(shown, known)

    async def _inspect_all(self, wanted: Iterable[str]) -> bool:
        """Wait until all were inspected; return False when that took too long."""
        with trio.move_on_after(FIRST_LIST) as patience:
            async with trio.open_nursery() as nursery:
                for container_id in wanted:
                    self._inspects.begin(container_id, nursery)
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
            self._take_network(action, event.attributes.get("name") or event.id, event.attributes.get("container", ""))
        elif action not in CHANGE_NOTHING:
            self._take_container(action, event)

    def _take_container(self, action: str, event: Event) -> None:
        for sharer in [workload for workload, owner in self._sharing.items() if owner == event.id]:
            self._inspects.begin(sharer)
        if action in {"start", "die", "destroy"}:
            self._store.end_connecting(event.id)
        self._members.take(action, event)
        if action == "destroy":
            self._remove(event.id)
        elif self._is_labelled(event):
            if action == "die":
                self._store.died(event)
            if action != "create":  # inspect would wait for the start; its event brings the rest
                self._inspects.begin(event.id)
        elif action == "start":  # without labels, but perhaps on a bridge
            self._inspects.begin(event.id)

    def _is_labelled(self, event: Event) -> bool:
        """Return whether the container of an event is labelled, and add it: at once, or when its image is known.

        The image is asked for here, because the container's namespace comes soon, and its rules should not wait.
        """
        listed = self._labelled.at_once(event.listed())
        if listed is not None or event.id in self._store.by_id:
            return self._store.add(listed or event.listed())
        nursery = self._inspects.nursery
        if nursery is not None and event.id not in self._meeting:
            self._meeting.add(event.id)
            nursery.start_soon(self._meet, event.id)
        return True

    async def _meet(self, container_id: str) -> None:
        try:
            listed = await self._labelled.listed(container_id)
            if listed is not None and container_id in self._meeting:  # else it was removed meanwhile
                self._add(listed)
        except RetryError as error:
            self._complain("container", Unreadable(id=container_id, cause=str(error)))
        finally:
            self._meeting.discard(container_id)

    def _take_network(self, action: str, network: str, container_id: str) -> None:
        if not container_id:
            if self._inspects.nursery is not None:
                self._inspects.nursery.start_soon(self._or_report, self._list_networks)
        elif self._store.is_settled(container_id) or self._members.is_settled(container_id):
            self._members.rejoin(container_id)
            self._inspects.begin(container_id)
        elif action == "connect":
            self._store.begin_connecting(container_id, network)
        else:
            self._store.end_connecting(container_id)
            if self._store.is_starting(container_id):  # it failed; Docker removes the namespace's file a minute later
                self._inspects.begin(container_id)

    def _remove(self, container_id: str) -> None:
        self._sharing.pop(container_id, None)
        self._meeting.discard(container_id)
        self._inspects.forget(container_id)
        self._faults.drop(lambda key: key == ("inspect", container_id))
        self._store.remove(container_id)
        self._members.remove(container_id)

    # -- inspecting one container

    async def _ask(self, container_id: str) -> Callable[[], None]:
        inspected = await self._labelled.inspect(container_id)
        owner = await self._owner(inspected)
        self.counts["inspects"] += 1
        if any(j.network not in self._store.networks for j in inspected.joined):
            await self._list_networks()

        def take() -> None:
            self._faults.over(("inspect", container_id))
            self._store.update(inspected, owner)
            self._update_member(inspected)

        return take

    def _cannot_inspect(self, container_id: str, error: Exception) -> None:
        if isinstance(error, NotFoundError):
            self._remove(container_id)
        elif isinstance(error, RetryError):
            self._faults.report(("inspect", container_id), "cannot inspect a container; will try again", error)
        else:
            self.counts["unreadable"] += 1
            words = "what Docker says of a container cannot be used; it is passed over"
            self._faults.report(("inspect", container_id), words, cause(error))

    def _update_member(self, inspected: Inspected) -> None:
        """Take what a running one has on bridge networks; that another one runs not may be older than its start."""
        netns = self._store.identify(inspected.sandbox_key) if inspected.sandbox_key else None
        if netns is not None and inspected.listed.state in {RunState.RUNNING, RunState.PAUSED}:
            self._members.put(
                inspected.listed.id,
                netns,
                inspected.joined,
                self._store.networks,
                since=inspected.started_at,
                settled=True,
            )

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
